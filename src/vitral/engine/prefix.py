"""The prefix cache: full pages found again by their content.

A page's key is a hash of the tokens in it, of the key of the page before, and at the start of the
chain of a salt, so that equal keys mean equal prefixes of the same tenant, adapter and intervention.
By the numeric law the keys and values in a page are the bits that computing them again would give;
finding a page changes the time, never the answer. Only full pages are shared, and nobody writes to a
full page.

The cache holds each page that it knows once. Pages that it alone holds are idle: they are handed out
again, least recently used first, when no page is free.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from vitral.engine.blocks import PageAllocator

__all__ = ["PrefixCache", "page_key"]


def page_key(before: bytes, ids: Sequence[int]) -> bytes:
    """The key of a full page from the key before it (at the start: the salt) and its tokens."""
    digest = hashlib.blake2b(len(before).to_bytes(4, "little"), digest_size=32)
    digest.update(before)
    digest.update(array("q", ids).tobytes())
    return digest.digest()


class PrefixCache:
    """Hands out pages, remembers full ones by content. With `enabled` false it only hands out.

    >>> cache = PrefixCache(PageAllocator(4), page_size=2)
    >>> first = cache.take()
    >>> key = page_key(b"", [5, 6])
    >>> cache.remember(key, first)
    >>> cache.release([first])
    >>> cache.match([5, 6, 7], b"", 2) == ([first], [key])
    True
    """

    def __init__(self, pages: PageAllocator, page_size: int, *, enabled: bool = True) -> None:
        self.pages = pages
        self.page_size = page_size
        self.enabled = enabled
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones and idle ones."""
        return self.pages.free + len(self._idle)

    def take(self) -> int | None:
        """A page to write to, or None when all are in use."""
        page = self.pages.take()
        if page is None and self._idle:
            idle, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(idle)]
            self.pages.drop(idle)
            page = self.pages.take()
        return page

    def match(self, ids: Sequence[int], salt: bytes, most: int) -> tuple[list[int], list[bytes]]:
        """The pages and keys of the longest known prefix of `ids`, at most `most` pages; they are now shared."""
        found: list[int] = []
        keys: list[bytes] = []
        key = salt
        if not self.enabled:
            return found, keys
        for start in range(0, min(most, len(ids) // self.page_size) * self.page_size, self.page_size):
            key = page_key(key, ids[start : start + self.page_size])
            page = self._page_of.get(key)
            if page is None:
                break
            self.pages.share(page)
            self._idle.pop(page, None)
            found.append(page)
            keys.append(key)
        return found, keys

    def remember(self, key: bytes, page: int) -> None:
        """A full page has this content from now on. Does nothing if such a page is known."""
        if self.enabled and key not in self._page_of and page not in self._key_of:
            self.pages.share(page)
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """A sequence lets go of its pages. The end of a prefix is forgotten before its start."""
        for page in reversed(pages):
            left = self.pages.drop(page)
            if left == 1 and page in self._key_of:
                self._idle[page] = None
