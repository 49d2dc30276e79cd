"""Checkpoints: whole or not there, verified, bounded in number; in a folder and on an S3 server."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from data_prep import storage
from data_prep.manifest import DigestError
from pipeline.checkpoint import CheckpointConfig, Checkpoints
from pipeline.marker import read_marker

SCALARS = {"nimg": 64000, "config": {"lr": 0.001, "name": "ä"}, "list": [1, None, True]}


def _tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "G.mapping.0.weight": torch.randn(4, 3, generator=generator),
        "G.synthesis.const": torch.randn(1, 2, 4, 4, generator=generator),
        "D.out.bias": torch.randn(1, generator=generator),
        "Gs.w_avg": torch.randn(5, generator=generator, dtype=torch.float64),
        "G_opt.step": torch.tensor(7),
        "G_opt.empty": torch.zeros(0, 3),
        "D_opt.half": torch.randn(3, generator=generator).to(torch.bfloat16),
        "D_opt.flag": torch.tensor([True, False]),
    }


def _assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(params=["local", "s3"])
def run_url(request, tmp_path):
    if request.param == "s3":
        return f"{request.getfixturevalue('s3').url}/run"
    return str(tmp_path / "run")


def _save(checkpoints, nimg, *, seed=None, attempt=0, scalars=SCALARS):
    tensors = _tensors(nimg if seed is None else seed)
    checkpoint = checkpoints.save(tensors, scalars, nimg=nimg, attempt=attempt).result()
    checkpoints.wait()
    return checkpoint


def _kept(checkpoints):
    return [(checkpoint.attempt, checkpoint.nimg) for checkpoint in checkpoints.list()]


def test_a_state_is_loaded_as_it_was_saved(run_url):
    checkpoints = Checkpoints(run_url)
    saved = _save(checkpoints, 64000, seed=1)

    found, tensors, scalars = Checkpoints(run_url).load_latest()

    assert found == saved
    assert (found.nimg, found.attempt) == (64000, 0)
    assert found.url == f"{run_url}/checkpoints/000-000000064000"
    assert found.groups == ("D", "D_opt", "G", "G_opt", "Gs")
    _assert_equal(tensors, _tensors(1))
    assert scalars == SCALARS
    names = ["D", "D_opt", "G", "G_opt", "Gs"]
    files = [*(f"{name}.safetensors" for name in names), "commit.json", "state.json"]
    assert storage.listdir(found.url) == files


def test_some_groups_are_read_without_the_others(run_url):
    checkpoint = _save(Checkpoints(run_url), 64000, seed=1)
    storage.delete(f"{checkpoint.url}/D.safetensors")

    tensors, scalars = Checkpoints.load(checkpoint.url, {"Gs", "G_opt"})

    names = ("Gs.w_avg", "G_opt.step", "G_opt.empty")
    _assert_equal(tensors, {name: _tensors(1)[name] for name in names})
    assert scalars == SCALARS
    with pytest.raises(ValueError, match="has no tensors E, Z; choose from D, D_opt, G, G_opt, Gs"):
        Checkpoints.load(checkpoint, {"Gs", "Z", "E"})


def test_equal_states_are_equal_bytes_whatever_the_order_or_the_layout(tmp_path):
    tensors = _tensors(1)
    turned = {name: tensors[name] for name in reversed(tensors)}
    const = turned["G.synthesis.const"]
    turned["G.synthesis.const"] = const.to(memory_format=torch.channels_last)
    turned["G.mapping.0.weight"] = torch.cat([tensors["G.mapping.0.weight"]] * 2)[:4]  # a view
    scalars = {name: SCALARS[name] for name in reversed(SCALARS)}

    first = Checkpoints(str(tmp_path / "a")).save(tensors, SCALARS, nimg=1, attempt=0).result()
    second = Checkpoints(str(tmp_path / "b")).save(turned, scalars, nimg=1, attempt=0).result()

    assert first.digest == second.digest
    assert first.files == second.files


@pytest.mark.parametrize("change", ["tensor", "scalar", "nimg", "attempt"])
def test_any_difference_of_the_state_is_another_digest(change, tmp_path):
    usual = Checkpoints(str(tmp_path / "a")).save(_tensors(), SCALARS, nimg=1, attempt=0)
    tensors = _tensors()
    if change == "tensor":
        tensors["G.mapping.0.weight"][0, 0] += 1e-6
    scalars = {**SCALARS, "nimg": 1} if change == "scalar" else SCALARS
    other = Checkpoints(str(tmp_path / "b")).save(
        tensors, scalars, nimg=1 + (change == "nimg"), attempt=int(change == "attempt")
    )

    assert usual.result().digest != other.result().digest


def test_what_is_saved_is_the_state_at_the_call_even_if_training_goes_on(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    tensors = _tensors(1)
    future = checkpoints.save(tensors, SCALARS, nimg=1, attempt=0)
    for tensor in tensors.values():
        tensor.zero_()

    loaded, _ = Checkpoints.load(future.result())

    _assert_equal(loaded, _tensors(1))


def test_nothing_is_committed_at_first(run_url):
    checkpoints = Checkpoints(run_url)

    assert checkpoints.latest() is None
    assert checkpoints.load_latest() is None
    assert checkpoints.list() == []
    checkpoints.wait()


def test_the_newest_is_the_one_of_the_last_attempt(run_url):
    checkpoints = Checkpoints(run_url, config=CheckpointConfig(keep_last=10))
    for nimg, attempt in [(9000, 0), (64000, 0), (1000, 1), (100_000_000_000_000, 0)]:
        _save(checkpoints, nimg, attempt=attempt)

    assert _kept(checkpoints) == [(0, 9000), (0, 64000), (0, 10**14), (1, 1000)]
    assert checkpoints.latest().nimg == 1000


# The marker makes it exist.


def test_a_folder_without_a_marker_does_not_exist(run_url):
    checkpoints = Checkpoints(run_url)
    _save(checkpoints, 1000)
    newest = _save(checkpoints, 2000)
    storage.delete(f"{newest.url}/commit.json")

    assert checkpoints.latest().nimg == 1000
    assert checkpoints.load_latest()[0].nimg == 1000
    with pytest.raises(storage.MissingError, match=r"000-000000002000/commit.json: there is no"):
        Checkpoints.load(newest.url)


CHILD = """
import sys, torch
from pathlib import Path
from data_prep import storage
from pipeline import checkpoint
url, until = sys.argv[1], int(sys.argv[2])
write, written = storage.write_atomic, 0

def stopping(url, content, **options):
    global written
    if written == until:
        print("now", flush=True)
        import time; time.sleep(60)
    write(url, content, **options)
    written += 1

storage.write_atomic = stopping
tensors = {f"{group}.x": torch.full((100,), 2.0) for group in ("G", "D", "Gs")}
checkpoint.Checkpoints(url).save(tensors, {"nimg": 2}, nimg=2, attempt=0).result()
"""


@pytest.mark.parametrize("written", [2, 4], ids=["two files", "all but the marker"])
def test_a_writer_killed_at_any_place_leaves_the_checkpoint_before(written, run_url):
    checkpoints = Checkpoints(run_url)
    tensors = {f"{group}.x": torch.ones(100) for group in ("G", "D", "Gs")}
    first = checkpoints.save(tensors, {"nimg": 1}, nimg=1, attempt=0).result()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, run_url, str(written)], stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"now\n"

    child.send_signal(signal.SIGKILL)
    child.communicate()

    found, loaded, scalars = Checkpoints(run_url).load_latest()
    assert found == first
    assert scalars == {"nimg": 1}
    _assert_equal(loaded, tensors)
    # The same save again is not hindered by what was left.
    twos = {name: tensor * 2 for name, tensor in tensors.items()}
    Checkpoints(run_url).save(twos, {"nimg": 2}, nimg=2, attempt=0).result()
    found, loaded, _ = Checkpoints(run_url).load_latest()
    assert found.nimg == 2
    _assert_equal(loaded, twos)
    assert len(storage.listdir(found.url)) == 5


def test_saving_what_is_there_already_does_not_touch_it(tmp_path):
    """A run stopped right after it was resumed: the only good copy is not put at risk."""
    checkpoints = Checkpoints(str(tmp_path))
    first = _save(checkpoints, 1000)
    before = {path: path.stat().st_mtime_ns for path in Path(first.url).iterdir()}

    again = _save(Checkpoints(str(tmp_path)), 1000)

    assert again == first
    assert {path: path.stat().st_mtime_ns for path in Path(first.url).iterdir()} == before


def test_saving_over_a_damaged_or_another_state_replaces_it(run_url):
    checkpoints = Checkpoints(run_url)
    damaged = _save(checkpoints, 1000, seed=1)
    storage.write_atomic(f"{damaged.url}/G.safetensors", b"damaged")
    assert _save(checkpoints, 1000, seed=1) == damaged
    _assert_equal(checkpoints.load_latest()[1], _tensors(1))

    other = _save(checkpoints, 1000, seed=2)

    assert other.digest != damaged.digest
    _assert_equal(checkpoints.load_latest()[1], _tensors(2))


# Damage is told, and the one before it is taken.


def _flip(url, place=-1):
    content = bytearray(storage.read_bytes(url))
    content[place] ^= 1
    storage.write_atomic(url, bytes(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda url: _flip(f"{url}/G.safetensors"), "G.safetensors is damaged: its"),
        (lambda url: storage.write_atomic(f"{url}/D.safetensors", b""), "D.safetensors is damaged"),
        (lambda url: storage.delete(f"{url}/Gs.safetensors"), "Gs.safetensors is missing, but"),
        (lambda url: _flip(f"{url}/state.json"), "state.json is damaged: its"),
        (lambda url: storage.delete(f"{url}/state.json"), "state.json is missing, but commit.json"),
        (lambda url: _flip(f"{url}/commit.json", 30), "commit.json is no commit marker of format"),
        (lambda url: storage.write_atomic(f"{url}/commit.json", b""), "commit.json is no commit"),
        (lambda url: storage.write_atomic(f"{url}/commit.json", b"[]"), "commit.json is no commit"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_loudly(harm, message, run_url, caplog):
    checkpoints = Checkpoints(run_url)
    _save(checkpoints, 1000, seed=1)
    newest = _save(checkpoints, 2000)
    harm(newest.url)

    found, tensors, _ = Checkpoints(run_url).load_latest()

    assert found.nimg == 1000
    _assert_equal(tensors, _tensors(1))
    assert f"checkpoint {newest.url} " in caplog.text
    assert message in caplog.text
    with pytest.raises(DigestError, match=f"{newest.url}/{message}"):
        Checkpoints.load(newest.url)


def test_if_all_are_damaged_the_run_does_not_start_anew(run_url):
    checkpoints = Checkpoints(run_url)
    for nimg in (1000, 2000):
        _flip(f"{_save(checkpoints, nimg).url}/G.safetensors")

    remedy = "is damaged; restore one, or start anew under another run URL"
    with pytest.raises(DigestError, match=f"every checkpoint under {run_url}/checkpoints {remedy}"):
        checkpoints.load_latest()


def test_if_all_markers_are_damaged_the_run_does_not_start_anew(run_url):
    checkpoints = Checkpoints(run_url)
    _flip(f"{_save(checkpoints, 1000).url}/commit.json", 30)

    with pytest.raises(DigestError, match=f"every checkpoint under {run_url}/che"):
        checkpoints.load_latest()


def test_a_store_that_fails_is_not_taken_for_damage(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    newest = _save(checkpoints, 1000)
    (Path(newest.url) / "G.safetensors").unlink()
    (Path(newest.url) / "G.safetensors").mkdir()  # reading a folder is an error of the store

    with pytest.raises(storage.StorageError, match=r"cannot read .*G.safetensors: IsADirectory"):
        checkpoints.load_latest()


# How many are on their way.


def test_no_more_than_so_many_saves_are_on_their_way(s3):
    """The store stands still: with two in flight the third waits until the first is committed."""
    checkpoints = Checkpoints(f"{s3.url}/run", config=CheckpointConfig(in_flight=2))
    s3.server.pause()
    try:
        futures = [checkpoints.save(_tensors(), SCALARS, nimg=nimg, attempt=0) for nimg in (1, 2)]
        with ThreadPoolExecutor(1) as pool:
            third = pool.submit(checkpoints.save, _tensors(), SCALARS, nimg=3, attempt=0)
            time.sleep(0.3)
            assert not any(future.done() for future in (*futures, third))

            s3.server.resume()

            assert third.result().result().nimg == 3
    finally:
        s3.server.resume()
    assert [future.result().nimg for future in futures] == [1, 2]
    checkpoints.wait()


def test_a_save_that_finds_no_room_is_left_out_unless_it_must_be(tmp_path, caplog):
    """Something lies in the way of the first; training must not wait for it."""
    config = CheckpointConfig(in_flight=1, wait_s=0.01)
    checkpoints = Checkpoints(str(tmp_path), config=config)
    (tmp_path / "checkpoints").write_text("in the way")
    first = checkpoints.save(_tensors(1), SCALARS, nimg=1, attempt=0)
    assert checkpoints.save(_tensors(2), SCALARS, nimg=2, attempt=0) is None
    assert "checkpoint 000-000000000002 is left out: 1 are on their way" in caplog.text

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(checkpoints.save, _tensors(3), SCALARS, nimg=3, attempt=0, must=True)
        (tmp_path / "checkpoints").unlink()
        assert last.result().result().nimg == 3
    checkpoints.wait()

    assert "checkpoint 000-000000000001 is written after" in caplog.text
    assert first.result().nimg == 1
    assert _kept(checkpoints) == [(0, 1), (0, 3)]
    _assert_equal(checkpoints.load(first.result())[0], _tensors(1))


def test_a_save_is_given_up_after_its_patience_and_later_ones_work(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), config=CheckpointConfig(patience_s=0))
    (tmp_path / "checkpoints").write_text("in the way")
    failed = checkpoints.save(_tensors(), SCALARS, nimg=1, attempt=0)

    with pytest.raises(storage.StorageError, match=f"cannot .* {tmp_path}/checkpoints/000-0000"):
        checkpoints.wait()
    assert failed.exception() is not None
    (tmp_path / "checkpoints").unlink()
    _save(checkpoints, 2)

    assert checkpoints.latest().nimg == 2


# What is refused at once.


def test_tensors_without_a_group_and_scalars_that_are_no_json_are_refused(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))

    for name in ("weight", ".x", "G.", "a/b.x"):
        with pytest.raises(ValueError, match=r"belongs to no group; name it GROUP.NAME, as in G"):
            checkpoints.save({name: torch.ones(1)}, {}, nimg=1, attempt=0)
    for value in (float("nan"), float("inf"), torch.ones(1)):
        with pytest.raises(ValueError, match=r"scalars of a checkpoint \(loss\) must be JSON"):
            checkpoints.save({"G.x": torch.ones(1)}, {"loss": value}, nimg=1, attempt=0)
    assert checkpoints.list() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_last": 0}, "keep_last is 0; keep at least 1 checkpoint"),
        ({"keep_every_kimg": -1}, r"keep_every_kimg is -1; choose 0 \(none\) or a positive"),
        ({"in_flight": 0}, "in_flight is 0; allow at least 1"),
        ({"wait_s": -1}, "wait_s is -1; choose 0 or more seconds"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CheckpointConfig(**options)


def test_a_marker_is_json_that_anyone_can_check(tmp_path):
    checkpoint = _save(Checkpoints(str(tmp_path)), 64000)
    marker = json.loads((Path(checkpoint.url) / "commit.json").read_text())

    assert read_marker(checkpoint.url + "/") == checkpoint
    assert (marker["format"], marker["attempt"], marker["nimg"]) == (1, 0, 64000)
    for name, entry in marker["files"].items():
        path = Path(checkpoint.url) / name
        assert entry == {"sha256": storage.sha256(str(path)), "bytes": path.stat().st_size}
