"""Memory and time before anything starts, in closed form; a rehearsal of the largest piece then checks both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vitral.engine.memory import available_bytes
from vitral.errors import HardwareError
from vitral.model.arithmetic import flops_per_token, parameters
from vitral.model.spec import ModelSpec
from vitral.tune.lora_plan import LoraPlan

__all__ = ["Estimate", "estimate", "flops_per_second", "refuse_too_large"]

_RUNTIME = 450 << 20  # bytes: the interpreter, torch and NumPy, measured after import and one product
_LOGIT_COPIES = 5  # going backwards: logits, difference, exponential, and the two gradients that are summed


@dataclass(frozen=True)
class Estimate:
    """Bytes by what holds them, seconds for the run, and the numbers that both come from."""

    trainable: int
    weights: int
    optimizer: int
    activations: int
    logits: int
    file: int  # pages of the base that were read and stay mapped
    runtime: int
    seconds: float

    @property
    def total_bytes(self) -> int:
        """All together."""
        return self.weights + self.optimizer + self.activations + self.logits + self.file + self.runtime


def estimate(
    spec: ModelSpec,
    lora: LoraPlan | None,
    *,
    piece_tokens: int,
    piece_supervised: int,
    run_tokens: int,
    supervised_share: float,
    weight_bytes: int = 4,
    file_bytes: int = 0,
    recompute: bool = False,
    references: int = 0,
    shards: int = 1,
    speed: float | None = None,
) -> Estimate:
    """What a run will take. `lora` None is full tuning; `references` counts frozen copies that are not shared.
    `shards` processes divide gradients and moments; each has all weights once, when it reads the base.

    `piece_tokens` and `piece_supervised` are of the largest piece, `run_tokens` all ids that will be read.
    `file_bytes` is the size of the base on disk, which is mapped. `speed` is the machine's float operations a second; measured for a moment if not given.
    """
    total = parameters(spec).total
    trainable = total if lora is None else _adapter_size(spec, lora)
    extra = 0 if lora is None else trainable
    weights = total * weight_bytes * (1 + references) + extra * 4
    layers = 1 if recompute else spec.n_layers
    activations = piece_tokens * (layers * _floats_per_token(spec) + recompute * spec.n_layers * spec.dim) * 4
    # forwards once; backwards once for activations, once more for weights that are trained; recomputing repeats forwards
    passes = 2 + (lora is None) + recompute + references
    per_token = flops_per_token(spec, 1) - 2 * spec.vocab_size * spec.dim * (1 - supervised_share)
    seconds = run_tokens * per_token * passes / (speed or flops_per_second())
    return Estimate(
        trainable=trainable,
        weights=weights,
        optimizer=trainable * 12 // shards,  # gradient and Adam's two moments, float32
        activations=activations,
        logits=min(piece_supervised * spec.vocab_size, 1 << 26) * 4 * _LOGIT_COPIES,
        file=file_bytes,
        runtime=_RUNTIME,
        seconds=seconds,
    )


def refuse_too_large(found: Estimate, free: int | None = None) -> None:
    """Raise HardwareError if a run would take more than is free: bytes, by default what this process may still take.

    Linux promises more than it has and ends a process that takes it, so that a run must not come there. The file's
    pages do not count, for the system takes them back, nor does the runtime, which is there.
    """
    needed = found.weights + found.optimizer + found.activations + found.logits
    free = available_bytes() if free is None else free
    if needed > free:
        rest = found.activations + found.logits
        advice = (
            "lower run.piece_tokens or data.context, or set run.recompute = true"
            if needed - rest < free
            else "take a smaller base, or an adapter (method.tune) instead of the whole model"
        )
        raise HardwareError(
            f"the run needs about {needed / 1e9:.2f} GB ({found.weights / 1e9:.2f} for weights, {found.optimizer / 1e9:.2f} "
            f"for the optimiser, {rest / 1e9:.2f} for a piece of a step), and {free / 1e9:.2f} GB are free: {advice}"
        )


def _floats_per_token(spec: ModelSpec) -> int:
    """Numbers kept for the backward pass, a token and layer: norms 8 C, attention 3 HD + 4 KD, SwiGLU 4 F a chosen expert."""
    chosen = spec.moe.n_experts_per_token if spec.moe is not None else 1
    heads = 3 * spec.n_heads * spec.head_dim + 4 * spec.n_kv_heads * spec.head_dim
    return 8 * spec.dim + heads + chosen * 4 * spec.hidden_dim


def _adapter_size(spec: ModelSpec, lora: LoraPlan) -> int:
    from vitral.model.names import tensor_shapes

    shapes: Sequence[tuple[int, ...]] = [
        shape for name, shape in tensor_shapes(spec).items() if lora.fits(name.removesuffix(".weight"))
    ]
    return sum(lora.rank * (out + in_) + (out if lora.kind == "dora" else 0) for out, in_ in shapes)


def flops_per_second() -> float:
    """Float operations a second of this machine in a product of training's size.

    Measured for a fifth of a second, once in a process for a number of threads.
    """
    import torch

    return _measured(torch.get_num_threads())


@cache
def _measured(threads: int) -> float:
    import torch

    a, b = torch.from_numpy(np.ones((512, 576), np.float32)), torch.from_numpy(np.ones((576, 1536), np.float32))
    a @ b
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        a @ b
        count += 1
    return count * 2 * 512 * 576 * 1536 / (time.perf_counter() - began)
