"""The models that the server serves: for each an engine, a tokenizer, and what they are."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitral.serve.engines import Ability, Facts, ModelEngine
from vitral.serve.faults import ApiError
from vitral.serve.residency import Place, Residency
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["Model", "Models", "public_name"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model by the name that clients use; with an adapter that is `base:adapter`.

    place: in memory or not. source: where its weights are. adapter_digest: of the adapter when it was asked for; a name may mean another one later.
    """

    name: str
    tokenizer: Tokenizer
    engine: ModelEngine
    place: Place
    adapter: str | None = None
    adapter_digest: str | None = None
    source: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def facts(self) -> Facts:
        return self.engine.facts

    def need(self, ability: Ability, for_what: str) -> None:
        """ApiError 400 if the engine cannot do it."""
        if ability not in self.facts.can:
            raise ApiError(
                400, "unsupported_by_engine", f"the engine of model {self.name!r} cannot do this: {for_what}"
            )

    def still_served(self) -> None:
        """ApiError 404 if the adapter was unloaded, or exchanged, since it was asked for."""
        if self.adapter is not None and self.facts.adapters.get(self.adapter) != self.adapter_digest:
            raise ApiError(404, "model_not_found", f"the adapter {self.name!r} has just been unloaded", param="model")

    def identity(self) -> Mapping[str, Any]:
        """What decides the answer's bits, for records."""
        return {
            "name": self.name,
            "weights": self.facts.digests.get("weights"),
            "tokenizer": self.tokenizer.digest,
            "template": self.tokenizer.template_digest,
            "adapter": self.adapter_digest,
            "kernels": {key: self.facts.kernels.get(key) for key in ("isa", "kv_type", "build")},
        }

    @property
    def fingerprint(self) -> str | None:
        """Short for `identity`: equal ones give equal bits. None for an engine of which that cannot be said."""
        if "replay" not in self.facts.can:
            return None
        return "fp_" + hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]


def public_name(name: str) -> str:
    """What clients call it: the name as given, or the last part of a path.

    >>> public_name("smollm2:135m"), public_name("/models/tiny.gguf")
    ('smollm2:135m', 'tiny.gguf')
    """
    path = Path(name).expanduser()
    return path.name if name.startswith(("/", "./", "../", "~")) or path.exists() else name


class Models:
    """All of them, by name, and which are in memory."""

    def __init__(self, models: Iterable[Model], residency: Residency) -> None:
        self.residency = residency
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def all(self) -> list[Model]:
        """The models, each followed by itself with each adapter."""
        return [
            found
            for model in self
            for found in (
                model,
                *(self.get(f"{model.name}:{name}") for name in model.facts.adapters),
            )
        ]

    def get(self, name: str) -> Model:
        """ApiError 404 for a name that is not served."""
        base, _, adapter = name.rpartition(":")
        if name not in self._models and base in self._models and adapter in self._models[base].facts.adapters:
            model = self._models[base]
            return replace(model, name=name, adapter=adapter, adapter_digest=model.facts.adapters[adapter])
        if name not in self._models:
            known = ", ".join(model.name for model in self.all())
            raise ApiError(
                404,
                "model_not_found",
                f"the model {name[:200]!r} is not served here; there are: {known}",
                param="model",
            )
        return self._models[name]
