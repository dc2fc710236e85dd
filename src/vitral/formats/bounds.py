"""Reading bytes from strangers: nothing is read, reserved or multiplied before it was compared with what is there.

Every binary parser of this package stands on these few: `map_file` for the bytes, `Cursor` to walk
through them, `product` for sizes. Messages name the file, the offset, what was found and what is allowed.
"""

from __future__ import annotations

import difflib
import mmap
import os
import stat
import struct
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vitral.errors import FormatError, TruncatedFile
from vitral.native import Texts, read_texts

__all__ = ["LARGEST_ELEMENTS", "Cursor", "is_mapped", "let_go", "map_file", "nearest", "product"]

# The largest product of dimensions: above any tensor there is, and times 8 bytes still inside 64 bits.
LARGEST_ELEMENTS = 1 << 48

_LENGTH = 8  # bytes of the number before a string


def map_file(path: Path, smallest: int = 1) -> NDArray[np.uint8]:
    """The bytes of a regular file, mapped read-only; the map lives as long as any view of it.

    Raises TruncatedFile for fewer than `smallest` bytes, FormatError for what cannot be opened.
    """
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would hold us here forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path} is not a regular file")
        if status.st_size < max(smallest, 1):
            raise TruncatedFile(f"{path} has {status.st_size} bytes; at least {max(smallest, 1)} are needed")
        return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)


def is_mapped(array: NDArray[np.uint8]) -> bool:
    """Whether the bytes are a file's, mapped by `map_file`, and not memory of their own."""
    return _mapping(array) is not None


def let_go(array: NDArray[np.uint8]) -> None:
    """Take the pages of a mapped file out of this process; who reads them again finds them in the system's cache.

    Does nothing to an array with memory of its own.
    """
    mapping = _mapping(array)
    if mapping is None or not hasattr(mapping, "madvise"):
        return
    start = array.__array_interface__["data"][0] - np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    page = start // mmap.PAGESIZE * mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, page, start - page + array.nbytes)


def _mapping(array: NDArray[np.uint8]) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None


def product(numbers: Iterable[int], largest: int = LARGEST_ELEMENTS) -> int | None:
    """The product of numbers of at least 0, or None where it is above `largest`.

    >>> product((2, 3)), product((1 << 40, 1 << 40))
    (6, None)
    """
    result = 1
    too_large = False
    for number in numbers:
        if number == 0:
            return 0
        result = result if too_large else result * number
        too_large = too_large or result > largest
    return None if too_large else result


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of names from a stranger, for a message; None where none is similar.

    Looks at the first 1000 of at most 100 characters: similarity takes some 50 microseconds for each.

    >>> nearest("output.weigth", ["token_embd.weight", "output.weight"])
    'output.weight'
    """
    few = [other for other in islice(names, 1000) if len(other) <= 100]
    found = difflib.get_close_matches(name[:100], few, n=1)
    return found[0] if found else None


class Cursor:
    """A place in a buffer that never goes past its end; little-endian.

    `source` names the buffer in messages.

    >>> cursor = Cursor(b"\\x02\\0\\0\\0\\0\\0\\0\\0hi", "example")
    >>> cursor.text("a greeting", 100), cursor.left
    ('hi', 0)
    """

    def __init__(self, data: bytes | memoryview | NDArray[np.uint8], source: object) -> None:
        self.data = data.data if isinstance(data, np.ndarray) else memoryview(data)
        self.source = source
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes between here and the end."""
        return len(self.data) - self.at

    def wrong(self, text: str) -> FormatError:
        """An error that says where it was found."""
        return FormatError(f"{self.source} at byte {self.at}: {text}")

    def take(self, n_bytes: int, what: str) -> memoryview:
        """The next bytes, not copied; TruncatedFile where there are fewer."""
        if n_bytes > self.left:
            raise TruncatedFile(
                f"{self.source} at byte {self.at}: {what} wants {n_bytes} bytes, {self.left} are left; "
                "the file is incomplete or damaged"
            )
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self, code: str, what: str = "a number") -> Any:
        """One number of a struct code, such as "I" for an unsigned 32-bit one."""
        return self.struct(code, what)[0]

    def struct(self, codes: str, what: str) -> tuple[Any, ...]:
        """Numbers one after the other by their struct codes, such as "2QI"."""
        form = "<" + codes
        return struct.unpack(form, self.take(struct.calcsize(form), what))

    def numbers(self, dtype: DTypeLike, count: int, what: str) -> NDArray[Any]:
        """An array of `count` numbers, a view of the buffer."""
        of = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(self.take(count * of.itemsize, what), of)

    def text(self, what: str, longest: int) -> str:
        """A string with its length before it (64 bits): strictly UTF-8, of at most `longest` bytes."""
        length = self.number("Q", f"the length of {what}")
        if length > longest:
            raise self.wrong(f"{what} has {length} bytes; at most {longest} are allowed")
        return self._decoded(self.take(length, what), what)

    def texts(self, what: str, count: int, longest: int) -> Texts:
        """`count` strings as `text` reads one, which have at most `longest` bytes together."""
        if count > self.left // _LENGTH:
            raise TruncatedFile(f"{self.source} at byte {self.at}: {what} claims {count} strings in {self.left} bytes")
        data, start = np.frombuffer(self.data, np.uint8), self.at
        found, self.at = read_texts(data, start, count, longest)
        if len(found) < count:
            room = longest - (self.at - start - _LENGTH * len(found))
            which = f"string {len(found)} of {what}"
            length = self.number("Q", f"the length of {which}")
            if room < length <= self.left:
                raise self.wrong(f"{what} has over {longest} bytes of text, which is the most allowed")
            self._decoded(self.take(length, which), which)
        return found

    def _decoded(self, data: memoryview, what: str) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            self.at -= len(data)
            raise self.wrong(f"{what} is not UTF-8") from None
