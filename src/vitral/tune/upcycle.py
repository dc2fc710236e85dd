"""From dense models to a mixture of experts.

Sparse upcycling (arXiv 2212.05055) copies one model's feed-forward networks; Branch-Train-MiX (arXiv
2403.07816) takes them from branches that were trained apart, and averages all else. Because the chosen
experts' shares sum to one, equal copies are exactly the dense model, whatever the router says.

A router that starts from data multiplies what the real router multiplies, the normalised input of the
feed-forward part: its rows are the domains' mean inputs, centred over the domains, of unit length, scaled
so that the logits have unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vitral.errors import TuneError
from vitral.formats.canonical import Checkpoint
from vitral.formats.weights import Tensor as StoredTensor
from vitral.formats.weights import Weights
from vitral.model.names import tensor_shapes
from vitral.model.spec import MoeSpec
from vitral.tune.batch import Row
from vitral.tune.export import computed
from vitral.tune.forward import Packed, Taps, Transformer, load_model

__all__ = ["averaged", "routers_from_data", "routing_information", "upcycle"]

Domains = Mapping[str, Sequence[Row]]
"""Rows of each domain by its name, in the order of the experts."""


def upcycle(
    models: Sequence[Checkpoint],
    n_experts_per_token: int,
    *,
    copies: int = 1,
    dense: int = 0,
    noise: float = 0.0,
    routers: Mapping[int, Tensor] | None = None,
    seed: int = 0,
) -> Checkpoint:
    """A Mixtral-type model with an expert for each model, or `copies` of each.

    The first `dense` layers stay as they are, without experts; Mixtral's layout has none such, so that others read
    the model only where it is 0. Attention, dense layers, norms and embeddings are averaged over the models. `noise` adds normal noise of that share of each matrix's own spread, so that equal copies can part.
    `routers` are (E, C) matrices by layer (`routers_from_data`); without them they are small and random.
    Raises TuneError for models that differ in architecture or are mixtures already.
    """
    first, sources = models[0], [model for model in models for _ in range(copies)]
    for model in models:
        if model.spec != first.spec:
            raise TuneError(f"{model.path} has another architecture than {first.path}; experts must fit each other")
        if model.spec.moe is not None:
            raise TuneError(f"{model.path} is a mixture already")
    if len(sources) < 2:
        raise TuneError("a mixture needs two experts or more; give several models, or copies of one")
    spec = replace(first.spec, moe=MoeSpec(len(sources), n_experts_per_token, dense))
    tensors: dict[str, StoredTensor] = {}
    for name, shape in tensor_shapes(spec).items():
        if ".mlp.experts." in name:
            head, e, part = name.replace(".experts", "").rsplit(".", 3)[0], *name.split(".")[4:6]
            read = partial(_expert, sources[int(e)], f"{head}.{part}.weight", noise, seed * 7919 + int(e))
        elif name.endswith("mlp.router.weight"):
            read = partial(_router, routers, int(name.split(".")[1]), shape, seed)
        else:
            read = partial(_average, models, name)
        tensors[name] = computed(name, read, shape)
    return replace(first, spec=spec, weights=Weights(spec, tensors))


def routers_from_data(model: Transformer, domains: Domains) -> dict[int, Tensor]:
    """A router (E, C) for each layer, with a row for each domain in order. Give the averaged model, or the base."""
    if len(domains) < 2:
        raise TuneError(f"{len(domains)} domain; a router needs two or more to tell apart")
    inputs = {name: _router_inputs(model, rows) for name, rows in domains.items()}
    found: dict[int, Tensor] = {}
    for layer in range(model.spec.n_layers):
        each = [inputs[name][layer] for name in domains]  # (T, C) of each domain
        means = torch.stack([x.mean(0) for x in each])
        centred = means - means.mean(0)
        rows = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
        logits = torch.cat(each) @ rows.T
        found[layer] = rows / logits.std().clamp(min=1e-12)
    return found


def routing_information(model: Transformer, domains: Domains, seed: int = 0) -> list[dict[str, float]]:
    """For each layer with experts, what the first choice of expert tells of the domain, in nats, and what chance alone would.

    information: mutual information of domain and expert over all tokens. shuffled: the same with the
    tokens' domains shuffled. entropy: of the experts' loads (log E when even). dead: experts that no token chose.
    """
    assert model.spec.moe is not None, "only a mixture routes"
    n, chosen, labels = model.spec.moe.n_experts, dict[int, list[Tensor]](), list[Tensor]()
    for number, rows in enumerate(domains.values()):
        seen = _seen(model, rows, "hook_expert_indices")
        for layer, value in seen.items():
            chosen.setdefault(layer, []).append(value[:, 0])
        labels.append(torch.full((len(next(iter(seen.values()))),), number))
    domain = torch.cat(labels)
    mixed = domain[torch.randperm(len(domain), generator=torch.Generator().manual_seed(seed))]
    report: list[dict[str, float]] = []
    for layer in sorted(chosen):
        expert = torch.cat(chosen[layer])
        load = torch.bincount(expert, minlength=n) / len(expert)
        report.append({
            "layer": float(layer),
            "information": _mutual(domain, expert, len(domains), n),
            "shuffled": _mutual(mixed, expert, len(domains), n),
            "entropy": float(torch.special.entr(load).sum()),
            "dead": float((load == 0).sum()),
        })  # fmt: skip
    return report


def _mutual(a: Tensor, b: Tensor, n_a: int, n_b: int) -> float:
    joint = torch.bincount(a * n_b + b, minlength=n_a * n_b).view(n_a, n_b).double() / len(a)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    some = joint > 0
    return float((joint[some] * (joint[some] / apart[some]).log()).sum())


def _router_inputs(model: Transformer, rows: Sequence[Row]) -> dict[int, Tensor]:
    return _seen(model, rows, "hook_in")


def _seen(model: Transformer, rows: Sequence[Row], which: str) -> dict[int, Tensor]:
    """The values of one tap of every feed-forward part, by layer, over all tokens of the rows."""
    found: dict[int, list[Tensor]] = {}

    def see(name: str, value: Tensor) -> None:
        found.setdefault(int(name.split(".")[1]), []).append(value)

    taps = Taps(see, lambda name: name.endswith("mlp." + which))
    with torch.no_grad():
        for row in rows:
            model(Packed.of([row.ids]), taps)
    return {layer: torch.cat(values) for layer, values in found.items()}


def _average(models: Sequence[Checkpoint], name: str) -> Tensor:
    total = sum((torch.tensor(model.weights[name].dequantize()) for model in models), torch.zeros(1))
    return total / len(models)


def _expert(model: Checkpoint, name: str, noise: float, seed: int) -> Tensor:
    value = torch.tensor(model.weights[name].dequantize())
    if noise:
        generator = torch.Generator().manual_seed(seed + sum(name.encode()))
        value = value + noise * value.std() * torch.randn(value.shape, generator=generator)
    return value


def _router(routers: Mapping[int, Tensor] | None, layer: int, shape: tuple[int, ...], seed: int) -> Tensor:
    if routers is None:
        generator = torch.Generator().manual_seed(seed * 7919 + layer)
        return torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    if tuple(routers[layer].shape) != shape:
        raise TuneError(
            f"the router of layer {layer} is {tuple(routers[layer].shape)}; {shape[0]} experts want {shape}"
        )
    return routers[layer].float()


def averaged(models: Sequence[Checkpoint]) -> Transformer:
    """The dense model that all of a mixture but its experts comes from."""
    first = models[0]
    tensors = {
        name: computed(name, partial(_average, models, name), first.weights[name].shape) for name in first.weights
    }
    return load_model(replace(first, weights=Weights(first.spec, tensors)))
