"""Which type each tensor gets when a model is quantised: the file types that people ask for by name.

A file type such as Q4_K_M is a weight type for most matrices and rules for the rest: values, down
projections and the unembedding hurt most when they are rounded, so some of them get more bits. Names
and rules are llama.cpp's (`llama_tensor_get_type_impl` in `llama-quant.cpp`, ggml 0.25.3), because files are
compared and exchanged under these names; `tests/formats/mixes.json` holds what its `llama-quantize` plans.
One thing differs: Q2_K and Q3_K rows that are not whole blocks become IQ4_NL, not Q4_0, which has as
many bits and a larger error.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from vitral.errors import FormatError
from vitral.formats.quants import TYPES, WeightType
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec

__all__ = ["FILE_TYPES", "FileType", "Planned", "file_type", "plan_types"]


@dataclass(frozen=True, slots=True)
class FileType:
    """A way to quantise a whole model: its name, its number in `general.file_type`, and most matrices' type."""

    name: str
    number: int
    type: WeightType


FILE_TYPES: dict[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q5_1", 9, "Q5_1"),
        FileType("Q5_0", 8, "Q5_0"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q4_1", 3, "Q4_1"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("IQ4_NL", 25, "IQ4_NL"),
        FileType("IQ4_XS", 30, "IQ4_XS"),
        FileType("Q3_K_L", 13, "Q3_K"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q3_K_S", 11, "Q3_K"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("Q2_K_S", 21, "Q2_K"),
    )
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# For rows that are not whole blocks of 256: a type with blocks of 32 and at least as many bits.
_FALLBACKS: dict[str, WeightType] = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True, slots=True)
class Planned:
    """The type a tensor gets, and the one the plan asked for where the row length forbade it."""

    type: WeightType
    fallback_from: WeightType | None = None


def file_type(name: str) -> FileType:
    """The file type of this name in any case; Q3_K, Q4_K and Q5_K alone mean the M mix.

    Raises FormatError with the nearest names for an unknown one.

    >>> file_type("q4_k_m").type, file_type("Q5_K").name
    ('Q4_K', 'Q5_K_M')
    """
    upper = name.upper()
    found = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if found is None:
        near = difflib.get_close_matches(upper[:40], FILE_TYPES, n=3, cutoff=0.5) or list(FILE_TYPES)
        raise FormatError(f"no file type is called {name[:40]!r}; the nearest: {', '.join(near)}")
    return found


def plan_types(spec: ModelSpec, name: str, *, pure: bool = False, importance: bool = False) -> dict[str, Planned]:
    """The type of every tensor of a model in a file type.

    `pure` gives all matrices the one type, without rules. `importance` says that the rounding will be
    guided, which some rules ask. Gains and routers stay F32. A row that a type's blocks do not divide
    gets a stated fallback, F16 at last. Raises FormatError for an unknown name.

    >>> from vitral.model.presets import preset
    >>> plan_types(preset("smollm2-135m"), "Q4_K_M")["blocks.0.mlp.gate.weight"]
    Planned(type='Q5_0', fallback_from='Q4_K')
    """
    kind = file_type(name)
    mix = None if pure or kind.type in ("F32", "F16", "BF16") else _Mix(kind, spec, importance)
    plan: dict[str, Planned] = {}
    for tensor, shape in tensor_shapes(spec).items():
        if len(shape) == 1 or tensor.endswith(".router.weight"):
            plan[tensor] = Planned("F32")
        else:
            plan[tensor] = _fitting(kind.type if mix is None else mix.asked(tensor, shape[1]), shape[1])
    return plan


_TENSOR = re.compile(r"blocks\.(?P<layer>\d+)\.(?:attn\.(?P<attn>\w)|mlp\.(?:experts\.\d+\.)?(?P<mlp>\w+))\.weight")


@dataclass(frozen=True, slots=True)
class _Mix:
    """The rules of one file type for one model."""

    kind: FileType
    spec: ModelSpec
    importance: bool

    def asked(self, tensor: str, columns: int) -> WeightType:
        """The type that the rules want for a matrix of so many columns."""
        found = _TENSOR.fullmatch(tensor)
        if found is None:
            if tensor == "embed.weight" and not self.spec.tied_embeddings:
                return self.kind.type
            return self._unembed(columns)
        layer = int(found["layer"])
        match found["attn"] or found["mlp"]:
            case "v":
                return self._values(layer)
            case "k":
                return "Q8_0" if self._eight_experts else self.kind.type
            case "o":
                return self._attention_out()
            case "down":
                return self._down(layer)
        return self.kind.type

    @property
    def _eight_experts(self) -> bool:
        """Mixtral: attention is so small a part that more bits there cost next to nothing."""
        return self.spec.moe is not None and self.spec.moe.n_experts == 8

    @property
    def _shared_values(self) -> bool:
        """At least four query heads read one value head: the value matrix is small, and each error counts fourfold."""
        return self.spec.heads_per_kv_head >= 4

    def _more(self, i: int) -> bool:
        """The layers that get more bits: the first and last eighth, and every third between."""
        n = self.spec.n_layers
        return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2

    def _unembed(self, columns: int) -> WeightType:
        whole = columns % TYPES[self.kind.type].block == 0
        return "Q6_K" if whole and self.kind.type != "Q8_0" else "Q8_0"

    def _values(self, i: int) -> WeightType:
        if self._eight_experts:
            return "Q8_0"
        asked = self.kind.type
        match self.kind.name:
            case "Q2_K":
                asked = "Q4_K" if self._shared_values else "Q3_K"
            case "Q2_K_S" if self._shared_values:
                asked = "Q4_K"
            case "Q3_K_M":
                asked = "Q5_K" if i < 2 else "Q4_K"
            case "Q3_K_L":
                asked = "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if self._shared_values:
                asked = "Q5_K"
            case "Q4_K_S" if i < 4:
                asked = "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if self._more(i):
                asked = "Q6_K"
        is_70b = self.spec.n_layers == 80 and self.spec.heads_per_kv_head > 1
        return "Q5_K" if is_70b and asked in ("Q3_K", "Q4_K") else asked

    def _attention_out(self) -> WeightType:
        if self._eight_experts:
            small = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
            return "Q5_K" if self.kind.name in small else self.kind.type
        more: dict[str, WeightType] = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
        return more.get(self.kind.name, self.kind.type)

    def _down(self, i: int) -> WeightType:
        n = self.spec.n_layers
        first = i < n // 8
        match self.kind.name:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if first:
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if i < n // 16 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if self._more(i):
                return "Q6_K"
            case "Q4_K_S" if first:
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if first and not self.importance:
                return "Q5_K"
            case "Q4_0" if first and self.importance:
                return "Q4_1"
            case "Q5_0" if first and self.importance:
                return "Q5_1"
        return self.kind.type


def _fitting(asked: WeightType, columns: int) -> Planned:
    if columns % TYPES[asked].block == 0:
        return Planned(asked)
    smaller: WeightType = _FALLBACKS.get(asked, "F16")
    return Planned(smaller if columns % TYPES[smaller].block == 0 else "F16", asked)
