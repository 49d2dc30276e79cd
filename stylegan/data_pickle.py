"""Pickles as data: containers, plain values, and what the reader knows by name.

    known = {("torch", "FloatStorage"): torch.float32}
    tree = DataUnpickler(io.BytesIO(content), Budget(len(content)), known).load()

`pickletools` takes the opcodes apart; here is what they do. A pickle can alter nothing but what it
made, keys are such as hash at once, and `Budget` bounds what a file and its nested pickles fill.
"""

import collections
import io
import pickletools
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MAX_OPCODES, MAX_DEPTH = 1_000_000, 64
"""What no network comes near; a file beyond is built to fill the memory or the stack."""

_COPIES, _SLACK_BYTES = 4, 16 * 2**20
"""Of a storage's bytes there are three: decoded, as a storage, as a tensor."""
_MAX_ARGUMENTS, _MAX_KEY_BITS = 16, 64


class ArchiveError(ValueError):
    """The archive is damaged, or holds something that is not data."""


class _Brief(reprlib.Repr):
    """Of these types, too, only the beginning."""

    repr_OrderedDict = reprlib.Repr.repr_dict  # noqa: N815 (found by the type's name)
    repr_bytes = repr_bytearray = reprlib.Repr.repr_str


_BRIEF = _Brief()
_BRIEF.maxlevel = 2


def brief(thing: Any) -> str:
    """What a file has in a place, for a message; written out it may be longer than the file."""
    return _BRIEF.repr(thing)


def refusal(module: str, name: str) -> ArchiveError:
    """What is raised when a pickle asks for more than data."""
    return ArchiveError(
        f"the pickle asks for {module}.{name}, which is not data; the file is not what it "
        f"claims to be or needs converting to safetensors by someone who trusts it"
    )


class Budget:
    """What one file may fill, its nested pickles included."""

    def __init__(self, content_bytes: int) -> None:
        self._most_bytes = self._left_bytes = _COPIES * content_bytes + _SLACK_BYTES
        self._left_opcodes = MAX_OPCODES

    def step(self) -> None:
        """One opcode more."""
        self._left_opcodes -= 1
        if self._left_opcodes < 0:
            raise ArchiveError(
                f"the file has more than {MAX_OPCODES} opcodes; networks have a few thousand"
            )

    def spend(self, made_bytes: int) -> None:
        """So many bytes more that are not the file's own."""
        self._left_bytes -= made_bytes
        if self._left_bytes < 0:
            raise ArchiveError(
                f"what the file describes takes more than {self._most_bytes} bytes, "
                f"{_COPIES} times its size and {_SLACK_BYTES}; no network repeats itself so much"
            )


class Inert:
    """An object in the making: BUILD brings the content after it."""

    __slots__ = ()

    def fill(self, state: Any) -> None:
        """Take what BUILD has."""
        raise NotImplementedError


class Record(Inert):
    """An object of a class of the file's: its fields, and nothing that could be called."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def fill(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ArchiveError(f"an object holds {type(state).__name__} instead of its fields")
        self.fields = state


class DataUnpickler:
    """One pickle of a stream. Subclasses know what else there is in theirs."""

    def __init__(
        self, stream: io.BytesIO, budget: Budget, known: Mapping[tuple[str, str], Any]
    ) -> None:
        """Each of `known` is a value, or what REDUCE and NEWOBJ call; any other is refused."""
        self._stream, self._known, self.budget = stream, known, budget
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # a stack for each open MARK
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """What the pickle describes; the stream is behind it then.

        Raises:
            ArchiveError: It asks for more than data, or is built to fill the memory.
        """
        for opcode, argument, _ in pickletools.genops(self._stream):
            self.budget.step()
            if opcode.name in _VALUES:
                self._push(argument)
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            else:
                raise ArchiveError(
                    f"the pickle has the opcode {opcode.name}; only those that build data are read"
                )
        tree = self._stack.pop()
        _refuse_depth(tree)
        return tree

    def find_class(self, module: str, name: str) -> Any:
        """What a global stands for."""
        if (module, name) not in self._known:
            raise refusal(module, name)
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """What lies outside of the pickle under this name."""
        raise ArchiveError(f"the pickle refers to {brief(pid)} outside of it; there is nothing")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _last(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) != count:
            raise ArchiveError("damaged pickle: its stack is empty")
        del self._stack[-count:]
        return items

    def _discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _memoize(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _taking(self, *types: type) -> Any:
        """What members are added to."""
        target = self._stack[-1]
        if type(target) not in types:
            raise ArchiveError(
                f"the pickle adds to {type(target).__name__}; only lists, dicts and sets grow"
            )
        return target

    def _extend(self, items: list[Any]) -> None:
        self._taking(list).extend(items)

    def _add(self, items: list[Any]) -> None:
        self._taking(set).update(_keys(items))

    def _set(self, items: list[Any]) -> None:
        target = self._taking(dict, collections.OrderedDict)
        target.update(zip(_keys(items[::2]), items[1::2], strict=True))

    def _new_dict(self) -> None:
        items = self._since_mark()
        self._push({})
        self._set(items)

    def _named(self) -> Any:
        module, name = self._last(2)
        if type(module) is not str or type(name) is not str:
            raise ArchiveError(f"the pickle asks for {brief((module, name))}, which is no name")
        return self.find_class(module, name)

    def _call(self) -> None:
        function, arguments = self._last(2)
        if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
            raise ArchiveError(
                f"the pickle calls something with {brief(arguments)}; "
                f"arguments are a tuple of at most {_MAX_ARGUMENTS}"
            )
        made = function(*arguments)
        if not any(made is argument for argument in arguments):
            self.budget.spend(_size_bytes(made))
        self._push(made)

    def _build(self) -> None:
        target, state = self._last(2)
        if isinstance(target, Inert):
            target.fill(state)
            self.budget.spend(_size_bytes(target))
        elif type(target) is not collections.OrderedDict:  # where torch has versions of layers
            raise ArchiveError(
                f"the pickle sets attributes of {type(target).__name__}; only records have some"
            )
        self._push(target)


def ordered(pairs: Any = ()) -> collections.OrderedDict[Any, Any]:
    """`OrderedDict`, for those who call it."""
    keys, values = [key for key, _ in _listed(pairs)], [value for _, value in pairs]
    return collections.OrderedDict(zip(_keys(keys), values, strict=True))


def members(items: Any = ()) -> set[Any]:
    """`set`, for those who call it."""
    return set(_keys(_listed(items)))


def _listed(items: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise ArchiveError(f"a container is made of {type(items).__name__}; lists alone are taken")
    return items


def _keys(keys: Sequence[Any]) -> Sequence[Any]:
    """The same, if they hash and compare at once; Python descends into tuples, each time anew."""
    for key in keys:
        if type(key) in (str, bytes, float, bool, type(None)):
            continue
        if type(key) is not int or key.bit_length() > _MAX_KEY_BITS:
            raise ArchiveError(
                f"the pickle has the key {brief(key)}; keys of a dict and members of a set are "
                f"text, bytes, None or numbers of at most {_MAX_KEY_BITS} bits"
            )
    return keys


def _size_bytes(made: Any) -> int:
    size = getattr(made, "nbytes", None)
    return size if isinstance(size, int) else sys.getsizeof(made)


def _refuse_depth(tree: Any) -> None:
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        below = {id(child): child for node in level for child in children(node)}
        level = list(below.values())
    if level:
        raise ArchiveError(
            f"the pickle is nested deeper than {MAX_DEPTH} levels, or contains itself; "
            "networks have a few"
        )


def children(node: Any) -> Iterable[Any]:
    """What a part of a pickle's tree is made of; nothing, if it is a leaf."""
    if isinstance(node, Record):
        return node.fields.values()
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
"""Opcodes that stand for their argument."""

_ACTIONS: Mapping[str, Callable[[DataUnpickler, Any], None]] = {
    "PROTO": lambda u, _: None,
    "FRAME": lambda u, _: None,
    "STOP": lambda u, _: None,
    "NONE": lambda u, _: u._push(None),
    "NEWTRUE": lambda u, _: u._push(True),
    "NEWFALSE": lambda u, _: u._push(False),
    "EMPTY_TUPLE": lambda u, _: u._push(()),
    "EMPTY_LIST": lambda u, _: u._push([]),
    "EMPTY_DICT": lambda u, _: u._push({}),
    "EMPTY_SET": lambda u, _: u._push(set()),
    "MARK": lambda u, _: u._mark(),
    "POP": lambda u, _: u._discard(),
    "DUP": lambda u, _: u._push(u._stack[-1]),
    "TUPLE": lambda u, _: u._push(tuple(u._since_mark())),
    "TUPLE1": lambda u, _: u._push(tuple(u._last(1))),
    "TUPLE2": lambda u, _: u._push(tuple(u._last(2))),
    "TUPLE3": lambda u, _: u._push(tuple(u._last(3))),
    "LIST": lambda u, _: u._push(u._since_mark()),
    "DICT": lambda u, _: u._new_dict(),
    "FROZENSET": lambda u, _: u._push(frozenset(_keys(u._since_mark()))),
    "APPEND": lambda u, _: u._extend(u._last(1)),
    "APPENDS": lambda u, _: u._extend(u._since_mark()),
    "ADDITEMS": lambda u, _: u._add(u._since_mark()),
    "SETITEM": lambda u, _: u._set(u._last(2)),
    "SETITEMS": lambda u, _: u._set(u._since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda u, number: u._memoize(number)),
    "MEMOIZE": lambda u, _: u._memoize(len(u._memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda u, number: u._push(u._memo[number])),
    "GLOBAL": lambda u, names: u._push(u.find_class(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda u, _: u._push(u._named()),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda u, _: u._call()),
    "BUILD": lambda u, _: u._build(),
    "BINPERSID": lambda u, _: u._push(u.persistent_load(*u._last(1))),
}
