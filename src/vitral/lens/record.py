"""Run a prompt and keep the values of its forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitral.engine.interventions import Intervention
from vitral.engine.observe import Watch
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.lens.activations import ActivationCache
from vitral.lens.results import Looking

if TYPE_CHECKING:
    from vitral.language_model import LanguageModel

__all__ = ["record"]


def record(
    model: LanguageModel,
    prompt: str | Sequence[int],
    names: Sequence[str] | None = None,
    *,
    positions: Sequence[int] | None = None,
    interventions: Sequence[Intervention] = (),
    n_new: int = 0,
) -> ActivationCache:
    """The values of a prompt's tokens, and of `n_new` tokens that the model adds (the most likely ones).

    names: full names or patterns such as `blocks.*.hook_resid_post`; None keeps every tap, which is much.
        `blocks.N.attn.hook_result` is made of z and W_O when it is named.
    positions: only these; None keeps all. The last added token is not read any more, so it has no values.
    interventions: what is changed on the way; the values are those after it.

    The engine computes it, together with what else runs, to the same bits as without a look.
    Raises RequestError for a name or an intervention that the model has not, ContextOverflow.
    """
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
    some = None if positions is None else tuple(sorted({int(position) for position in positions}))
    watch = Watch(("*",) if names is None else tuple(names), positions=some)
    seen = Looking(model.spec, model.weights, [watch], interventions)
    params = SamplingParams(max_tokens=n_new)
    with model.engine.answer(
        ids, params, watch=seen.watches, on_value=seen.on_value, interventions=interventions
    ) as answer:
        for event in answer:
            if isinstance(event, NewToken):
                ids.append(event.token)
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error
    found = dict(seen.found())
    return ActivationCache(
        {name: one.values for name, one in found.items()},
        ids=ids,
        tokens=[_text(model, token) for token in ids],
        spec=model.spec,
        positions={name: one.positions for name, one in found.items()},
        weights=model.weights,
    )


def _text(model: LanguageModel, token: int) -> str:
    """What a token stands for; an embedding may have more rows than the tokenizer has ids."""
    return model.tokenizer.piece(token) if token < model.tokenizer.vocab_size else f"<{token}>"
