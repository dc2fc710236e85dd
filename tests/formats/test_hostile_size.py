"""Large hostile files are refused in bounded time, where the fuzzer's small ones cannot show it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.formats import tiny
from tests.formats.tiny import GgufParts, assemble_gguf, gguf_value
from vitral.errors import VitralError
from vitral.formats.checkpoint import open_checkpoint

_SMALL = tiny.GGUF_PARTS["small"]()


def similar_names() -> GgufParts:
    """As many tensors as are allowed, named like the ones that are missing; a message looks for the nearest."""
    n = (1 << 14) - 1
    first = _SMALL.tensors[0]
    end = -(-len(_SMALL.data) // 32) * 32
    more = tuple((f"blk.{i // 3}.attn_{'qkv'[i % 3]}.weight", (1,), 0, end + 32 * i) for i in range(n))
    return replace(_SMALL, tensors=(first, *more), data=_SMALL.data.ljust(end, b"\0") + bytes(32 * n))


def similar_keys() -> GgufParts:
    more = tuple((f"llama.attention.head_count_kx{i}", gguf_value(1)) for i in range(16_000))
    return replace(_SMALL, metadata=_SMALL.metadata + more)


def layers_times_experts() -> GgufParts:
    sizes = {"llama.expert_count": 65_536, "llama.expert_used_count": 2, "llama.block_count": 4096}
    metadata = dict(_SMALL.metadata) | {key: gguf_value(value) for key, value in sizes.items()}
    return replace(_SMALL, metadata=tuple(metadata.items()))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (similar_names, "is missing; the nearest name found is"),
        (similar_keys, "unknown; the nearest known one is"),
        (layers_times_experts, "4096 layers of 65536 experts"),
    ],
)
def test_large_hostile_gguf_files_are_refused_within_two_seconds(
    tmp_path: Path, parts: Callable[[], GgufParts], said: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(assemble_gguf(parts()))
    begun = time.process_time()
    with pytest.raises(VitralError, match=said):
        open_checkpoint(path)
    assert time.process_time() - begun < 2.0
