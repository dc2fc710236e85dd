"""What the server knows of an engine: one small protocol, token ids on both sides.

The native worker speaks it, and another OpenAI-compatible server through `vitral.serve.remote`: what an engine cannot do
it leaves out of `Facts.can`, and the server refuses what needs it. One that does not tell ids answers in text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from vitral.engine.interventions import Intervention
from vitral.engine.observe import Watch
from vitral.engine.request import FinishReason, SamplingParams, TokenScore
from vitral.errors import VitralError

__all__ = [
    "ABILITIES",
    "Ability",
    "Ask",
    "Digest",
    "Drawn",
    "Ended",
    "EngineEvent",
    "Facts",
    "Hidden",
    "ModelEngine",
    "OnEvent",
    "Picture",
    "Said",
    "Scored",
    "Seen",
    "Token",
]

Ability = Literal[
    "generate", "logprobs", "prompt_logprobs", "hidden", "digests", "replay", "constraints", "adapters", "taps"
]
ABILITIES: frozenset[Ability] = frozenset(get_args(Ability))
"""All that there are; the native engine has them."""
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A document of `vitral inspect` is wanted: `start` of its window, and `top` candidates."""

    start: int
    top: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence to compute.

    client: whose turn it is. salt: parts the prefix cache. digests: whether a Digest follows for each token. pooling: give the final hidden state instead of tokens. constraint: the text that
    `vitral.engine.grammar` compiles. adapter: the name of a loaded adapter. watch: what to show of the forward pass.
    light: from which position on to give the light set. interventions: what to change on the way. picture: read the
    prompt, without and with the interventions, answer nothing, and give a document.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    client: str = ""
    salt: bytes = b""
    digests: bool = False
    pooling: Pooling | None = None
    constraint: str | None = None
    adapter: str | None = None
    watch: tuple[Watch, ...] = ()
    light: int | None = None
    interventions: tuple[Intervention, ...] = ()
    picture: Picture | None = None


class Token(NamedTuple):  # not a dataclass: a frozen one takes three times as long to make
    """The answer grew by a token."""

    token: int
    score: TokenScore | None = None


class Digest(NamedTuple):
    """The digest of the logits that a token was chosen from: one for each token, in their order, each some time after
    its token and before the Ended."""

    digest: str


@dataclass(frozen=True, slots=True)
class Said:
    """The answer grew by a text whose tokens the engine does not tell."""

    text: str


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of all prompt tokens but the first."""

    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class Hidden:
    """The pooled final hidden state (C,), as it is."""

    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A value of the forward pass at `positions`, which run along `axis` of it: one for each, before the Ended.

    name: the label of the watch and the tap; of the light set "light/" and the part.
    """

    name: str
    axis: int
    positions: NDArray[np.int64]
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The document of `vitral inspect`, without the model's name."""

    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event. `error` says why if the reason is "error"; `cached` prompt tokens were not computed anew.

    made: how many tokens the answer has, from an engine that answers in text, if it tells.
    """

    reason: FinishReason
    cached: int = 0
    error: VitralError | None = None
    made: int | None = None


EngineEvent = Token | Digest | Said | Scored | Hidden | Seen | Drawn | Ended
OnEvent = Callable[[EngineEvent], None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine is. cache_tokens: 0 where that is not known. `digests` of weights; `kernels` chosen and why; `adapters`: digests by name; `bases`: how it is
    known of each that it is for this model.

    memory: bytes by use: weights, cache, and "adapter:NAME" of each adapter.
    """

    context_length: int
    vocab_size: int
    cache_tokens: int
    can: frozenset[Ability]
    digests: Mapping[str, str | None] = field(default_factory=dict)
    kernels: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)


class ModelEngine(Protocol):
    """Computes sequences. All calls come from one event loop; `submit` and `cancel` return at once."""

    @property
    def facts(self) -> Facts:
        """What it is; the last known facts while it is away."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether it takes work now."""
        ...

    @property
    def deaths(self) -> int:
        """How often it went away by itself since the server began."""
        ...

    def submit(self, ask: Ask, on_event: OnEvent) -> int:
        """Queue a sequence and return its number. The last event is always an Ended. Raises EngineLost if it is away."""
        ...

    def cancel(self, number: int) -> None:
        """End a sequence at its next step; late calls do nothing."""
        ...

    async def load_adapter(self, name: str, path: str) -> str:
        """Load a LoRA adapter beside running requests; its digest. Raises FormatError, ModelNotFound, RequestError."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """No new request gets it; those that have it keep it to their end."""
        ...

    async def start(self) -> None:
        """Be ready to work, or raise what stands in the way."""
        ...

    async def close(self) -> None:
        """Let everything go."""
        ...
