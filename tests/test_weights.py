"""Weights as data: what the reader reads, what it refuses, how files are found and checked."""

import collections
import dataclasses
import hashlib
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import storage
from pipeline import weights
from pipeline.known_weights import FeatureNetwork, File, Source
from stylegan.metrics.weights_reader import MAX_DEPTH, ArchiveError, read_object, read_tensors


def saved(tree):
    """A stream of torch.save."""
    stream = io.BytesIO()
    torch.save(tree, stream)
    stream.seek(0)
    return stream


def archive(pickled, records=None, *, compression=zipfile.ZIP_STORED):
    """An archive with this pickle, written by hand."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in (records or {}).items():
            file.writestr(f"a/data/{name}", content)
    stream.seek(0)
    return stream


class Stored:
    """Pickles as a tensor does in an archive: a call of _rebuild_tensor_v2 on a storage."""

    def __init__(self, key="0", *, count=6, offset=0, size=(2, 3), stride=(3, 1)):
        self.storage = key, count
        self.args = offset, size, stride

    def __reduce__(self):
        storage = Storage(self.storage)
        return torch._utils._rebuild_tensor_v2, (storage, *self.args, False, {})


class Storage(tuple):
    """What `pickled` turns into a persistent id."""


def pickled(tree):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                (key, count) = value[0] if len(value) == 1 else value
                return ("storage", torch.FloatStorage, key, "cpu", count)
            return None

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(tree)
    return stream.getvalue()


SIX = np.arange(6, dtype="<f4").tobytes()


def test_tensors_of_torch_save_come_back_by_their_path():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tree = {
        "a": base,
        "view": base[1:, ::2].T,
        "deep": collections.OrderedDict(b=torch.nn.Parameter(torch.ones(2, dtype=torch.float64))),
        "list": [torch.tensor(3), torch.tensor([True, False])],
        "empty": torch.zeros(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "note": "text",
        "number": 4,
    }

    tensors = read_tensors(saved(tree))

    assert list(tensors) == ["a", "view", "deep.b", "list.0", "list.1", "empty", "half"]
    torch.testing.assert_close(tensors["view"], tree["view"])
    assert tensors["view"].is_contiguous()
    torch.testing.assert_close(tensors["deep.b"], torch.ones(2).double())
    torch.testing.assert_close(tensors["list.1"], tree["list"][1])
    assert tensors["empty"].shape == (0, 3)
    assert tensors["half"].dtype == torch.bfloat16
    tensors["a"].zero_()
    assert tensors["view"].any(), "two tensors of one storage are copies of their own"


def test_torchscript_objects_become_records_of_fields():
    """GLOBAL __torch__.net.Net, NEWOBJ, BUILD with its fields, as torch.jit.save writes them."""
    inner = pickled({"weight": Stored()})[2:-1]
    content = b"\x80\x02c__torch__.net\nNet\n)\x81" + inner + b"b."

    tensors = read_tensors(archive(content, {"0": SIX}))

    torch.testing.assert_close(tensors, {"weight": torch.arange(6.0).reshape(2, 3)})


def test_typed_lists_of_torchscript_are_lists():
    content = b"\x80\x02ctorch.jit._pickle\nbuild_intlist\n](K\x00K\x03e\x85R."

    assert read_object(archive(content)) == [0, 3]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.getattr",
        "subprocess.Popen",
        "functools.partial",
        "operator.attrgetter",
        "torch.load",
        "torch.jit.load",
        "torch.hub.load",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch.serialization.load",
        "numpy.load",
        "collections.defaultdict",
        "stylegan.metrics.weights_reader.Record",
        "__torch__evil.run",
    ],
)
def test_every_other_global_is_refused_by_name(name, tmp_path):
    module, _, attribute = name.rpartition(".")
    marker = tmp_path / "ran"
    call = f"c{module}\n{attribute}\n(S'touch {marker}'\ntR.".encode()

    with pytest.raises(ArchiveError, match=f"asks for {name}, which is not data"):
        read_tensors(archive(b"\x80\x02" + call))
    assert not marker.exists()


def test_a_malicious_pickle_inside_a_file_of_torch_save_runs_nothing(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    stream = saved({"weight": torch.ones(2), "extra": Evil()})

    with pytest.raises(ArchiveError, match=r"(posix|nt|os)\.system"):
        read_tensors(stream)
    assert not marker.exists()
    # The file is a real trap: what trusts it runs it.
    stream.seek(0)
    torch.load(stream, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch.jit._pickle\nbuild_intlist\n",
        b"c__torch__.net\nNet\n",
        b"ctorch\nFloatStorage\n",
    ],
)
def test_a_pickle_cannot_alter_what_later_archives_are_read_with(target):
    """BUILD with a pair sets attributes of whatever is on the stack."""
    before = saved({"a": torch.ones(2)})
    with pytest.raises(ArchiveError):
        read_tensors(archive(b"\x80\x02" + target + b"N}S'__call__'\nI1\ns\x86b0I1\n)R."))

    torch.testing.assert_close(read_tensors(before), {"a": torch.ones(2)})


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (Stored(size=(3, 3)), "does not fit into its storage of 6 elements"),
        (Stored(offset=1), "does not fit"),
        (Stored(stride=(4, 1)), "does not fit"),
        (Stored(size=(1000, 1000), stride=(0, 0)), "does not fit"),
        (Stored(offset=-1), "impossible tensor"),
        (Stored(stride=(3, -1)), "impossible tensor"),
        (Stored(size=(2, 3, 1)), "impossible tensor"),
        (Stored(count=7), "has 24 bytes, but 7 x torch.float32 are announced"),
        (Stored("1"), "damaged archive"),
        (Stored("../data.pkl"), "damaged archive"),
    ],
)
def test_tensors_that_reach_outside_their_storage_are_refused(stored, message):
    with pytest.raises(ArchiveError, match=message):
        read_tensors(archive(pickled([stored]), {"0": SIX}))


def test_a_storage_of_two_sizes_or_a_compressed_one_is_refused():
    with pytest.raises(ArchiveError, match="two different types or sizes"):
        read_tensors(
            archive(pickled([Stored(), Stored(count=3, size=(3,), stride=(1,))]), {"0": SIX})
        )
    with pytest.raises(ArchiveError, match="compressed"):
        read_tensors(archive(pickled([Stored()]), {"0": SIX}, compression=zipfile.ZIP_DEFLATED))


def test_members_that_unpack_to_far_more_than_they_are_meant_to_are_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\x02].")
        file.writestr("a/byteorder", b"little" + bytes(2**20))
    stream.seek(0)

    with pytest.raises(ArchiveError, match="byte order"):
        read_tensors(stream)


def test_trees_that_contain_themselves_or_explode_are_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(ArchiveError, match=f"deeper than {MAX_DEPTH}"):
        read_tensors(archive(pickle.dumps(endless, 2)))

    doubling = []
    for _ in range(MAX_DEPTH - 4):
        doubling = [doubling, doubling]
    with pytest.raises(ArchiveError, match="more than 1000000 objects"):
        read_tensors(archive(pickle.dumps(doubling, 2)))


def test_files_that_are_no_archives_are_refused(tmp_path):
    whole = saved({"a": torch.ones(1000)}).getvalue()
    for content in (b"", b"not a zip", whole[: len(whole) // 2], pickle.dumps({})):
        with pytest.raises(ArchiveError, match="not a zip archive of PyTorch"):
            read_tensors(io.BytesIO(content))

    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(ArchiveError, match="0 members are called data"):
        read_tensors(empty)


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


# Files of torch < 1.6.


def saved_old(tree):
    stream = io.BytesIO()
    torch.save(tree, stream, _use_new_zipfile_serialization=False)
    return stream


def test_files_of_old_torch_are_read_as_data():
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "a": base,
        "view": base[1:, ::2].T,
        "p": torch.nn.Parameter(torch.ones(2).half()),
        "empty": torch.zeros(0, 3),
        "epoch": 3,
    }
    stream = saved_old(collections.OrderedDict(tree))
    stream.seek(0)

    tensors = read_tensors(stream)

    assert list(tensors) == ["a", "view", "p", "empty"]
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, tree[name].detach(), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["cut", "longer", "evil"])
def test_damaged_or_malicious_files_of_old_torch_are_refused(tmp_path, damage):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    tree = {"a": torch.arange(6.0), "b": Evil() if damage == "evil" else 0}
    content = saved_old(tree).getvalue()
    if damage == "cut":
        content = content[:-4]
    elif damage == "longer":  # another count than announced
        place = content.rindex((6).to_bytes(8, "little"))
        content = content[:place] + (7).to_bytes(8, "little") + content[place + 8 :]

    message = {"cut": "ends within", "longer": "has 7 elements, but 6", "evil": "system, which"}
    with pytest.raises(ArchiveError, match=message[damage]):
        read_tensors(io.BytesIO(content))
    assert not marker.exists()
