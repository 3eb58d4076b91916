"""Random adapters of a user's, and the reference model with one in its weights."""

from __future__ import annotations

import copy

import numpy as np
import torch

from phirt.bundle.lora import Branch, Lora, projections
from phirt_export.reference import Model


def random_lora(model: Model, seed: int, ranks: tuple[int, ...] = (4, 1, 7)) -> Lora:
    """Branches of different ranks, at some of the projections only."""
    rng, branches = np.random.default_rng(seed), {}
    for layer in range(model.config.decoder.num_layers):
        for i, projection in enumerate(projections(model.config.decoder)):
            if (layer + i) % 4 == 3:
                continue
            rank = ranks[(layer + i) % len(ranks)]
            a = rng.standard_normal((projection.inputs, rank)) / projection.inputs**0.5
            b = 0.4 * rng.standard_normal((rank, projection.outputs)) / rank**0.5
            branches[layer, projection.name] = Branch(a.astype(np.float32), b.astype(np.float32))
    return Lora(branches)


def fused(model: Model, lora: Lora) -> Model:
    """The reference model with the branches added to its weights."""
    other = copy.deepcopy(model)
    names = {p.name: p.module for p in projections(model.config.decoder)}
    with torch.no_grad():
        for (layer, name), branch in lora.branches.items():
            weight = other.get_parameter(f"model.layers.{layer}.{names[name]}.base_layer.weight")
            weight.add_(torch.from_numpy((branch.a @ branch.b).T))
    return other
