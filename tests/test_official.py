"""Official pickles as data: what the reader builds, and everything that it refuses."""

import collections
import gzip
import io
import os
import pickle
import struct
from typing import Any

import numpy as np
import pytest
import torch

from stylegan.data_pickle import ArchiveError
from stylegan.official.unpickler import Array, TensorFlowNetwork, TorchModule, read_pickle
from tests.official_pickles import (
    SOURCE,
    EasyDict,
    Module,
    Network,
    ProgressiveNetwork,
    dumps,
    torch_fields,
)


class Evil:
    """Runs a command where a pickle is trusted."""

    def __init__(self, marker: Any) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def global_(name: str) -> bytes:
    """The opcode that asks for a global."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_arrays_and_plain_values_come_back(protocol: int, package: str):
    arrays = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "foreign": np.arange(3, dtype=">i4"),
        "single": np.array(2.5, dtype=np.float16),
        "none": np.zeros((0, 4), dtype=np.uint8),
        "flags": np.array([True, False]),
    }
    plain = {
        "scalar": np.float32(0.5),
        "numbers": [1, 2.5, True, None, 2**70],
        "text": "lrelu ä",
        "raw": b"\x00\xff",
        "tuple": (1, ("a",)),
        "set": {1, 2},
        "ordered": collections.OrderedDict(a=1),
        "easy": EasyDict(b=2),
    }
    content = dumps({**arrays, **plain}, protocol=protocol)
    content = content.replace(b"numpy._core", package.encode()) if protocol < 4 else content

    tree = read_pickle(content)

    assert list(tree) == [*arrays, *plain]
    for name, expected in arrays.items():
        assert isinstance(tree[name], Array)
        np.testing.assert_array_equal(tree[name].value, expected)
        assert tree[name].value.dtype == expected.dtype.newbyteorder("=")
        assert tree[name].value.flags.writeable, "an array of its own"
    assert {name: tree[name] for name in plain} == plain
    assert type(tree["easy"]) is dict


def test_text_that_python_2_wrote_for_bytes_is_read_as_bytes():
    dtype = global_("numpy.dtype") + b"U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    empty = global_("numpy.core.multiarray._reconstruct") + global_("numpy.ndarray")
    empty += b"K\x00\x85U\x01b\x87R"
    raw = struct.pack("<2f", 1.5, -3e20)  # bytes above 127 among them
    content = b"\x80\x02" + empty + b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + raw + b"tb."

    np.testing.assert_array_equal(read_pickle(content).value, np.float32([1.5, -3e20]))


def test_networks_come_as_records_of_their_fields_and_gzip_is_unpacked():
    state = {"version": 4, "variables": [("lod", np.float32(1.0))]}
    part = Network(state)
    content = dumps((part, ProgressiveNetwork(state | {"components": {"mapping": part}})))

    for packed in (content, gzip.compress(content)):
        one, two = read_pickle(packed)
        assert isinstance(one, TensorFlowNetwork)
        assert one.fields == state
        assert two.fields["components"]["mapping"] is one


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_a_module_come_back(protocol: int):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "weight": torch.nn.Parameter(base[1:, ::2].T),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "nothing": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
    }
    module = Module("Layer", torch_fields(tensors, gain=np.float64(0.25)))

    record = read_pickle(dumps({"G": module}, protocol=protocol))["G"]

    assert isinstance(record, TorchModule)
    assert record.class_name == "Layer"
    assert record.fields["gain"] == 0.25
    for name, expected in tensors.items():
        got = (record.fields["_parameters"] | record.fields["_buffers"])[name]
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected.detach())


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "__builtin__.apply",
        "subprocess.Popen",
        "functools.partial",
        "operator.attrgetter",
        "copyreg._reconstructor",
        "importlib.import_module",
        "torch.load",
        "torch.serialization.load",
        "torch.FloatStorage",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch.nn.modules.linear.Linear",
        "torch_utils.persistence._src_to_module",
        "torch_utils.persistence.import_hook",
        "dnnlib.util.call_func_by_name",
        "dnnlib.tflib.network.exec",
        "tfutil.tf",
        "numpy.load",
        "numpy.core.multiarray.fromfile",
        "numpy.testing._private.utils.runstring",
        "collections.defaultdict",
        "stylegan.official.unpickler.Record",
        "_codecs.lookup",
    ],
)
def test_every_other_global_is_refused_by_name(name: str, tmp_path):
    marker = tmp_path / "ran"
    content = b"\x80\x02" + global_(name) + f"(S'touch {marker}'\ntR.".encode()

    with pytest.raises(ArchiveError, match=f"asks for {name}, which is not data"):
        read_pickle(content)
    assert not marker.exists()


def in_bytes_of_a_tensor(evil: Evil) -> Any:
    class Storage:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (pickle.dumps(evil, protocol=2),)

    return Module("Layer", {"_buffers": {"weight": Storage()}})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "hide",
    [
        lambda evil: evil,
        lambda evil: (Network({"static_kwargs": {"resolution": evil}}),) * 3,
        lambda evil: (Network({"variables": [("4x4/Conv/weight", evil)]}),) * 3,
        lambda evil: (Network({"components": {"mapping": Network({"version": evil})}}),) * 3,
        lambda evil: {"G_ema": Module("Generator", {"_parameters": {"weight": evil}})},
        lambda evil: {"G_ema": Module("Generator", torch_fields({}, _init_kwargs=[evil]))},
        lambda evil: {"G_ema": in_bytes_of_a_tensor(evil)},
        lambda evil: {"augment_pipe": EasyDict(p=[({"deep": evil},)])},
        lambda evil: [np.array([evil], dtype=object)],
    ],
    ids=[
        "alone",
        "option",
        "variable",
        "part",
        "state dict",
        "arguments",
        "nested pickle",
        "deep",
        "object array",
    ],
)
def test_a_malicious_pickle_runs_nothing_wherever_it_hides(hide, packed: bool, tmp_path):
    marker = tmp_path / "ran"
    content = dumps(hide(Evil(marker)))
    content = gzip.compress(content) if packed else content

    with pytest.raises(ArchiveError, match=r"(posix|nt|os)\.system|element type is 'O8'"):
        read_pickle(content)

    assert not marker.exists()


def test_the_trap_is_a_real_one(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(dumps([Evil(marker)]))
    assert marker.exists()


def test_source_code_that_networks_carry_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    source = SOURCE.format(marker=str(marker))
    network = Network({"build_module_src": source, "build_func_name": "G_style"})

    one, two = read_pickle(dumps([network, Module("Generator", {"a": 1}, source)]))

    assert one.fields["build_module_src"] == source
    assert two.fields == {"a": 1}
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "dnnlib.tflib.network.Network",
        "dnnlib.util.EasyDict",
        "torch_utils.persistence._reconstruct_persistent_obj",
        "torch.storage._load_from_bytes",
        "numpy.core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
    ],
)
def test_a_pickle_cannot_alter_what_later_files_are_read_with(name: str):
    """BUILD with a pair sets attributes of whatever is on the stack."""
    innocent = dumps([Network({"a": np.ones(2)}), EasyDict(b=1), Module("M", {"c": np.zeros(1)})])

    with pytest.raises(ArchiveError):
        read_pickle(b"\x80\x02" + global_(name) + b"N}S'__call__'\nI1\ns\x86b0I1\n)R.")

    network, easy, module = read_pickle(innocent)
    np.testing.assert_array_equal(network.fields["a"].value, np.ones(2))
    assert (easy, list(module.fields)) == ({"b": 1}, ["c"])


class AsArray:
    """Pickles as an array does, with a state of one's choice."""

    def __init__(self, *state: Any) -> None:
        self.state = state[0] if len(state) == 1 else state

    def __reduce__(self) -> Any:
        return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


F4 = np.dtype("<f4")


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (AsArray(1, (2, 3), F4, False, bytes(20)), "has 20 bytes, but its shape .* needs 24"),
        (AsArray(1, (2**40,), F4, False, b""), "needs 4398046511104"),
        (AsArray(1, (-1, -1), F4, False, bytes(4)), "impossible array"),
        (AsArray(1, [1], F4, False, bytes(4)), "impossible array"),
        (AsArray(1, (1,), "f4", False, bytes(4)), "impossible array"),
        (AsArray(1, (2**45,), np.dtype("u1"), False, 2**45), "an array's bytes are int"),
        (AsArray(1, (2,), np.dtype("u1"), False, [0, 0]), "an array's bytes are list"),
        (AsArray(1, (1,), np.dtype("O"), False, [None]), "element type is 'O8'"),
        (AsArray({"shape": (1,)}), "holds dict instead of its five fields"),
        (np.array(["text"]), "element type is 'U4'"),
        (np.zeros(1, dtype=[("a", "f4")]), "element type is 'V4'"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "element type is 'M8'"),
        (np.zeros(1, dtype=complex), "element type is 'c16'"),
    ],
)
def test_arrays_of_other_things_or_another_size_are_refused(thing: Any, message: str):
    with pytest.raises(ArchiveError, match=message):
        read_pickle(dumps([thing]))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (global_("numpy.dtype"), b"\x85R.", "element type is"),
        (global_("numpy.dtype") + b"U\x02f4K\x00K\x01\x87R(K\x03", b"tb.", "element type is"),
        (global_("_codecs.encode") + b"X\x01\x00\x00\x00a", b"\x86R.", "encoded as"),
    ],
)
def test_a_message_about_what_repeats_itself_is_short(before: bytes, after: bytes, message: str):
    """Each of 40 levels names the one below twice: 2^40 parts, if written out."""
    doubled = b")" + b"2\x86" * 40
    with pytest.raises(ArchiveError, match=message) as refused:
        read_pickle(b"\x80\x02" + before + doubled + after)
    assert len(str(refused.value)) < 500


def storage_bytes(**changes: Any) -> bytes:
    """A storage of three numbers as torch.save wrote it before version 1.6."""
    parts = {"count": 3, "raw": np.float32([1, 2, 3]).tobytes(), "keys": ["7"], **changes}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, io.BytesIO):
                return parts.get("pid", ("storage", torch.FloatStorage, "7", "cpu", 3, None))
            return None

    stream = io.BytesIO()
    for part in (
        parts.get("magic", 0x1950A86A20F9469CFC6C),
        1001,
        {"little_endian": parts.get("little_endian", True)},
        parts.get("storage", stream),
        parts["keys"],
    ):
        Pickler(stream, protocol=2).dump(part)
    stream.write(struct.pack("<q", parts["count"]) + parts["raw"])
    return stream.getvalue()


class Stored:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.content,)


def test_the_bytes_of_a_storage_are_read():
    assert read_pickle(dumps(Stored(storage_bytes()))).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": 5}, "not those that torch.save writes"),
        ({"little_endian": False}, "not those that torch.save writes"),
        ({"count": 4}, "a storage has 12 bytes, but 3 x torch.float32 are announced"),
        ({"raw": b"1234"}, "a storage has 4 bytes, but 3"),
        ({"keys": ["7", "8"]}, "instead of one storage"),
        ({"storage": "text"}, "instead of one storage"),
        ({"pid": ("storage", torch.FloatStorage, "7", "cpu", 3, ("7", 0, 3))}, "unknown persist"),
        ({"pid": ("module", Evil, "file.py", "source", 0, None)}, "Evil, which is not data"),
        ({"pid": "7"}, "damaged pickle"),
    ],
)
def test_bytes_that_are_not_one_storage_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ArchiveError, match=message):
        read_pickle(dumps(Stored(storage_bytes(**changes))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged pickle"),
        (b"\x89PNG", "damaged pickle"),
        (pickle.dumps(list(range(100)))[:-20], "damaged pickle"),
        (b"\x80\x02\x88Q.", "refers to True outside of it"),
        (b"\x80\x02(t\x85R.", "damaged pickle"),
        (b"Pname\n.", "the opcode PERSID; only those that build data"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1; only those that build data"),
        (b"\x80\x05\x97.", "the opcode NEXT_BUFFER; only those that build data"),
        (gzip.compress(b"\x80\x02N.")[:-5], "damaged gzip file"),
        (b"\x1f\x8b no gzip", "damaged gzip file"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str):
    with pytest.raises(ArchiveError, match=message):
        read_pickle(content)


def nested(depth: int) -> bytes:
    """A tuple in a tuple ..."""
    return b")" + b"\x85" * depth


def array_once_more(count: int) -> bytes:
    """A megabyte of state in the memo, and BUILD of as many arrays from it."""
    raw = bytes(2**20)
    dtype = (
        global_("numpy.dtype") + b"U\x02u1\x85R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    )
    state = b"(K\x01J" + struct.pack("<i", len(raw)) + b"\x85" + dtype + b"K\x00tb\x89"
    state += b"B" + struct.pack("<I", len(raw)) + raw + b"tq\x010"
    array = global_("numpy.core.multiarray._reconstruct") + b")Rh\x01b"
    return b"\x80\x03" + state + b"](" + array * count + b"e."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Hashing hundreds of thousands of tuples in each other overflows the stack of C.
        (b"\x80\x02})" + b"\x85" * 40_000 + b"Ns.", "has the key .* keys of a dict and members"),
        # Each of 40 levels has the one below twice: 2^40 hashes.
        (b"\x80\x02})" + b"2\x86" * 40 + b"Ns.", "has the key"),
        (b"\x80\x02(" + nested(100) + b"Nd.", "has the key"),
        (b"\x80\x04\x8f(" + nested(100) + b"\x90.", "has the key"),
        (b"\x80\x04(" + nested(100) + b"\x91.", "has the key"),
        (b"\x80\x02" + global_("builtins.set") + b"](" + nested(100) + b"e\x85R.", "has the key"),
        (
            b"\x80\x02" + global_("collections.OrderedDict") + b"](" + nested(9) + b"N\x86e\x85R.",
            "has the key",
        ),
        (b"\x80\x02}\x8a\xff" + b"\x01" * 255 + b"Ns.", "numbers of at most 64 bits"),
        (b"\x80\x02" + nested(40_000) + b".", "deeper than 64 levels"),
        (b"\x80\x02]2a.", "or contains itself"),
        (b"\x80\x02" + b"(" * 50_001 + b".", "more than 50000 opcodes"),
        (array_once_more(40), "takes more than 2.* bytes, 4 times its size"),
        (
            b"\x80\x02]("
            + global_("_codecs.encode")
            + b"q\x00X\x00\x00\x10\x00"
            + b"a" * 2**20
            + b"U\x06latin1\x86q\x01R"
            + b"h\x00h\x01R" * 40
            + b"e.",
            "takes more than",
        ),
    ],
    ids=[
        "key too deep",
        "key doubled",
        "dict",
        "add items",
        "frozenset",
        "set",
        "ordered dict",
        "number",
        "value too deep",
        "itself",
        "opcodes",
        "arrays",
        "encoded",
    ],
)
def test_a_small_file_that_grows_or_never_ends_is_refused(
    monkeypatch, content: bytes, message: str
):
    monkeypatch.setattr("stylegan.data_pickle.MAX_OPCODES", 50_000)
    with pytest.raises(ArchiveError, match=message):
        read_pickle(content)


def test_numbers_in_the_memo_cost_nothing():
    assert read_pickle(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1


def test_files_beyond_the_largest_are_refused(monkeypatch):
    monkeypatch.setattr("stylegan.official.unpickler.MAX_BYTES", 1000)
    for content in (bytes(1001), gzip.compress(bytes(1001))):
        with pytest.raises(ArchiveError, match="larger than 1000 bytes"):
            read_pickle(content)
