"""The native model behind the engine's `Forward`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.forward import Batch
from vitral.errors import HardwareError, RequestError
from vitral.formats.bounds import is_mapped, let_go
from vitral.formats.weights import Tensor, Weights
from vitral.model.law import F32, LowRank
from vitral.model.spec import ModelSpec
from vitral.native import Cache, NativeModel, Packed, matmul, pack

__all__ = ["NativeForward", "native_model", "start_packing"]

_TOGETHER = 64 << 20  # bytes of weights that are packed at once and let go of together


class NativeForward:
    """A native model and its paged cache."""

    def __init__(
        self, model: NativeModel, cache: Cache, vocab_size: int, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """weights: the checkpoint's tensors; needed to replace results of heads alone."""
        self.model = model
        self.cache = cache
        self.vocab_size = vocab_size
        self._weights = weights
        self._outputs: dict[int, Packed] = {}  # W_O of the layers whose results somebody replaces

    @property
    def n_pages(self) -> int:
        return int(self.cache.n_pages)

    @property
    def page_size(self) -> int:
        return int(self.cache.page_size)

    def set_adapter(self, number: int, parts: Mapping[str, LowRank]) -> None:
        self.model.set_adapter(number, parts)

    def remove_adapter(self, number: int) -> None:
        self.model.remove_adapter(number)

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    def __call__(self, batch: Batch) -> F32:
        return self.model.forward(
            self.cache,
            batch.ids,
            batch.positions,
            batch.sequence,
            batch.page_table,
            batch.wanted,
            adapters=batch.adapters,
        )

    def with_taps(
        self,
        batch: Batch,
        names: Collection[str],
        on_tap: Callable[[str, NDArray[Any], int], None],
        attention_of: Collection[int],
        later: bool = False,
    ) -> F32:
        return self.model.forward(
            self.cache,
            batch.ids,
            batch.positions,
            batch.sequence,
            batch.page_table,
            batch.wanted,
            taps=sorted(names),
            on_tap=on_tap,
            adapters=batch.adapters,
            attention_of=sorted(attention_of),
            later=later,
        )

    def head_result(self, layer: int, z: F32, head: int) -> F32:
        if layer not in self._outputs:
            if self._weights is None:
                raise RequestError("hook_result is made of W_O, and this model was made without its weights at hand")
            tensor = self._weights[f"blocks.{layer}.attn.o.weight"]
            self._outputs[layer] = pack(tensor.type.name, tensor.raw(), threads=self.model.threads)
        alone = np.zeros_like(z)
        alone[:, head] = z[:, head]
        return matmul(self._outputs[layer], alone.reshape(len(z), -1), threads=self.model.threads, isa=self.model.isa)

    def project_back(self, name: str, x: F32) -> F32:
        return self.model.project_back(name, x)

    def with_hidden(self, batch: Batch) -> tuple[F32, F32]:
        seen: list[F32] = []
        logits = self.model.forward(
            self.cache,
            batch.ids,
            batch.positions,
            batch.sequence,
            batch.page_table,
            batch.wanted,
            taps=["unembed.hook_in"],
            on_tap=lambda _name, rows, _sequence: seen.append(np.array(rows, np.float32)),
            adapters=batch.adapters,
        )
        return logits, seen[0]


def native_model(
    spec: ModelSpec,
    weights: Weights,
    *,
    threads: int,
    isa: str,
    context_length: int,
    expert_bytes: int | None = None,
) -> NativeModel:
    """Pack every tensor for this CPU; all are consumed. Positions below `context_length` can be computed.

    With `expert_bytes` experts stay in their file, and at most so many bytes of them are in memory: those that
    routers chose of late. That changes no bit. HardwareError where the file does not hold them as they are used.
    """
    packing = start_packing(
        spec, weights, threads=threads, isa=isa, context_length=context_length, expert_bytes=expert_bytes
    )
    return packing.result()


def start_packing(
    spec: ModelSpec,
    weights: Weights,
    *,
    threads: int,
    isa: str,
    context_length: int,
    expert_bytes: int | None = None,
) -> Future[NativeModel]:
    """What `native_model` gives, packed while Python goes on: of a small model all that is left to do here is little."""
    model = NativeModel(spec, threads, isa, expert_bytes)
    model.set_context(context_length)
    beside = ThreadPoolExecutor(1)
    groups: deque[Future[None]] = deque()
    for group in _groups(model, weights, expert_bytes is not None):
        groups.append(beside.submit(_pack, model, group))
        if len(groups) > 2:
            groups.popleft().result()  # few are in memory twice
    weights.finish()

    def finish() -> NativeModel:
        for packed in groups:
            packed.result()
        model.finish()
        return model

    done = beside.submit(finish)
    beside.shutdown(wait=False)
    return done


Rows = tuple[str, str, NDArray[np.uint8]]
"""A tensor's name, its type and its GGUF rows."""


def _groups(model: NativeModel, weights: Weights, leave_experts: bool) -> Iterator[list[Rows]]:
    """What is to be packed, so much together that a thread is busy for a while."""
    group: list[Rows] = []
    n_bytes = 0
    for name in weights:
        tensor = weights.take(name)
        if leave_experts and ".experts." in name:
            model.leave_weight(name, tensor.type.name, _in_place(tensor))
            continue
        if len(tensor.shape) == 1 or name.endswith(".router.weight"):  # always float32 by the law
            rows = tensor.dequantize().reshape(tensor.raw().shape[0], -1)
            group.append((name, "F32", np.ascontiguousarray(rows).view(np.uint8)))
        else:
            group.append((name, tensor.type.name, tensor.raw()))
        n_bytes += group[-1][2].nbytes
        if n_bytes >= _TOGETHER:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _pack(model: NativeModel, group: list[Rows]) -> None:
    model.set_weights(group)
    for _, _, raw in group:
        let_go(raw)


def _in_place(tensor: Tensor) -> NDArray[np.uint8]:
    raw = tensor.raw()
    if not is_mapped(raw) or not raw.flags.c_contiguous:
        raise HardwareError(
            f"the model does not fit in memory, and its experts cannot stay in the file: {tensor.name} is stored there in "
            "another order; `vitral convert` to GGUF, then open that"
        )
    return raw
