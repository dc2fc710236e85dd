"""Pages of the key/value cache and how many hold each of them. Integers only."""

from __future__ import annotations

__all__ = ["PageAllocator"]


class PageAllocator:
    """`n_pages` pages, each free or held by one or more.

    >>> pages = PageAllocator(2)
    >>> page = pages.take()
    >>> pages.share(page)
    >>> pages.drop(page), pages.drop(page), pages.free
    (1, 0, 2)
    """

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self._holders = [0] * n_pages
        self._free = list(range(n_pages - 1, -1, -1))  # taken from the end: low numbers first

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free)

    def take(self) -> int | None:
        """A free page, now held once; None when there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holds the page."""
        assert self._holders[page] > 0, f"page {page} is free and cannot be shared"
        self._holders[page] += 1

    def drop(self, page: int) -> int:
        """One fewer holds the page; returns how many still do. At 0 it is free."""
        assert self._holders[page] > 0, f"page {page} is free already"
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)
        return self._holders[page]

    def holders(self, page: int) -> int:
        """How many hold the page."""
        return self._holders[page]
