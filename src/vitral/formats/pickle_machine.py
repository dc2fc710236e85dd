"""A pickle read without being run: an interpreter of notes that imports nothing.

A pickle is a program for a small stack machine. This one knows the few instructions that data need; the
globals and calls that it understands are on lists of its subclasses, and it carries them out by noting
what was asked. No name is ever looked up, and memory is bounded by the size of the pickle, since no
instruction can copy or repeat a value. `pickle.py` reads the tensors of torch checkpoints with it,
`vitral.provenance.scan_pickle` judges every other pickle.

Source: Python's `pickletools`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO

from vitral.errors import FormatError, UnsafeFile

__all__ = ["PickleMachine"]

_MOST_INSTRUCTIONS = 1 << 21


class Mark:
    """Where a list of arguments begins on the stack."""


class PickleMachine:
    """Runs a pickle's program on notes. A subclass says what a global, a call and a persistent id mean.

    `source` names the file in messages and `what` the pickle in it, such as "{self.what}".
    """

    wanted = "a dictionary of tensors"

    def __init__(self, source: object, what: str) -> None:
        self.path, self.what = source, what
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: BinaryIO) -> Any:
        """What the pickle describes; the stream then stands behind its end.

        Raises UnsafeFile for an instruction or a global that is not allowed, FormatError for a damaged pickle.
        """
        for name, argument in self._instructions(program):
            try:
                if name == "STOP":
                    return self.stack.pop()
                self.step(name, argument)
            except (IndexError, KeyError):
                raise FormatError(f"{self.path}: {self.what} takes a value that is not there ({name})") from None
        raise FormatError(f"{self.path}: {self.what} has no end")

    def _instructions(self, program: BinaryIO) -> Iterator[tuple[str, Any]]:
        try:
            for count, (code, argument, _) in enumerate(pickletools.genops(program)):
                if count >= _MOST_INSTRUCTIONS:
                    raise UnsafeFile(f"{self.path}: {self.what} has over {_MOST_INSTRUCTIONS} instructions")
                yield code.name, argument
        except (ValueError, EOFError, OverflowError) as error:
            raise FormatError(f"{self.path}: {self.what} is damaged: {str(error)[:120]}") from None

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.stack.append(Mark)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            self.stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self.pop(int(name[-1]))))
        elif name == "TUPLE":
            self.stack.append(tuple(self.pop_to_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop(2) if name == "SETITEM" else self.pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_to_mark()
            self.target(list).extend(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(
                self.find_global(" ".join(map(_text, self.pop(2))) if name == "STACK_GLOBAL" else argument)
            )
        elif name == "BINPERSID":
            self.stack.append(self.persistent(self.stack.pop()))
        elif name == "REDUCE":
            called, arguments = self.pop(2)
            self.stack.append(self.call(called, arguments))
        elif name == "BUILD":  # attributes of an OrderedDict, such as the versions of modules: no tensors in them
            self.pop(1)
            self.target(dict)
        else:
            raise UnsafeFile(f"{self.path}: {self.what} uses the instruction {name}, which {self.wanted} never needs")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_to_mark(self) -> list[Any]:
        taken: list[Any] = []
        while (value := self.stack.pop()) is not Mark:
            taken.append(value)
        return taken[::-1]

    def target(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise FormatError(
                f"{self.path}: {self.what} fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}"
            )
        return self.stack[-1]

    def set_items(self, pairs: list[Any]) -> None:
        target = self.target(dict)
        if len(pairs) % 2:
            raise IndexError
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise FormatError(
                    f"{self.path}: {self.what} has a key that is a {type(key).__name__}; texts are wanted"
                )
            if key in target:
                raise FormatError(f"{self.path}: key {str(key)[:80]!r} appears twice")
            target[key] = value

    # What the lists of a subclass decide.

    def find_global(self, name: Any) -> Any:
        """The note for "module name"; UnsafeFile where it is not allowed."""
        raise UnsafeFile(f"{self.path}: {self.what} asks for {name!r:.80}, and no global is allowed here")

    def persistent(self, reference: Any) -> Any:
        """The note for a persistent id, which torch uses for storages."""
        raise UnsafeFile(f"{self.path}: {self.what} refers to something outside of it")

    def call(self, called: Any, arguments: Any) -> Any:
        """The note for the result of a call."""
        raise UnsafeFile(f"{self.path}: {self.what} makes a call")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else type(value).__name__


_LITERALS = frozenset(("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"))
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
