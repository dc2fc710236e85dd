"""Opening a model: admitted, planned, its weights packed while the rest is read.

import vitral

with vitral.load("smollm2:135m") as model:
    print(model.generate(messages=[{"role": "user", "content": "What is a prism?"}]).text)
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vitral.errors import SettingsError
from vitral.model.law import KV_DEFAULT
from vitral.settings import read_settings

if TYPE_CHECKING:
    from vitral.formats.canonical import Checkpoint
    from vitral.language_model import LanguageModel
    from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["load", "of_checkpoint", "tokenizer_of"]

_log = logging.getLogger(__name__)


def load(
    path_or_name: str | Path,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    kv_type: str = KV_DEFAULT,
    isa: str | None = None,
    verify_key: str | Path | None = None,
    speculation: bool = True,
    memory_bytes: int | None = None,
) -> LanguageModel:
    """Open a model by path, short name or `hf:owner/name`, ready to generate.

    threads: how many compute; VITRAL_THREADS, or all that this process may use.
    context_length: the most tokens of prompt and answer together. Without it: the model's own, at most
        8192, and at most what half of the memory left beside the weights holds.
    kv_type: what keys and values are kept as, "f32", "f16", "bf16" or "q8_0". It changes the logits' last bits.
    isa: the instruction set; VITRAL_ISA, or the best that this machine has. It never changes a bit.
    speculation: whether answers may guess ahead where text repeats. It never changes a bit either.
    memory_bytes: the most that weights and cache may take; VITRAL_MEMORY_BUDGET, or what is free if that is less. Of a
        mixture that is larger, experts stay in the file and are packed when a router chooses them: no bit changes.
    verify_key: a public key (PEM) with which the model's signature must fit; VITRAL_VERIFY_KEY, or none.

    What a scan refuses is not loaded (`vitral.provenance.gate`): UnsafeFile. A signature that does not
    fit: SignatureError. Raises ModelNotFound, FormatError, UnsupportedArchitecture, SettingsError, or HardwareError if
    memory or CPU cannot do it.
    """
    from vitral.hub import open_admitted

    return of_checkpoint(
        open_admitted(str(path_or_name), verify_key),
        threads=threads,
        context_length=context_length,
        kv_type=kv_type,
        isa=isa,
        speculation=speculation,
        memory_bytes=memory_bytes,
    )


def of_checkpoint(
    checkpoint: Checkpoint,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    kv_type: str = KV_DEFAULT,
    isa: str | None = None,
    speculation: bool = True,
    memory_bytes: int | None = None,
) -> LanguageModel:
    """The same for a checkpoint that is already open: its weights may have been changed on the way."""
    from vitral import native
    from vitral.engine.memory import PAGE_SIZE, available_bytes, plan_cache
    from vitral.engine.native import NativeForward, start_packing

    settings = read_settings()
    if threads is None:
        threads = settings.threads or len(os.sched_getaffinity(0))
    elif isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise SettingsError(f"threads is {threads!r}; allowed: a whole number from 1 to 1024")
    isa = native.choose(isa or settings.isa)
    memory_bytes = memory_bytes or settings.memory_bytes
    plan = plan_cache(
        checkpoint.spec,
        checkpoint.weights.n_bytes(),
        kv_type,
        context_length,
        None if memory_bytes is None else min(available_bytes(), memory_bytes),
        expert_bytes=checkpoint.weights.n_bytes(".experts."),
    )
    if plan.expert_bytes is not None:
        _log.warning(
            "%s is larger than memory: experts stay in the file, up to %.1f GB of those in use are kept; a smaller weight "
            "type or more memory makes it faster", checkpoint.path.name, plan.expert_bytes / 1e9,
        )  # fmt: skip
    packing = start_packing(
        checkpoint.spec,
        checkpoint.weights,
        threads=threads,
        isa=isa,
        context_length=plan.context_length,
        expert_bytes=plan.expert_bytes,
    )
    from vitral.language_model import LanguageModel  # here: what is read from now on, the weights are packed meanwhile
    from vitral.provenance.bases import Base

    tokenizer = tokenizer_of(checkpoint)
    model = packing.result()
    cache = model.new_cache(plan.n_pages, PAGE_SIZE, kv_type)
    forward = NativeForward(model, cache, checkpoint.spec.vocab_size, checkpoint.weights.tensors)
    return LanguageModel(
        checkpoint.spec,
        tokenizer,
        forward,
        context_length=plan.context_length,
        speculation=speculation,
        weights=checkpoint.weights,
        base=Base(checkpoint),
    )


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer in a GGUF file, or in the files beside the weights; TokenizerError without one."""
    from vitral.tokenizer.load import load_tokenizer

    path = checkpoint.path
    return load_tokenizer(
        checkpoint.metadata if checkpoint.layout == "gguf" else path if path.is_dir() else path.parent
    )
