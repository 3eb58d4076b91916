"""Reference models with the weights of a checkpoint: all of them in memory, or the decoder's layers each time
that they run.

Knows which tensors go where. Knows nothing of what passes through a model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.reference import Model
from phirt_export.reference.decoder import rope_tables

LAYERS = "model.layers."


def load_tensors(
    module: nn.Module, tensor: Callable[[str], np.ndarray], names: Iterable[str], prefix: str = ""
) -> None:
    """Copy the tensors `names`, which begin with `prefix`, into a module that lies there; one at a time is
    held twice.
    """
    state = module.state_dict()
    with torch.no_grad():
        for name in names:
            state[name[len(prefix) :]].copy_(torch.from_numpy(tensor(name)))


def load_model(checkpoint: Checkpoint) -> Model:
    """The reference model in float32."""
    model = _empty_model(checkpoint)
    _materialize(model, checkpoint, list(expected_shapes(checkpoint.config)))
    return model


def streamed_model(checkpoint: Checkpoint) -> Model:
    """The reference model in float32, of whose layers the one that runs is in memory. Every pass reads all of
    them, so that few long passes suit it better than many short ones.
    """
    model = _empty_model(checkpoint)
    names = list(expected_shapes(checkpoint.config))
    layers, model.model.layers = model.model.layers, nn.ModuleList()
    _materialize(model, checkpoint, [name for name in names if not name.startswith(LAYERS)])
    model.model.layers = layers
    for index, layer in enumerate(layers):
        prefix = f"{LAYERS}{index}."
        own = [name for name in names if name.startswith(prefix)]
        layer.register_forward_pre_hook(functools.partial(_fetch, checkpoint, own, prefix))
        layer.register_forward_hook(_drop, always_call=True)
    return model


def _empty_model(checkpoint: Checkpoint) -> Model:
    with torch.device("meta"):
        return Model(checkpoint.config).eval()


def _materialize(model: Model, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    model.to_empty(device="cpu")
    rope = checkpoint.config.decoder.rope
    model.model.rope_cos, model.model.rope_sin = rope_tables(rope, rope.original_context)
    load_tensors(model, checkpoint.tensor, names)


def _fetch(checkpoint: Checkpoint, names: Iterable[str], prefix: str, layer: nn.Module, _: object) -> None:
    layer.to_empty(device="cpu")
    load_tensors(layer, checkpoint.tensor, names, prefix)


def _drop(layer: nn.Module, _: object, __: object) -> None:
    layer.to("meta")
