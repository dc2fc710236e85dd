"""How much memory there is, how many tokens' keys and values fit, and what is left for experts."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from vitral.errors import HardwareError, SettingsError
from vitral.model.arithmetic import kv_bytes
from vitral.model.law import KV_TYPES
from vitral.model.spec import ModelSpec

__all__ = ["PAGE_SIZE", "CachePlan", "available_bytes", "peak_bytes", "plan_cache"]

PAGE_SIZE = 32  # positions: small enough to share short prefixes, large enough to keep tables short
USUAL_CONTEXT = 8192  # tokens a model is opened for unless asked otherwise
_PROCESS = 150 << 20  # bytes of interpreter, tokenizer and scratch
_PACKED = 1.1  # packed weights over file size, at most
_LEAST_CONTEXT = 2048  # tokens below which a mixture rather leaves experts in its file


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Tokens of the longest request, pages for all requests together, and bytes of weights, cache and process.

    `expert_bytes` is what experts may take where not all fit in memory, None where they do.
    """

    context_length: int
    n_pages: int
    total_bytes: int
    expert_bytes: int | None = None


def plan_cache(
    spec: ModelSpec,
    weight_bytes: int,
    kv_type: str,
    context_length: int | None,
    available: int | None = None,
    *,
    expert_bytes: int = 0,
) -> CachePlan:
    """Choose or check the context length, and size the cache.

    Without a wish the context is the model's, at most 8192 tokens, and at most what half of the memory
    left beside the weights holds. The cache has room for up to four such contexts if they fit there;
    memory that is never used is never taken. `available` is what the model may take, by default what is free.

    `expert_bytes` is the part of `weight_bytes` that is experts. Where a mixture does not fit, they share what the rest
    leaves: a cache of one context, without a wish at most a tenth of that, then as many experts as there is
    room for, at least the number that a token uses. Of free memory an eighth then stays with the system, which reads
    the file through it.

    Raises SettingsError for a kv_type or length that cannot be, HardwareError with the numbers if memory
    is too small.
    """
    if kv_type not in KV_TYPES:
        raise SettingsError(f"kv_type is {kv_type!r}; allowed: {', '.join(KV_TYPES)}")
    per_token = kv_bytes(spec, 1, kv_type)
    needed = int(weight_bytes * _PACKED) + _PROCESS
    wished, free = context_length, available is None
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
    if expert_bytes and spec.moe is not None:
        least = min(spec.max_context, _LEAST_CONTEXT) if wished is None else context_length
        if -(-least // PAGE_SIZE) * PAGE_SIZE * per_token > room:
            able = available - available // 8 if free else available
            return _with_experts_left(spec, needed - int(expert_bytes * _PACKED), per_token, wished, able, expert_bytes)
    pages = -(-context_length // PAGE_SIZE)
    if pages * PAGE_SIZE * per_token > room:
        raise HardwareError(
            f"weights ({_mb(needed)}) and a cache for {context_length} tokens ({_mb(pages * PAGE_SIZE * per_token)}) "
            f"need more than the {_mb(available)} of memory that it may take: choose a smaller context_length, "
            "a smaller weight type, or give it more"
        )
    pages = max(pages, min(4 * pages, room // 2 // per_token // PAGE_SIZE))
    return CachePlan(context_length, pages, needed + pages * PAGE_SIZE * per_token)


def _with_experts_left(
    spec: ModelSpec, needed: int, per_token: int, context_length: int | None, available: int, expert_bytes: int
) -> CachePlan:
    """The plan where experts stay in their file; `needed` is all weights but them, and the process."""
    assert spec.moe is not None
    page = PAGE_SIZE * per_token
    if context_length is None:
        pages = max(min(spec.max_context, USUAL_CONTEXT, (available - needed) // 10 // per_token) // PAGE_SIZE, 1)
        context_length = pages * PAGE_SIZE
    pages = -(-context_length // PAGE_SIZE)
    per_expert = expert_bytes * _PACKED / spec.moe.n_experts / len(spec.mixture_layers)
    least, left = int(per_expert * spec.moe.n_experts_per_token), available - needed - pages * page
    if left < least:
        raise HardwareError(
            f"the model does not fit in the {_mb(available)} of memory that it may take, even with its experts left in "
            f"the file: the other weights need {_mb(needed)}, a cache for {context_length} tokens {_mb(pages * page)}, the "
            f"{spec.moe.n_experts_per_token} experts that a token uses {_mb(least)}; choose a smaller context_length, "
            "a smaller weight type, or give it more"
        )
    return CachePlan(context_length, pages, available, left)


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its control group's if that is less."""
    amounts = [amount for amount in (_machine(), *_groups()) if amount is not None]
    return min(amounts) if amounts else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes() -> int:
    """The most memory that this process has taken so far.

    From /proc where there is one: what getrusage says begins, in a process that another started, at what that one had.
    """
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
