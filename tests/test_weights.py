"""Weights of feature networks: how files are found, checked, kept and fetched."""

import dataclasses
import hashlib
import io
import os
import subprocess
from pathlib import Path

import pytest
import torch

from data_prep import storage
from pipeline import weights
from pipeline.known_weights import FeatureNetwork, File, Source
from stylegan.metrics.weights_reader import read_tensors


def saved(tree):
    """A stream of torch.save."""
    stream = io.BytesIO()
    torch.save(tree, stream)
    stream.seek(0)
    return stream


@pytest.fixture
def network(tmp_path):
    """A small network whose file lies in tmp_path/files."""
    content = saved({"net.a": torch.arange(3.0)}).getvalue()
    path = tmp_path / "files" / "package" / "net.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    file = File(path="package/net.pt", sha256=hashlib.sha256(content).hexdigest())
    return FeatureNetwork(
        name="net-1",
        serves=("fid",),
        sources=(Source(files=(file,), convert=convert, package="net==1"),),
    )


def convert(contents):
    (content,) = contents
    return {k.removeprefix("net."): v for k, v in read_tensors(io.BytesIO(content)).items()}


def file_of(network):
    (file,) = network.sources[0].files
    return file


@pytest.fixture
def places(tmp_path):
    return {
        "folders": [str(tmp_path / "nowhere"), str(tmp_path / "files")],
        "cache": tmp_path / "c",
    }


EXPECTED = {"a": torch.arange(3.0)}


@pytest.fixture
def remote(network, places):
    """URL of the file in a store that is not this machine's disk."""
    url = "memory://bucket/net.pt"
    content = Path(places["folders"][1], file_of(network).path).read_bytes()
    storage.write_atomic(url, content)
    yield url
    storage.delete(url)


def test_weights_are_found_in_the_first_folder_that_has_them_and_converted_once(network, places):
    torch.testing.assert_close(weights.load(network, **places), EXPECTED)

    (kept,) = (places["cache"] / "converted").iterdir()
    assert kept.name.startswith(f"net-1-{file_of(network).sha256}.")
    Path(places["folders"][1], file_of(network).path).unlink()
    torch.testing.assert_close(weights.load(network, **places), EXPECTED)
    with pytest.raises(weights.MissingWeightsError):
        weights.load(network, **places, sha256="0" * 64)


def test_a_remote_file_is_fetched_once(network, places, remote):
    torch.testing.assert_close(weights.load(network, url=remote, cache=places["cache"]), EXPECTED)

    storage.delete(remote)
    torch.testing.assert_close(weights.load(network, url=remote, cache=places["cache"]), EXPECTED)


def test_one_flipped_bit_in_the_copy_is_noticed_and_it_is_made_again(
    network, places, remote, caplog
):
    weights.load(network, url=remote, cache=places["cache"])
    (kept,) = (places["cache"] / "converted").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    torch.testing.assert_close(weights.load(network, url=remote, cache=places["cache"]), EXPECTED)
    assert "is damaged; it is made again" in caplog.text
    assert kept.read_bytes() == whole


def test_a_file_whose_digest_nobody_knows_counts_as_what_it_is(network, places):
    """Of two sources the second is taken where the first is not there; its digest says which."""
    unknown = Source(files=(File(path="other.pt"),), convert=convert)
    both = dataclasses.replace(network, sources=(unknown, *network.sources))
    content = saved({"net.a": torch.arange(3.0) + 1}).getvalue()
    digest = hashlib.sha256(content).hexdigest()

    assert weights.find(both, folders=places["folders"]).sha256 == file_of(network).sha256
    Path(places["folders"][1], "other.pt").write_bytes(content)
    assert weights.find(both, folders=places["folders"]).sha256 == digest
    torch.testing.assert_close(weights.load(both, **places), {"a": torch.arange(3.0) + 1})
    pinned = weights.load(both, **places, sha256=file_of(network).sha256)
    torch.testing.assert_close(pinned, EXPECTED)


def test_weights_are_loaded_where_nothing_can_be_kept(network, places, remote, tmp_path, caplog):
    (tmp_path / "c").write_text("a file where a folder should be")

    torch.testing.assert_close(weights.load(network, url=remote, cache=places["cache"]), EXPECTED)
    assert "no copy of the weights is kept" in caplog.text


def test_a_wrong_file_is_refused_with_both_digests(network, places):
    path = Path(places["folders"][1], file_of(network).path)
    path.write_bytes(path.read_bytes() + b"!")
    found = hashlib.sha256(path.read_bytes()).hexdigest()

    with pytest.raises(
        ValueError, match=f"{found}, but net-1 has {file_of(network).sha256}"
    ) as caught:
        weights.load(network, **places)
    assert isinstance(caught.value, weights.WeightsDigestError)
    assert not places["cache"].exists()


def test_a_missing_file_says_in_one_line_how_to_get_it(network, places):
    with pytest.raises(FileNotFoundError, match="get them with `make weights`") as caught:
        weights.load(network, folders=places["folders"][:1], cache=places["cache"])
    assert isinstance(caught.value, weights.MissingWeightsError)
    assert "\n" not in str(caught.value)


def test_a_url_without_a_file_says_the_same(network, places):
    with pytest.raises(weights.MissingWeightsError, match="not at memory://bucket/none") as caught:
        weights.load(network, url="memory://bucket/none", cache=places["cache"])
    assert "\n" not in str(caught.value)


def test_an_unknown_network_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown feature network 'vgg'; choose from .*inception"):
        weights.load("vgg")


def test_the_folder_of_the_environment_is_searched_first(monkeypatch, tmp_path):
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    assert weights.search_folders() == [str(tmp_path), str(weights.CACHE)]

    monkeypatch.delenv(weights.VARIABLE)
    assert weights.search_folders() == [str(weights.CACHE)]


def test_the_command_line_lists_and_verifies(network, places, monkeypatch, capsys):
    monkeypatch.setattr(weights, "KNOWN", {network.name: network})
    monkeypatch.setenv(weights.VARIABLE, places["folders"][1])

    assert weights.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "net-1: for fid; from net==1\n" in printed
    assert "fid: ready" in printed
    assert weights.main(["verify"]) == 0
    assert "net-1: right" in capsys.readouterr().out

    path = Path(places["folders"][1], file_of(network).path)
    path.write_bytes(b"other")
    assert weights.main(["verify", "net-1"]) == 1
    assert file_of(network).sha256 in capsys.readouterr().out
    path.unlink()
    assert weights.main(["verify"]) == 1
    monkeypatch.setattr(weights, "CACHE", places["cache"])
    assert weights.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "make weights" in printed
    assert "fid: lacks net-1" in printed
    with pytest.raises(SystemExit):
        weights.main(["verify", "vgg"])


def test_python_m_pipeline_weights_runs(tmp_path):
    """Needs no weights, no Ray and no MLflow."""
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pipeline.weights", "list"],
        cwd=Path(weights.__file__).parents[1],
        env={**os.environ, weights.VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "inception-2015-12-05: for fid, kid" in done.stdout


def test_fetch_takes_the_file_from_its_url_and_refuses_another(network, places, remote, tmp_path):
    source = dataclasses.replace(network.sources[0], package="", urls=(remote,))
    fetched = dataclasses.replace(network, sources=(source,))

    weights.fetch(fetched, folder=tmp_path / "new")
    assert weights.find(fetched, folders=[str(tmp_path / "new")])
    storage.write_atomic(remote, b"something else")
    with pytest.raises(weights.WeightsDigestError):
        weights.fetch(fetched, folder=tmp_path / "new")
    storage.delete(remote)
    with pytest.raises(weights.MissingWeightsError, match="cannot be fetched from memory"):
        weights.fetch(fetched, folder=tmp_path / "new")
