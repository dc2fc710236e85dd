from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vitral.engine.blocks import PageAllocator
from vitral.engine.prefix import PrefixCache, page_key


def filled(cache: PrefixCache, ids: list[int], salt: bytes = b"") -> list[int]:
    """Pages for all full pages of `ids`, remembered."""
    pages = []
    key = salt
    for start in range(0, len(ids) - cache.page_size + 1, cache.page_size):
        page = cache.take()
        assert page is not None
        key = page_key(key, ids[start : start + cache.page_size])
        cache.remember(key, page)
        pages.append(page)
    return pages


def test_the_longest_known_prefix_is_found() -> None:
    cache = PrefixCache(PageAllocator(8), 2)
    pages = filled(cache, [1, 2, 3, 4, 5, 6])
    assert cache.match([1, 2, 3, 4, 9, 9], b"", 9)[0] == pages[:2]
    assert cache.match([1, 2, 3, 4, 5, 6], b"", 1)[0] == pages[:1]
    assert cache.match([9, 2, 3, 4], b"", 9)[0] == []


def test_the_same_tokens_after_another_start_are_another_page() -> None:
    assert page_key(page_key(b"", [1, 2]), [3, 4]) != page_key(page_key(b"", [2, 1]), [3, 4])
    assert page_key(b"tenant", [3, 4]) != page_key(b"", [3, 4])


@given(st.binary(max_size=40), st.lists(st.integers(0, 2**31), max_size=4), st.binary(max_size=40))
def test_equal_keys_mean_equal_content(salt: bytes, ids: list[int], other: bytes) -> None:
    assert (page_key(salt, ids) == page_key(other, ids)) == (salt == other)


def test_idle_pages_are_handed_out_again_least_recently_used_first_and_ends_before_starts() -> None:
    cache = PrefixCache(PageAllocator(4), 2)
    old = filled(cache, [1, 2, 3, 4])
    new = filled(cache, [5, 6, 7, 8])
    assert cache.take() is None
    cache.release(old)
    cache.release(new)
    assert cache.available == 4
    assert [cache.take(), cache.take(), cache.take()] == [old[1], old[0], new[1]]
    assert cache.match([5, 6, 7, 8], b"", 9)[0] == [new[0]]
    assert cache.take() is None


def test_a_page_in_use_is_never_handed_out() -> None:
    cache = PrefixCache(PageAllocator(2), 2)
    first = filled(cache, [1, 2])
    cache.match([1, 2], b"", 9)
    cache.release(first)
    assert cache.take() != first[0]
    assert cache.take() is None


def test_a_second_page_of_the_same_content_stays_private() -> None:
    cache = PrefixCache(PageAllocator(4), 2)
    first, second = filled(cache, [1, 2]), filled(cache, [1, 2])
    cache.release(second)
    cache.release(first)
    assert cache.match([1, 2], b"", 9)[0] == first


def test_a_cache_that_is_off_finds_nothing_and_loses_nothing() -> None:
    cache = PrefixCache(PageAllocator(2), 2, enabled=False)
    cache.release(filled(cache, [1, 2]))
    assert cache.match([1, 2], b"", 9) == ([], [])
    assert cache.pages.free == 2
