"""Which type each tensor gets when a model is quantised: one type for all, or a mix by what a tensor does.

The mixes are llama.cpp's (`llama_tensor_get_type` in `llama-quant.cpp`): values, down projections and
the unembedding hurt most when they are rounded, so some of them get more bits.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from vitral.errors import FormatError
from vitral.formats.quants import TYPES, WeightType
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec

__all__ = ["MIXES", "Planned", "plan_types"]


@dataclass(frozen=True, slots=True)
class Planned:
    """The type a tensor gets, and the one the plan asked for where the row length forbade it."""

    type: WeightType
    fallback_from: WeightType | None = None


def _more(i: int, n: int) -> bool:
    """The layers that get more bits: the first and last eighth, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


Rule = Callable[[str, int, int], WeightType]
"""From a part ("attn.v", "mlp.down", "unembed" ...), its layer and the number of layers to a type."""


def _q4_k_m(part: str, i: int, n: int) -> WeightType:
    return "Q6_K" if part == "unembed" or (part in ("attn.v", "mlp.down") and _more(i, n)) else "Q4_K"


def _q4_k_s(part: str, i: int, n: int) -> WeightType:
    if part == "unembed":
        return "Q6_K"
    return "Q5_K" if (part == "attn.v" and i < 4) or (part == "mlp.down" and i < n // 8) else "Q4_K"


def _q5_k_m(part: str, i: int, n: int) -> WeightType:
    return "Q6_K" if part == "unembed" or (part in ("attn.v", "mlp.down") and _more(i, n)) else "Q5_K"


def _q5_k_s(part: str, i: int, n: int) -> WeightType:
    return "Q6_K" if part == "unembed" else "Q5_K"


def _q3_k_m(part: str, i: int, n: int) -> WeightType:
    match part:
        case "unembed":
            return "Q6_K"
        case "attn.v":
            return "Q5_K" if i < 2 else "Q4_K"
        case "mlp.down":
            return "Q5_K" if i < n // 16 else "Q4_K" if _more(i, n) else "Q3_K"
        case "attn.o":
            return "Q4_K"
    return "Q3_K"


def _q2_k_m(part: str, i: int, n: int) -> WeightType:
    match part:
        case "unembed":
            return "Q6_K"
        case "attn.v":
            return "Q4_K"
        case "mlp.down" | "attn.o":
            return "Q3_K"
    return "Q2_K"


MIXES: dict[str, Rule] = {
    "Q2_K_M": _q2_k_m,
    "Q3_K_M": _q3_k_m,
    "Q4_K_S": _q4_k_s,
    "Q4_K_M": _q4_k_m,
    "Q5_K_S": _q5_k_s,
    "Q5_K_M": _q5_k_m,
}

# For rows that are not whole blocks of 256: the next type of at least as many bits with blocks of 32.
_FALLBACKS: dict[str, WeightType] = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def plan_types(spec: ModelSpec, target: str) -> dict[str, Planned]:
    """The type of every tensor for a weight type (all matrices get it) or a mix such as "Q4_K_M".

    Gains and routers stay F32. A row that a type's blocks do not divide gets the stated fallback,
    F16 at last. Raises FormatError for an unknown target.

    >>> from vitral.model.presets import preset
    >>> plan_types(preset("smollm2-135m"), "Q4_K_M")["blocks.0.mlp.gate.weight"]
    Planned(type='Q5_0', fallback_from='Q4_K')
    """
    if target not in TYPES and target not in MIXES:
        near = difflib.get_close_matches(target.upper(), [*TYPES, *MIXES], n=3) or [*MIXES, *TYPES]
        raise FormatError(f"no weight type or mix is called {target!r}; the nearest: {', '.join(near)}")
    plan: dict[str, Planned] = {}
    for name, shape in tensor_shapes(spec).items():
        if len(shape) == 1 or name.endswith(".router.weight"):
            plan[name] = Planned("F32")
        else:
            plan[name] = _fitting(_asked(name, target, spec), shape[1])
    return plan


def _asked(name: str, target: str, spec: ModelSpec) -> WeightType:
    if target in TYPES:
        return TYPES[target].name
    match = re.fullmatch(r"blocks\.(\d+)\.(attn\.\w|mlp)\.?(?:experts\.\d+\.)?(gate|up|down)?\.?weight", name)
    if match:
        part = f"mlp.{match[3]}" if match[2] == "mlp" else match[2]
        return MIXES[target](part, int(match[1]), spec.n_layers)
    tied = spec.tied_embeddings and name == "embed.weight"
    return MIXES[target]("unembed" if tied or name == "unembed.weight" else "embed", 0, spec.n_layers)


def _fitting(asked: WeightType, columns: int) -> Planned:
    if columns % TYPES[asked].block == 0:
        return Planned(asked)
    smaller: WeightType = _FALLBACKS.get(asked, "F16")
    return Planned(smaller if columns % TYPES[smaller].block == 0 else "F16", asked)
