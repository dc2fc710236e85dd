"""What `vitral inspect` shows of one text: a JSON document, described in docs/reference/inspect-json.md.

Every intermediate value is reduced where it arises, so that 2,000 tokens fit: attention to bytes, the
residual stream to what each layer would say, attention and feed-forward outputs to what they add to
the logit of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.interventions import Intervention, to_document
from vitral.engine.native import NativeForward
from vitral.errors import ContextOverflow, RequestError
from vitral.language_model import LanguageModel
from vitral.lens.readout import Readout, read
from vitral.lens.statistics import log_softmax, softmax
from vitral.lens.unembedding import Unembedding
from vitral.native import top_n
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["FORMAT", "VERSION", "document_of", "inspect", "token_text", "unembedding_of"]

FORMAT = "vitral-inspect"
VERSION = 1


def inspect(
    model: LanguageModel,
    ids: Sequence[int],
    *,
    name: str = "model",
    n_prompt: int | None = None,
    window: int = 64,
    top: int = 5,
    interventions: Sequence[Intervention] = (),
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """The document for one text, ready for `json.dumps`.

    ids: the text, from its first token on; `n_prompt` of them were given, the others answered.
    window: of how many tokens, counted from the end, lens and attributions are computed.
    top: how many candidates a prediction lists. progress: called with (done, all).
    interventions: the text is then read twice, and the document holds both: `before` without them.

    Raises RequestError for an empty text or a number out of range, ContextOverflow for too long a text.
    """
    if not ids:
        raise RequestError("the text has no tokens; give at least one")
    if len(ids) > model.context_length:
        raise ContextOverflow(f"the text has {len(ids)} tokens; this model holds {model.context_length}: shorten it")
    if window < 1:
        raise RequestError(f"the window is {window} tokens; allowed: 1 or more")
    if not 1 <= top <= 50:
        raise RequestError(f"{top} candidates were asked for; allowed: 1 to 50")
    top, start = min(top, model.spec.vocab_size), max(0, len(ids) - window)
    unembedding = unembedding_of(model)
    found = read(model, unembedding, ids, start=start, top=top, progress=progress)
    changed = None
    if interventions:
        changed = read(
            model,
            unembedding,
            ids,
            start=start,
            top=top,
            targets=found.targets,
            interventions=interventions,
            progress=progress,
        )
    given = len(ids) if n_prompt is None else n_prompt
    return document_of(model, ids, found, changed, interventions, name=name, n_prompt=given, start=start, top=top)


def unembedding_of(model: LanguageModel) -> Unembedding:
    """The unembedding that a reading wants, by the model's kernels. RequestError if the weights are not at hand."""
    if model.weights is None:
        raise RequestError("this model has no weights to read; open it with vitral.load")
    forward = model.engine.forward
    threads = forward.model.threads if isinstance(forward, NativeForward) else 1
    return Unembedding.by_kernels(model.spec, model.weights, threads)


def document_of(
    model: LanguageModel,
    ids: Sequence[int],
    found: Readout,
    changed: Readout | None,
    interventions: Sequence[Intervention],
    *,
    name: str,
    n_prompt: int,
    start: int,
    top: int,
) -> dict[str, Any]:
    """The document from a reading without interventions and, if there are any, one under them."""
    run, mentioned = _run(found, ids, start, top)
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": _model(model, name),
        "n_prompt": n_prompt,
        "tokens": [{"id": int(i), "text": token_text(model.tokenizer, i)} for i in ids],
        "window": {"start": start, "stop": len(ids)},
    }
    if changed is not None:
        document["before"] = run
        document["interventions"] = to_document(interventions)
        run, more = _run(changed, ids, start, top)
        mentioned |= more
        document["changes"] = [_change(a, b, top) for a, b in zip(found.logits, changed.logits, strict=True)]
    document["texts"] = {str(i): token_text(model.tokenizer, i) for i in sorted(mentioned)}
    document["run"] = run
    return document


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """One token for the eye: its characters, or its name if it is a control token or no whole character.

    An id that only the embedding has (padding) is shown by its number.
    """
    if id >= tokenizer.vocab_size:
        return f"[{id}]"
    text = tokenizer.token_bytes(id).decode("utf-8", "replace")
    return tokenizer.piece(id) if tokenizer.is_special(id) or not text or "\ufffd" in text else text


def _model(model: LanguageModel, name: str) -> dict[str, Any]:
    spec, moe = model.spec, model.spec.moe
    return {
        "name": name,
        "n_layers": spec.n_layers,
        "n_heads": spec.n_heads,
        "dim": spec.dim,
        "vocab_size": spec.vocab_size,
        "n_experts": moe.n_experts if moe else 0,
        "n_experts_per_token": moe.n_experts_per_token if moe else 0,
    }


def _run(found: Readout, ids: Sequence[int], start: int, top: int) -> tuple[dict[str, Any], set[int]]:
    """The part of the document that one reading gives, and the ids that it names."""
    predictions = [
        _prediction(row, ids[t + 1] if t + 1 < len(ids) else None, top) for t, row in enumerate(found.logits)
    ]
    mentioned = {id for one in predictions for id in one["top"]["ids"]}
    mentioned |= set(map(int, found.lens_ids.ravel())) | set(map(int, found.targets))
    logit = found.logits[np.arange(start, len(ids)), found.targets]
    document = {
        "predictions": predictions,
        "lens": {
            "ids": found.lens_ids.tolist(),
            "probs": _rounded(found.lens_probs),
            "target_probs": _rounded(found.lens_target),
        },
        "attribution": {
            "targets": found.targets.tolist(),
            "logits": _rounded(logit),
            "components": _rounded(found.components),
            "heads": _rounded(found.heads),
            "rounding": _rounded(found.rounding),
            "rest": _rounded(logit - found.components.sum(0) - found.rounding),
        },
        "attention": found.attention,
        "experts": _experts(found),
    }
    return document, mentioned


def _prediction(logits: NDArray[np.float32], following: int | None, top: int) -> dict[str, Any]:
    """What the model expects after a token, and how it took what really follows."""
    probs = softmax(logits)
    best = top_n(logits, top)
    entropy = -float(np.sum(probs * np.log2(np.maximum(probs, 1e-300))))
    next = None
    if following is not None:
        next = {"prob": float(probs[following]), "rank": int(np.sum(logits > logits[following])) + 1}
        next["prob"] = round(next["prob"], 6)
    return {"entropy": round(entropy, 4), "next": next, "top": {"ids": best.tolist(), "probs": _rounded(probs[best])}}


def _change(before: NDArray[np.float32], after: NDArray[np.float32], top: int) -> dict[str, Any]:
    """What an intervention did to one prediction: the candidates of both, best before first, and the bits between."""
    best = top_n(before, top).tolist()
    ids = best + [id for id in top_n(after, top).tolist() if id not in best]
    p, q = log_softmax(before), log_softmax(after)
    kl = float(np.exp(p) @ (p - q)) / np.log(2)
    return {
        "ids": ids,
        "before": _rounded(np.exp(p[ids])),
        "after": _rounded(np.exp(q[ids])),
        "kl": round(max(kl, 0), 4),
    }


def _experts(found: Readout) -> dict[str, Any] | None:
    if found.experts is None:
        return None
    indices, weights = found.experts
    dense: list[Any] = [[]] * (len(found.lens_ids) - len(indices))  # the first layers may have no experts
    return {"indices": dense + indices.tolist(), "weights": dense + _rounded(weights)}


def _rounded(values: NDArray[Any]) -> list[Any]:
    """As JSON, to six digits behind the point."""
    rounded: list[Any] = np.round(values.astype(np.float64), 6).tolist()
    return rounded
