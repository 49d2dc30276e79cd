"""Weights as data: what the reader reads, and what it refuses."""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from stylegan.data_pickle import MAX_DEPTH, ArchiveError
from stylegan.metrics.weights_reader import read_object, read_tensors


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02})" + b"\x85" * 40_000 + b"Ns.", "has the key"),
        (b"\x80\x02})" + b"2\x86" * 40 + b"Ns.", "has the key"),
        (b"\x80\x02)" + b"2\x86" * 40 + b"Q.", "unknown persistent object"),
        (b"\x80\x02" + b"(" * 50_001 + b".", "more than 50000 opcodes"),
    ],
    ids=["key too deep", "key doubled", "storage", "opcodes"],
)
def test_a_small_archive_that_grows_or_never_ends_is_refused(monkeypatch, content, message):
    monkeypatch.setattr("stylegan.data_pickle.MAX_OPCODES", 50_000)
    with pytest.raises(ArchiveError, match=message):
        read_object(archive(content))
    with pytest.raises(ArchiveError, match=message):
        read_object(io.BytesIO(_head_of_old_torch() + content))


def test_numbers_in_the_memo_cost_nothing():
    assert read_object(archive(b"\x80\x02K\x01r\x00\x00\x00\x0c.")) == 1


def test_copies_of_one_storage_are_refused_beyond_some():
    raw = bytes(4 * 2**20)
    whole = Stored(count=2**20, size=(2**20,), stride=(1,))
    copies = [Stored(count=2**20, size=(2**20,), stride=(1,)) for _ in range(20)]

    assert len(read_tensors(archive(pickled([whole]), {"0": raw}))) == 1
    with pytest.raises(ArchiveError, match="takes more than"):
        read_tensors(archive(pickled(copies), {"0": raw}))


# Files of torch < 1.6.


def _head_of_old_torch():
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in parts)


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
