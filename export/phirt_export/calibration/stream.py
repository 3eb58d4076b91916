"""Calibration sequences that stream through the reference model one layer at a time.

Knows the order of layers and what is in memory: the activations between two layers and the weights of one.
Knows nothing of what is measured on the way, or of how matrices are rounded or stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from phirt_export.calibration.sequences import Sequence
from phirt_export.checkpoint import expected_shapes
from phirt_export.graphs.linear import StoredRows, WeightSource
from phirt_export.model_weights import load_tensors
from phirt_export.reference import ROUTES, Model, ModelConfig, Route
from phirt_export.reference.decoder import Layer, RoutedLinear, rope_tables

TABLE = "model.embed_tokens.weight"
# Rows of the token table that are held at a time.
_TABLE_ROWS = 4096


@dataclasses.dataclass
class _Position:
    """Where the activations are: before layer `layer`, of a pass over stored or original weights."""

    is_stored: bool
    layer: int
    hidden: list[Tensor]


class _Reached(Exception):  # noqa: N818 - it is no error
    """The forward pass of a layer has come to the input that is asked for."""


@contextlib.contextmanager
def _caught(layer: Layer, modules: Items[str], ends: bool) -> Iterator[dict[str, Tensor]]:
    """Puts what reaches modules of a layer, by name, into the dictionary; the pass that runs inside may end
    at the last of them.
    """
    inputs: dict[str, Tensor] = {}

    def catch(name: str, _: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[name] = args[0]
        if ends and name == modules[-1]:
            raise _Reached

    handles = [
        layer.get_submodule(name).register_forward_pre_hook(functools.partial(catch, name))
        for name in modules
    ]
    try:
        with contextlib.suppress(_Reached):
            yield inputs
    finally:
        for handle in handles:
            handle.remove()


class LayerStream:
    """Sequences on their way through the layers of a model of which one layer is in memory.

    Every `stored` reads matrices of the running export back, for the pass in which a layer is calibrated
    behind the quantized ones before it; see `graphs.linear.StoredRows`. None means a pass through the
    original weights. Layers asked for out of order are right too, and take a pass from the start.

    Args:
        products: what layers multiply matrices in; norms and the stream between layers are float32.
    """

    def __init__(
        self,
        source: WeightSource,
        config: ModelConfig,
        sequences: Items[Sequence],
        products: torch.dtype = torch.float32,
    ) -> None:
        self.source, self.config, self.sequences, self.products = source, config, sequences, products
        with torch.device("meta"):
            self._model = Model(config).eval()
        rope = config.decoder.rope
        backbone = self._model.model
        backbone.rope_cos, backbone.rope_sin = rope_tables(rope, rope.original_context)
        self._names = list(expected_shapes(config))
        self._position: _Position | None = None
        self._layer: tuple[int, bool, Layer] | None = None
        self._refreshed: set[str] = set()

    def before(self, index: int, stored: StoredRows | None) -> list[Tensor]:
        """Activations [1, T, hidden] of every sequence at the input of layer `index`, or behind the last."""
        at = self._position
        if at is None or at.is_stored != (stored is not None) or at.layer > index:
            at = self._position = None
            at = self._position = _Position(stored is not None, 0, self._embedded(stored))
        while at.layer < index:
            layer = self.layer(at.layer, stored)
            for i, sequence in enumerate(self.sequences):
                at.hidden[i] = self.through(layer, at.hidden[i], sequence.route)
            at.layer += 1
        return at.hidden

    def inputs(
        self, index: int, modules: Items[str], stored: StoredRows | None, adapter: str | None = None
    ) -> Iterator[tuple[Route, dict[str, Tensor]]]:
        """The route of each sequence and what it brings modules of layer `index`, [1, T, K] by name: of all
        of them, or of those whose route has the adapter. The layer is run no further than the last module.
        """
        hidden, layer = self.before(index, stored), self.layer(index, stored)
        for i, sequence in enumerate(self.sequences):
            if adapter in (None, ROUTES[sequence.route].adapter):
                with _caught(layer, modules, ends=True) as inputs:
                    self.through(layer, hidden[i], sequence.route)
                yield sequence.route, inputs

    def passed(self, index: int, modules: Items[str]) -> list[dict[str, Tensor]]:
        """What every sequence brings modules of the original layer `index`, by name, all at once; the
        activations stand behind the layer then.
        """
        hidden, layer = self.before(index, None), self.layer(index, None)
        assert self._position is not None
        brought = []
        for i, sequence in enumerate(self.sequences):
            with _caught(layer, modules, ends=False) as inputs:
                hidden[i] = self.through(layer, hidden[i], sequence.route)
            brought.append(inputs)
        self._position.layer += 1
        self._layer = None  # the activations are behind it
        return brought

    def layer(self, index: int, stored: StoredRows | None) -> Layer:
        """Layer `index` with weights, those of the base stored ones as far as they are stored by now."""
        is_stored = stored is not None
        prefix = f"model.layers.{index}."
        if self._layer is None or self._layer[:2] != (index, is_stored):
            self._layer = None  # one layer at a time
            with torch.device("meta"):
                layer = Layer(self.config.decoder, self.config.adapters)
            layer = layer.to_empty(device="cpu").eval()
            for module in layer.modules():
                if isinstance(module, RoutedLinear):
                    module.base_layer.to(self.products)
            names = [name for name in self._names if name.startswith(prefix)]
            load_tensors(layer, self.source.tensor, names, prefix)
            self._layer, self._refreshed = (index, is_stored, layer), set()
        layer = self._layer[2]
        if stored is not None:
            for name in self._names:
                is_base = name.startswith(prefix) and name.endswith("base_layer.weight")
                if is_base and name not in self._refreshed:
                    rows = stored(name, 0, self.source.shape(name)[0])
                    if rows is not None:
                        load_tensors(layer, {name: rows}.__getitem__, [name], prefix)
                        self._refreshed.add(name)
        return layer

    def through(self, layer: Layer, hidden: Tensor, route: Route) -> Tensor:
        """One layer over one sequence [1, T, hidden]."""
        length = hidden.shape[1]
        cos, sin = self._model.model.rotary(length)
        mask = self._model.window_mask(length, hidden.device)
        with torch.autocast("cpu", self.products, enabled=self.products != torch.float32):
            y: Tensor = layer(hidden, cos, sin, mask, ROUTES[route].adapter)
        return y

    def is_media(self, sequence: Sequence) -> Tensor:
        """Bool [T]: where a row of media features stands in the place of a token's embedding."""
        return self._model.is_media(torch.tensor(sequence.token_ids))

    def _embedded(self, stored: StoredRows | None) -> list[Tensor]:
        """Embeddings [1, T, hidden] of every sequence, media in place; a bounded part of the table is read at
        a time.
        """
        used = np.unique(np.concatenate([sequence.token_ids for sequence in self.sequences]))
        table = np.empty((len(used), self.config.decoder.hidden_size), np.float32)
        for start in range(0, self.config.decoder.vocab_size, _TABLE_ROWS):
            stop = min(start + _TABLE_ROWS, self.config.decoder.vocab_size)
            first, last = np.searchsorted(used, (start, stop))
            if first < last:
                rows = None if stored is None else stored(TABLE, start, stop)
                rows = self.source.rows(TABLE, start, stop) if rows is None else rows
                table[first:last] = rows[used[first:last] - start]
        embedded = []
        for sequence in self.sequences:
            x = torch.from_numpy(table[np.searchsorted(used, sequence.token_ids)])
            if sequence.media is not None:
                x[self.is_media(sequence)] = sequence.media
            embedded.append(x[None])
        return embedded
