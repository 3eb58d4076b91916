"""Second moments of the inputs of every decoder matrix, from calibration sequences that stream through the
reference model.

Knows which inputs a matrix has and on which routes. Knows nothing of how matrices are rounded or stored.

A matrix is calibrated behind the quantized matrices before it: its inputs are what they will be, and beside
them stand those of the original model, which it is to come close to. The token table is stored first of all:
where it scores tokens too, its inputs come from a pass through the original weights. LoRA branches act as
they are in the checkpoint, and one is calibrated on its own route.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phirt_export.calibration.stream import TABLE, LayerStream
from phirt_export.graphs.linear import StoredRows
from phirt_export.precision import product_type
from phirt_export.reference import DecoderConfig
from phirt_quant.drift import InputMoments

HEAD, NORM = "lm_head.weight", "model.norm.weight"
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+?)\.(base_layer|lora_A\.\w+|lora_B\.\w+)\.weight")
# The table embeds tokens as well as it scores them, and an embedding wants every direction alike: the errors
# of both are weighed through a stronger damping. Measured on the nano model: mean KL 0.0068 for 0.0076.
_TABLE_DAMPING = 0.1
# Positions of one route that are looked at. Time and memory grow with them; more tell little that is new.
HESSIAN_TOKENS = 8192
# From this width on, layers are passed in bfloat16 where the machine has instructions for it: twice as fast,
# and narrow ones take no time.
_WIDE = 2048
# Outputs of these projections are added to what this norm reads. Norms divide by the size of the residual
# stream, so errors in it count by their share of it: a few positions of a hundred times the size would
# otherwise decide over all others.
_ADDED_TO = {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}
_WATCHED = (*_ADDED_TO, *_ADDED_TO.values(), "self_attn.qkv_proj", "mlp.gate_up_proj")
# Positions at which the residual stream is zero: their errors count like those of so small a stream.
_LEAST_SQUARE = 1e-8


def _pass_products(decoder: DecoderConfig) -> torch.dtype:
    """What layers multiply in while their inputs are looked at."""
    return product_type(torch.device("cpu")) if decoder.hidden_size >= _WIDE else torch.float32


class Hessians:
    """The second moments for one export, asked for in the order in which matrices are stored.

    Out of order it is right too, and takes a pass from the start.
    """

    def __init__(self, stream: LayerStream) -> None:
        of = stream.source, stream.config, stream.sequences, _pass_products(stream.config.decoder)
        self._stream, self._original = LayerStream(*of), LayerStream(*of)
        self._brought: tuple[int, list[dict[str, Tensor]]] | None = None

    def damping(self, tensor: str) -> float | None:
        """The damping that suits a matrix; None for the usual one."""
        return _TABLE_DAMPING if tensor == TABLE else None

    def moments(self, tensor: str, stored: StoredRows) -> InputMoments | None:
        """Moments over the inputs of a decoder matrix; None for one that has no inputs here: a table that
        only embeds, a matrix of an encoder, a branch whose route the data does not take. Those of base
        projections tell of drift, too.

        Args:
            stored: reads matrices of this export back; see `graphs.linear.StoredRows`.
        """
        with torch.no_grad():
            if tensor == (TABLE if self._stream.config.decoder.tied else HEAD):
                return self._head_moments(None if tensor == TABLE else stored)
            if (found := _IN_LAYER.fullmatch(tensor)) is None:
                return None
            index, projection, part = int(found[1]), found[2], found[3]
            if part == "base_layer":
                return self._base_moments(index, projection, stored)
            inputs = _Moments()
            module = f"{projection}.{part}"
            for _, brought in self._stream.inputs(index, (module,), stored, part.split(".")[1]):
                inputs.add(brought[module], brought[module])
            return inputs.result()

    def _base_moments(self, index: int, projection: str, stored: StoredRows) -> InputMoments | None:
        """Both models side by side: the quantized one as far as it is stored, and the original."""
        inputs, drift, missing = _Moments(), _Moments(), _Moments()
        norm = _ADDED_TO.get(projection)
        modules = (projection,) if norm is None else (norm, projection)
        passes = self._stream.inputs(index, modules, stored)
        for (_, quantized), original in zip(passes, self._original_inputs(index), strict=True):
            x, y = quantized[projection].float(), original[projection].float()
            if norm is not None:
                scale = original[norm].square().mean(dim=-1, keepdim=True).add(_LEAST_SQUARE).rsqrt()
                x, y = x * scale, y * scale
                missing.add((original[norm] - quantized[norm]) * scale, x)
            inputs.add(x, x)
            drift.add(y - x, x)
        return inputs.result(drift, missing)

    def _original_inputs(self, index: int) -> list[dict[str, Tensor]]:
        """What the original layer brings its projections and norms, for every sequence; of one layer at a
        time.
        """
        if self._brought is None or self._brought[0] != index:
            self._brought = None
            self._brought = index, self._original.passed(index, _WATCHED)
        return self._brought[1]

    def _head_moments(self, stored: StoredRows | None) -> InputMoments | None:
        stream = self._original if stored is None else self._stream
        decoder = stream.config.decoder
        weight = torch.from_numpy(stream.source.tensor(NORM))
        inputs = _Moments()
        for hidden in stream.before(decoder.num_layers, stored):
            x = torch.nn.functional.rms_norm(hidden, weight.shape, weight, decoder.norm_eps)
            inputs.add(x, x)
        return inputs.result()


class _Moments:
    """Sums of u xᵀ over positions, in float32: they are sums of products, long before they are sums of
    sequences.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        """Take in u [..., n] and x [..., K]."""
        u, x = (of.reshape(-1, of.shape[-1]).float() for of in (left, right))
        self._sum = u.T @ x if self._sum is None else self._sum.addmm_(u.T, x)
        self._count += len(x)

    def mean(self) -> npt.NDArray[np.float32] | None:
        """E[u xᵀ]; None where nothing was added."""
        if self._sum is None:
            return None
        mean: npt.NDArray[np.float32] = self._sum.div_(self._count).numpy()
        return mean

    def result(self, drift: _Moments | None = None, missing: _Moments | None = None) -> InputMoments | None:
        """These as the moments of inputs, with the others beside them; None where nothing was added."""
        inputs = self.mean()
        if inputs is None:
            return None
        others = (None if of is None else of.mean() for of in (drift, missing))
        return InputMoments(inputs, self._count, *others)
