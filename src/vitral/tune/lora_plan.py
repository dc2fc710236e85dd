"""Which products of a model get a low-rank adapter, of which kind and size. Needs no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitral.errors import AdapterMismatch

__all__ = ["PARTS", "LoraKind", "LoraPlan"]

PARTS = ("q", "k", "v", "o", "gate", "up", "down", "router")
LoraKind = Literal["lora", "rslora", "dora"]


@dataclass(frozen=True)
class LoraPlan:
    """Which products get an adapter, of which kind and size.

    `targets` are parts (PARTS); a router is adapted only where it is named. `experts` and `layers`
    narrow them to some experts of a mixture and some layers; empty means all.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    kind: LoraKind = "lora"
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    experts: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise AdapterMismatch(f"rank is {self.rank}; allowed: a whole number from 1")
        if not self.alpha > 0:
            raise AdapterMismatch(f"alpha is {self.alpha}; allowed: a number above 0")
        if not 0 <= self.dropout < 1:
            raise AdapterMismatch(f"dropout is {self.dropout}; allowed: from 0 to below 1")
        if self.kind not in ("lora", "rslora", "dora"):
            raise AdapterMismatch(f"kind is {self.kind!r}; allowed: lora, rslora, dora")
        unknown = [part for part in self.targets if part not in PARTS]
        if unknown or not self.targets:
            raise AdapterMismatch(f"targets {unknown or 'are empty'}; allowed: {', '.join(PARTS)}")

    @property
    def scale(self) -> float:
        """What B @ A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)

    def matched(self, products: Sequence[str]) -> list[str]:
        """Those of a model's products that get an adapter. Raises AdapterMismatch if a target, an expert or a layer matches none.

        >>> LoraPlan(targets=("up",)).matched(["blocks.0.mlp.gate", "blocks.0.mlp.up"])
        ['blocks.0.mlp.up']
        """
        layers = {int(name.split(".")[1]) for name in products if name.startswith("blocks.")}
        for layer in self.layers:
            if layer not in layers:
                raise AdapterMismatch(f"there is no layer {layer}; the model has 0 to {max(layers)}")
        found = [name for name in products if self.fits(name)]
        for part in self.targets:
            if not any(name.endswith("." + part) for name in found):
                there = {name.rsplit(".", 1)[-1] for name in products}
                raise AdapterMismatch(
                    f"target {part!r} matches no product of this model in the layers and experts asked for; "
                    f"there are: {', '.join(sorted(there))}"
                )
        for expert in self.experts:
            if not any(f".experts.{expert}." in name for name in found):
                raise AdapterMismatch(f"there is no expert {expert} to adapt in this model")
        for layer in self.layers:
            if not any(name.startswith(f"blocks.{layer}.") for name in found):
                raise AdapterMismatch(f"layer {layer} has no product that is asked for")
        return found

    def fits(self, name: str) -> bool:
        """Whether the product of this name, such as `blocks.0.mlp.experts.2.up`, gets an adapter.

        >>> LoraPlan(targets=("up",), experts=(2,)).fits("blocks.0.mlp.experts.2.up")
        True
        """
        found = re.fullmatch(r"blocks\.(\d+)\.(?:attn|mlp)\.(?:experts\.(\d+)\.)?(\w+)", name)
        if found is None or found[3] not in self.targets:
            return False
        if self.experts and found[2] is not None and int(found[2]) not in self.experts:
            return False
        return not self.layers or int(found[1]) in self.layers
