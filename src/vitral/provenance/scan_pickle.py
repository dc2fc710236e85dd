"""Pickles wherever they are: in torch archives, bare, as older versions of torch wrote them, and in NumPy files.

What may stand in one is on the lists below: numbers, texts, containers, and the calls with which torch and
NumPy rebuild arrays. Everything else is refused by name, whatever it may be: a list of what is forbidden can
always be got around (`pkgutil.resolve_name` got around picklescan's).
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from vitral.errors import FormatError, UnsafeFile
from vitral.formats.bounds import map_file
from vitral.formats.pickle_machine import PickleMachine
from vitral.formats.zipped import read_zip
from vitral.provenance.findings import Finding, person, refused, shown

__all__ = ["check_pickle", "looks_like_pickle", "scan_numpy", "scan_pickle", "scan_torch"]

_LARGEST = 64 << 20  # bytes of a pickle; tensors lie outside of it
_LARGEST_NUMPY_HEADER = 10_000
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first of the five pickles of torch before 1.6
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 float8_e4m3fn float8_e5m2"
_STORAGES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2} | {
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "Untyped": 1,
}  # fmt: skip  (bytes of a number)
_ALLOWED = frozenset(
    [
        "collections OrderedDict",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        "torch device",
        *(f"torch {name}" for name in _DTYPES.split()),
        *(f"torch {name}Storage" for name in _STORAGES),
        "torch.storage UntypedStorage",
        "numpy.core.multiarray _reconstruct",
        "numpy._core.multiarray _reconstruct",
        "numpy.core.multiarray scalar",
        "numpy._core.multiarray scalar",
        "numpy.core.numeric _frombuffer",
        "numpy._core.numeric _frombuffer",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",  # how protocol 2 writes bytes
        "builtins set",
        "builtins frozenset",
        "__builtin__ set",
        "builtins complex",
    ]
)
# Members of a torch archive: the pickle, its storages, and small facts. TorchScript's `code/` is a program.
_TORCH_MEMBER = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


class _Made:
    """The result of an allowed call."""


class _DataMachine(PickleMachine):
    """Understands data alone, and keeps none of it that it need not."""

    wanted = "data"

    def __init__(self, source: object, what: str) -> None:
        super().__init__(source, what)
        self.storages: dict[str, int] = {}  # bytes that the pickle says each has

    def step(self, name: str, argument: Any) -> None:
        if name in _MORE_LITERALS:
            self.stack.append(argument)
        elif name == "EMPTY_SET":
            self.stack.append([])  # elements may be notes, which need not be hashable
        elif name in ("ADDITEMS", "FROZENSET"):
            items = self.pop_to_mark()
            if name == "FROZENSET":
                self.stack.append(items)
            else:
                self.target(list).extend(items)
        elif name == "BUILD":
            self.pop(1)
            self._must_be(dict | _Made)  # how NumPy fills arrays and dtypes
        else:
            super().step(name, argument)

    def set_items(self, pairs: list[Any]) -> None:
        self._must_be(dict)

    def _must_be(self, kinds: type | UnionType) -> None:
        if not isinstance(self.stack[-1], kinds):
            raise UnsafeFile(f"{self.what} changes a {type(self.stack[-1]).__name__.strip('_')}, which is no data")

    def find_global(self, name: Any) -> Any:
        if name not in _ALLOWED:
            raise UnsafeFile(f"{self.what} asks for {shown(str(name).replace(' ', '.'))}, which data never need")
        return _Global(name)

    def persistent(self, reference: Any) -> Any:
        match reference:
            case ("storage", _Global(name=str(name)), str(key), str(), int(n), *_) if name.endswith("Storage"):
                size = n * _STORAGES[name.rpartition(" ")[2].removesuffix("Storage")]
                if n < 0 or self.storages.setdefault(key, size) != size:
                    raise UnsafeFile(f"{self.what} gives storage {shown(key)} two sizes, or one below zero")
                return _Made()
        raise UnsafeFile(f"{self.what} refers to something else than a storage of numbers")

    def call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, _Global):
            raise UnsafeFile(f"{self.what} calls a {type(called).__name__}, which is no function on the list")
        return {} if called.name == "collections OrderedDict" else _Made()


_MORE_LITERALS = frozenset(
    ["LONG4", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"]
)


def check_pickle(program: io.BytesIO, what: str) -> Any:
    """Read one pickle and leave the stream behind it.

    Raises UnsafeFile for what is not on the lists, FormatError for a damaged one.

    >>> import os, pickle
    >>> check_pickle(io.BytesIO(pickle.dumps({"a": [1, 2.5]})), "a pickle")
    {}
    >>> check_pickle(io.BytesIO(pickle.dumps(os.system)), "a pickle")
    Traceback (most recent call last):
    vitral.errors.UnsafeFile: a pickle asks for 'posix.system', which data never need
    """
    return _DataMachine("", what).run(program)


def scan_torch(path: Path, file: str) -> Iterator[Finding]:
    """A ZIP archive of torch: its members, and the pickle in it."""
    members = read_zip(path)
    roots = [name.removesuffix("data.pkl") for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        yield refused(file, "zip-ambiguous", f"the archive has {len(roots)} members data.pkl; torch writes one")
        return
    for name, member in members.items():
        inner = name.removeprefix(roots[0])
        if not name.startswith(roots[0]) or not _TORCH_MEMBER.fullmatch(inner):
            yield refused(file, "zip-member", f"member {shown(name)} has no place in a file of tensors")
        elif inner == "data.pkl":
            if member.data.size > _LARGEST:
                yield refused(
                    file, "pickle-size", f"data.pkl has {member.data.size} bytes; at most {_LARGEST} are read"
                )
            else:
                storages = yield from _judged(io.BytesIO(member.checked(file)), file, "data.pkl")
                for key, size in storages.items():
                    data = members.get(f"{roots[0]}data/{key}")
                    if data is None or data.data.size != size:
                        there = "no member has it" if data is None else f"its member has {data.data.size}"
                        yield refused(file, "pickle-storage", f"storage {shown(key)} should have {size} bytes; {there}")


def scan_pickle(path: Path, file: str) -> Iterator[Finding]:
    """A file that is a pickle, or several after each other as older versions of torch wrote them."""
    data = map_file(path)
    program = io.BytesIO(data[:_LARGEST].tobytes())
    yield from _judged(program, file, "the pickle")


def _judged(program: io.BytesIO, file: str, what: str) -> Generator[Finding, None, dict[str, int]]:
    """The findings of a pickle; gives the bytes that it says each storage has."""
    size, machine = len(program.getbuffer()), _DataMachine("", what)
    try:
        first = machine.run(program)
        if first == _TORCH_MAGIC:
            for _ in range(4):
                check_pickle(program, what)
            yield person(
                file, "pickle-legacy", "a file of torch before 1.6: its pickle is clean, but Vitral reads none"
            )
        elif program.tell() != size:
            yield refused(
                file, "pickle-trailing", f"{size - program.tell()} bytes follow {what}; a second one may hide"
            )
    except UnsafeFile as error:
        yield refused(file, "pickle-code", str(error).removeprefix(": "))
    except FormatError as error:
        yield refused(file, "pickle-damaged", str(error).removeprefix(": "))
    return machine.storages


def looks_like_pickle(head: bytes) -> bool:
    """Whether bytes without a pickle's first byte are one all the same: protocols 0 and 1 begin like text.

    What counts is that a call, or a name to be looked up, would be reached by an unpickler.

    >>> looks_like_pickle(b"cos\\nsystem\\n(S'ls'\\ntR."), looks_like_pickle(b"chat models\\nare fun\\n")
    (True, False)
    """
    machine = _Prober("", "")
    with suppress(UnsafeFile, FormatError):
        machine.run(io.BytesIO(head))
    return machine.calls


class _Prober(PickleMachine):
    """Follows the instructions of every protocol until one would call something."""

    calls = False

    def step(self, name: str, argument: Any) -> None:
        if name in _TEXT_LITERALS:
            self.stack.append(argument)
        elif name in ("PUT", "GET"):
            if name == "PUT":
                self.memo[argument] = self.stack[-1]
            else:
                self.stack.append(self.memo[argument])
        elif name in ("LIST", "DICT"):
            self.pop_to_mark()
            self.stack.append([] if name == "LIST" else {})
        elif name in ("POP", "DUP"):
            value = self.stack.pop()
            self.stack += [value, value] if name == "DUP" else []
        elif name == "POP_MARK":
            self.pop_to_mark()
        elif name == "INST":
            self.pop_to_mark()
            self._calls(self.find_global(argument))
        elif name == "OBJ":
            self._calls(*self.pop_to_mark()[:1])
        elif name in ("REDUCE", "NEWOBJ", "BUILD"):
            self._calls(self.pop(2)[0])
        elif name.startswith("EXT"):
            self._calls(_Global(name))
        else:
            super().step(name, argument)

    def _calls(self, called: object = None) -> None:
        self.calls = isinstance(called, _Global)
        raise FormatError("what follows does not matter")

    def find_global(self, name: Any) -> Any:
        parts = str(name).split(" ")
        if len(parts) == 2 and all(part.replace(".", "").isidentifier() for part in parts):
            return _Global(str(name))
        raise FormatError("no name of Python")


_TEXT_LITERALS = _MORE_LITERALS | {"INT", "LONG", "FLOAT", "STRING", "UNICODE", "BINSTRING"}


def scan_numpy(path: Path, file: str) -> Iterator[Finding]:
    """A `.npy` file: an array of objects is a pickle."""
    from numpy.lib import format as npy

    try:
        with path.open("rb") as stream:
            magic, of_version_1 = npy.read_magic(stream), (1, 0)  # type: ignore[no-untyped-call]
            read: Any = npy.read_array_header_1_0 if magic == of_version_1 else npy.read_array_header_2_0
            _, _, dtype = read(stream, max_header_size=_LARGEST_NUMPY_HEADER)
    except ValueError as error:
        yield refused(file, "numpy-damaged", f"the header of the array cannot be read: {str(error)[:120]}")
        return
    if dtype.hasobject:
        yield refused(file, "numpy-objects", "the array holds Python objects, which are a pickle; store numbers")
