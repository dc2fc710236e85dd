"""How much memory there is, and how many tokens' keys and values fit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vitral.errors import HardwareError, SettingsError
from vitral.model.arithmetic import kv_bytes
from vitral.model.spec import ModelSpec

__all__ = ["PAGE_SIZE", "CachePlan", "available_bytes", "plan_cache"]

PAGE_SIZE = 32  # positions: small enough to share short prefixes, large enough to keep tables short
USUAL_CONTEXT = 8192  # tokens a model is opened for unless asked otherwise
_PROCESS = 150 << 20  # bytes of interpreter, tokenizer and scratch
_PACKED = 1.1  # packed weights over file size, at most
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0}


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Tokens of the longest request, pages for all requests together, and bytes of weights, cache and process."""

    context_length: int
    n_pages: int
    total_bytes: int


def plan_cache(
    spec: ModelSpec, weight_bytes: int, kv_type: str, context_length: int | None, available: int | None = None
) -> CachePlan:
    """Choose or check the context length, and size the cache.

    Without a wish the context is the model's, at most 8192 tokens, and at most what half of the memory
    left beside the weights holds. The cache has room for up to four such contexts if they fit there;
    memory that is never used is never taken. `available` is what the model may take, by default what is free.

    Raises SettingsError for a kv_type or length that cannot be, HardwareError with the numbers if memory
    is too small.
    """
    if kv_type not in _KV_BYTES:
        raise SettingsError(f"kv_type is {kv_type!r}; allowed: {', '.join(_KV_BYTES)}")
    per_token = kv_bytes(spec, 1, _KV_BYTES[kv_type])
    needed = int(weight_bytes * _PACKED) + _PROCESS
    available = available_bytes() if available is None else available
    room = available - needed
    if context_length is None:
        fits = max(room, 0) // 2 // per_token // PAGE_SIZE * PAGE_SIZE
        context_length = min(spec.max_context, USUAL_CONTEXT, max(fits, PAGE_SIZE))
    elif isinstance(context_length, bool) or not isinstance(context_length, int) or context_length < 1:
        raise SettingsError(f"context_length is {context_length!r}; allowed: a whole number from 1")
    elif context_length > spec.max_context and spec.rope.scaling != "dynamic":
        raise SettingsError(
            f"context_length is {context_length}; the model was made for at most {spec.max_context} tokens"
        )
    pages = -(-context_length // PAGE_SIZE)
    if pages * PAGE_SIZE * per_token > room:
        raise HardwareError(
            f"weights ({_mb(needed)}) and a cache for {context_length} tokens ({_mb(pages * PAGE_SIZE * per_token)}) "
            f"need more than the {_mb(available)} of memory that it may take: choose a smaller context_length, "
            "a smaller weight type, or give it more"
        )
    pages = max(pages, min(4 * pages, room // 2 // per_token // PAGE_SIZE))
    return CachePlan(context_length, pages, needed + pages * PAGE_SIZE * per_token)


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its control group's if that is less."""
    amounts = [amount for amount in (_machine(), *_groups()) if amount is not None]
    return min(amounts) if amounts else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _machine() -> int | None:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _groups() -> list[int | None]:
    """What is left under the limits of control groups, versions 2 and 1."""
    left: list[int | None] = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            folder, names = Path("/sys/fs/cgroup") / group.lstrip("/"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            folder = Path("/sys/fs/cgroup/memory") / group.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        limit, used = (_text(folder / name).strip() for name in names)
        left.append(int(limit) - int(used) if limit.isdigit() and used.isdigit() else None)
    return left


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
