"""Second moments of the inputs of every decoder matrix, from calibration sequences that stream through the
reference model one layer at a time.

Knows the order of layers, which inputs a matrix has and on which routes, and what is in memory: the
activations between two layers, the weights of one layer, the moments of one matrix. Knows nothing of how
matrices are rounded or stored.

A matrix is calibrated behind the quantized matrices before it: its inputs are what they will be. The token
table is stored first of all: where it scores tokens too, its inputs come from a pass through the original
weights. LoRA branches act as they are in the checkpoint, and one is calibrated on its own route.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phirt_export.calibration.sequences import Sequence, load_tensors
from phirt_export.checkpoint import expected_shapes
from phirt_export.graphs.linear import StoredRows, WeightSource
from phirt_export.reference import ROUTES, Model, ModelConfig, Route
from phirt_export.reference.decoder import Layer, rope_tables

_TABLE, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+?)\.(base_layer|lora_A\.\w+|lora_B\.\w+)\.weight")
# Rows of the token table that are held at a time.
_TABLE_ROWS = 4096
# The table embeds tokens as well as it scores them, and an embedding wants every direction alike: the errors
# of both are weighed through a stronger damping. Measured on the nano model: mean KL 0.0068 for 0.0076.
_TABLE_DAMPING = 0.1


class _Reached(Exception):  # noqa: N818 - it is no error
    """The forward pass of a layer has come to the input that is asked for."""


@dataclasses.dataclass
class _Position:
    """Where the activations are: before layer `layer`, of a pass over stored or original weights."""

    is_stored: bool
    layer: int
    hidden: list[Tensor]


class Hessians:
    """The second moments for one export, asked for in the order in which matrices are stored.

    Out of order it is right too, and takes a pass from the start.
    """

    def __init__(self, source: WeightSource, config: ModelConfig, sequences: Items[Sequence]) -> None:
        self._source, self._config, self._sequences = source, config, sequences
        with torch.device("meta"):
            self._model = Model(config).eval()
        rope = config.decoder.rope
        backbone = self._model.model
        backbone.rope_cos, backbone.rope_sin = rope_tables(rope, rope.original_context)
        self._names = list(expected_shapes(config))
        self._position: _Position | None = None
        self._layer: tuple[int, bool, Layer] | None = None
        self._refreshed: set[str] = set()

    def damping(self, tensor: str) -> float | None:
        """The damping that suits a matrix; None for the usual one."""
        return _TABLE_DAMPING if tensor == _TABLE else None

    def hessian(self, tensor: str, stored: StoredRows) -> npt.NDArray[np.float64] | None:
        """E[x xᵀ], float64 [K, K], over the inputs of a decoder matrix; None for one that has no inputs here:
        a table that only embeds, a matrix of an encoder, a branch whose route the data does not take.

        Args:
            stored: reads matrices of this export back; see `graphs.linear.StoredRows`.
        """
        with torch.no_grad():
            if tensor == (_TABLE if self._config.decoder.tied else _HEAD):
                return self._head_moments(stored, is_stored=tensor == _HEAD)
            if (found := _IN_LAYER.fullmatch(tensor)) is None:
                return None
            index, projection, part = int(found[1]), found[2], found[3]
            self._advance(index, True, stored)
            module = projection if part == "base_layer" else f"{projection}.{part}"
            return self._layer_moments(module, part.split(".")[1:], index, stored)

    def _head_moments(self, stored: StoredRows, is_stored: bool) -> npt.NDArray[np.float64] | None:
        position = self._advance(self._config.decoder.num_layers, is_stored, stored)
        weight = torch.from_numpy(self._source.tensor(_NORM))
        moments = _Moments()
        for hidden in position.hidden:
            eps = self._config.decoder.norm_eps
            moments.add(torch.nn.functional.rms_norm(hidden, weight.shape, weight, eps))
        return moments.result()

    def _layer_moments(
        self, module: str, adapter: Items[str], index: int, stored: StoredRows
    ) -> npt.NDArray[np.float64] | None:
        """Moments over the sequences of the adapter's route, or over all of them."""
        position = self._position
        assert position is not None
        layer, moments = self._loaded(index, True, stored), _Moments()

        def hook(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            moments.add(args[0])
            raise _Reached

        handle = layer.get_submodule(module).register_forward_pre_hook(hook)
        try:
            for sequence, hidden in zip(self._sequences, position.hidden, strict=True):
                if not adapter or ROUTES[sequence.route].adapter in adapter:
                    with contextlib.suppress(_Reached):
                        self._through(layer, hidden, sequence.route)
        finally:
            handle.remove()
        return moments.result()

    def _advance(self, index: int, is_stored: bool, stored: StoredRows) -> _Position:
        """Bring the activations to the input of layer `index`."""
        at = self._position
        if at is None or at.is_stored != is_stored or at.layer > index:
            at = self._position = None
            at = self._position = _Position(is_stored, 0, self._embedded(is_stored, stored))
        while at.layer < index:
            layer = self._loaded(at.layer, is_stored, stored)
            for i, sequence in enumerate(self._sequences):
                at.hidden[i] = self._through(layer, at.hidden[i], sequence.route)
            at.layer += 1
        return at

    def _through(self, layer: Layer, hidden: Tensor, route: Route) -> Tensor:
        """One layer over one sequence [1, T, hidden]."""
        length = hidden.shape[1]
        cos, sin = self._model.model.rotary(length)
        mask = self._model.window_mask(length, hidden.device)
        y: Tensor = layer(hidden, cos, sin, mask, ROUTES[route].adapter)
        return y

    def _embedded(self, is_stored: bool, stored: StoredRows) -> list[Tensor]:
        """Embeddings [1, T, hidden] of every sequence, media in place; a bounded part of the table is read at
        a time.
        """
        ids = np.unique(np.concatenate([sequence.ids for sequence in self._sequences]))
        table = np.empty((len(ids), self._config.decoder.hidden_size), np.float32)
        for start in range(0, self._config.decoder.vocab_size, _TABLE_ROWS):
            stop = min(start + _TABLE_ROWS, self._config.decoder.vocab_size)
            first, last = np.searchsorted(ids, (start, stop))
            if first < last:
                rows = stored(_TABLE, start, stop) if is_stored else None
                rows = self._source.rows(_TABLE, start, stop) if rows is None else rows
                table[first:last] = rows[ids[first:last] - start]
        embedded = []
        for sequence in self._sequences:
            x = torch.from_numpy(table[np.searchsorted(ids, sequence.ids)])
            if sequence.media is not None:
                x[self._model.is_media(torch.tensor(sequence.ids))] = sequence.media
            embedded.append(x[None])
        return embedded

    def _loaded(self, index: int, is_stored: bool, stored: StoredRows) -> Layer:
        """Layer `index` with weights, those of the base stored ones as far as they are stored by now."""
        prefix = f"model.layers.{index}."
        if self._layer is None or self._layer[:2] != (index, is_stored):
            self._layer = None  # one layer at a time
            with torch.device("meta"):
                layer = Layer(self._config.decoder, self._config.adapters)
            layer = layer.to_empty(device="cpu").eval()
            names = [name for name in self._names if name.startswith(prefix)]
            load_tensors(layer, self._source.tensor, names, prefix)
            self._layer, self._refreshed = (index, is_stored, layer), set()
        layer = self._layer[2]
        if is_stored:
            for name in self._names:
                is_base = name.startswith(prefix) and name.endswith("base_layer.weight")
                if is_base and name not in self._refreshed:
                    rows = stored(name, 0, self._source.shape(name)[0])
                    if rows is not None:
                        load_tensors(layer, lambda _, rows=rows: rows, [name], prefix)
                        self._refreshed.add(name)
        return layer


class _Moments:
    """Sums of x xᵀ over positions, in float64."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, inputs: Tensor) -> None:
        """Take in float32 [..., K]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        product = (rows.T @ rows).double()
        self._sum = product if self._sum is None else self._sum.add_(product)
        self._count += len(rows)

    def result(self) -> npt.NDArray[np.float64] | None:
        """The mean; None where nothing was added."""
        if self._sum is None:
            return None
        mean: npt.NDArray[np.float64] = self._sum.div_(self._count).numpy()
        return mean
