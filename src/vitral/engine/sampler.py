"""From logits to a token, to the bit on every machine.

Order of the steps, each leaving out what its parameter does not ask for:

0. Tokens that the request's constraint forbids get minus infinity.
1. `logit_bias` is added.
2. Repetition penalty (CTRL, arXiv 1909.05858, as in Hugging Face): a positive logit of a token of
   prompt or answer is divided by it, another one multiplied.
3. Presence and frequency penalties (OpenAI's API): taken off for tokens of the answer alone.
4. Temperature 0 ends here: the largest logit, of equals the lowest id. Otherwise the distances
   to the largest logit are divided by the temperature.
5. min-p (arXiv 2407.01082), then top-k, then top-p (nucleus, arXiv 1904.09751) over what is left.
6. One uniform number chooses among the rest, laid out from most to least likely (equals: lower
   id first).

The number comes from Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011) with the seed as key and the token's position as counter: no state, so a token's luck does not
depend on what was drawn before it or for others. All arithmetic is float64 of plain
`+ - * /`, whose results IEEE 754 fixes; the exponential is ours and the logarithm is `decimal`'s,
because those of a machine's library differ in their last bits from the next machine's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

from vitral.engine.request import Request, SamplingParams, TokenScore
from vitral.errors import NumericalError, RequestError
from vitral.model.law import F32

__all__ = ["adjust", "best", "choose", "draw", "not_finite", "score", "uniform"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_FIRST_LOOK = 64  # candidates sorted before more are needed


def not_finite(logits: F32, largest: int, position: int) -> NumericalError | None:
    """An error if the largest logit (V,) is no finite number: then no token can be chosen. NaN counts as largest."""
    value = float(logits[largest])
    if math.isfinite(value):
        return None
    return NumericalError(
        f"the logits after position {position} hold {value} at token {largest}; finite numbers are needed: "
        "the weights are damaged or overflow, check the file's digest or use another weight type"
    )


def choose(request: Request, logits: F32, largest: int) -> int:
    """The next token of a request from its logits (V,), of which `largest` is the largest."""
    params = request.params
    if request.constraint is not None:
        allowed = request.constraint.allowed()
        if params.temperature == 0 and not params.changes_logits and allowed[largest]:
            return largest
        logits = np.where(allowed, logits, np.float32(-np.inf))
        largest = int(np.argmax(logits))
        if logits[largest] == -np.inf:
            raise RequestError(
                "the constraint leaves no token to go on with: the vocabulary cannot spell what it asks for"
            )
    if params.temperature == 0 and not params.changes_logits:
        return largest
    adjusted = adjust(logits, params, request.ids, request.counts)
    if adjusted.max() == -math.inf:
        raise RequestError(
            "logit_bias forbids every token that could come next; allowed: at least one token without minus infinity"
        )
    if params.temperature == 0:
        return int(np.argmax(adjusted))
    return draw(adjusted, params, uniform(request.seed, len(request.ids)))


def adjust(logits: F32, params: SamplingParams, ids: Sequence[int], counts: Mapping[int, int]) -> F64:
    """Bias and penalties (steps 1 to 3); `ids` is prompt and answer, `counts` the answer's tokens.

    >>> logits = np.array([1.0, 2.0, -1.0], np.float32)
    >>> adjust(logits, SamplingParams(repetition_penalty=2.0, presence_penalty=0.5), [0, 2], {2: 1}).tolist()
    [0.5, 2.0, -2.5]
    """
    adjusted = logits.astype(np.float64)
    for token, bias in params.logit_bias.items():
        adjusted[token] += bias
    if params.repetition_penalty != 1.0:
        used = np.unique(np.asarray(ids, np.int64))
        values = adjusted[used]
        penalty = params.repetition_penalty
        adjusted[used] = np.where(values > 0, values / penalty, values * penalty)
    for token, count in counts.items():
        adjusted[token] -= params.presence_penalty + params.frequency_penalty * count
    return adjusted


def draw(adjusted: F64, params: SamplingParams, luck: float) -> int:
    """Steps 4 to 6 for a temperature above 0; `luck` is in [0, 1)."""
    distances = (adjusted - adjusted.max()) / params.temperature  # 0 for the most likely
    n = len(distances)
    if params.min_p > 0:
        n = int(np.count_nonzero(distances >= math.log(params.min_p) - 1e-6))  # a few too many: see below
    if params.top_k > 0:
        n = min(n, params.top_k)
    if n < len(distances):
        ranked = best(adjusted, n)
        weights = _exp(distances[ranked])
        ranked = ranked[: max(1, int(np.count_nonzero(weights >= params.min_p)))]  # exact
        sums = np.cumsum(weights[: len(ranked)])
        total = float(sums[-1])
        reach = (params.top_p if params.top_p < 1 else luck) * total
    else:
        weights = _exp(distances)
        reach = (params.top_p if params.top_p < 1 else luck) * _sum(weights)
        ranked, sums = _most_likely(adjusted, weights, reach)
    if params.top_p < 1:
        sums = sums[: int(np.searchsorted(sums, reach, side="left")) + 1]
        reach = luck * float(sums[-1])
    last = int(np.searchsorted(sums, sums[-1]))  # the last one that weighs anything
    return int(ranked[min(int(np.searchsorted(sums, reach, side="right")), last)])


def _most_likely(adjusted: F64, weights: F64, reach: float) -> tuple[I64, F64]:
    """Tokens from most to least likely with running sums of their weights, enough to pass `reach`."""
    n = _FIRST_LOOK
    while True:
        ranked = best(adjusted, n)
        sums = np.cumsum(weights[ranked])
        if sums[-1] > reach or n >= len(weights):
            return ranked, sums
        n *= 8


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that belongs to a seed and a position.

    >>> uniform(1, 5) == uniform(1, 5) != uniform(1, 6)
    True
    """
    key = np.array([seed, 0], np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([position, 0, 0, 0], np.uint64)).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def score(logits: F32, largest: int, token: int, n: int) -> TokenScore:
    """Log-probabilities of a token and of the n most likely ones under unmodified logits (V,).

    >>> score(np.zeros(4, np.float32), 0, 3, 1).logprob  # -ln 4
    -1.3862943611198906
    """
    shift = float(logits[largest])
    log_total = _ln(_sum(_exp(logits.astype(np.float64) - shift)))
    top = best(logits, n) if n else ()
    return TokenScore(
        token,
        float(logits[token]) - shift - log_total,
        tuple((int(i), float(logits[i]) - shift - log_total) for i in top),
    )


def best(values: F32 | F64, n: int) -> I64:
    """The positions of the n largest values (V,), largest first; of equals the lower position wins."""
    n = min(n, len(values))
    if n < len(values) // 4:
        least = np.partition(values, len(values) - n)[len(values) - n]
        among = np.flatnonzero(values >= least)
    else:
        among = np.arange(len(values))
    return among[np.argsort(-values[among], kind="stable")[:n]]


# exp(r) on |r| <= ln(2) / 2 by Taylor's series up to r^12, highest power first. ln 2 in two parts,
# the first of 32 bits, so that its product with a whole number is exact.
_TAYLOR = [1.0 / math.factorial(n) for n in range(12, -1, -1)]
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LOWEST = -700.0  # below, the exponential counts as 0
_ROUND = 1.5 * 2.0**52
_PIECE = 8192  # numbers at a time, so that they stay in the cache


def _exp(x: F64) -> F64:
    """The exponential of numbers not above 0, from plain operations; below -700 it is 0."""
    out = np.empty_like(x)
    for start in range(0, len(x), _PIECE):
        _exp_piece(x[start : start + _PIECE], out[start : start + _PIECE])
    return out


def _exp_piece(x: F64, out: F64) -> None:
    r = np.maximum(x, _LOWEST)
    shifted = r * _LOG2_E
    shifted += _ROUND  # its lowest bits are now the whole number n of halvings, rounded to nearest
    n = shifted - _ROUND
    r -= n * _LN2_HIGH
    n *= _LN2_LOW
    r -= n
    np.multiply(r, _TAYLOR[0], out=out)
    for coefficient in _TAYLOR[1:-1]:
        out += coefficient
        out *= r
    out += _TAYLOR[-1]
    exponent = shifted.view(np.int64)
    exponent <<= 52
    bits = out.view(np.int64)
    bits += exponent  # times 2^n
    out *= x >= _LOWEST


def _sum(x: F64) -> float:
    """Sum by halves, zeros behind the end: one fixed order, small error."""
    x = np.concatenate([x, np.zeros((1 << (len(x) - 1).bit_length()) - len(x))])
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return float(x[0])


_DECIMAL = Context(prec=30)


def _ln(x: float) -> float:
    return float(_DECIMAL.ln(Decimal(x)))
