"""What rounding each decoder matrix costs the model's predictions, in nats, format by format.

Knows how much the predictions depend on each weight and what plain rounding does to it. Knows nothing of
budgets, and does not round by the inputs: what error compensation takes off is estimated.

The cost of a small change d of the weights is the divergence of the predictions, to second order half of
dᵀ F d with F the Fisher information (Martens, arXiv 1412.1193, section 5). Of F the diagonal is taken, its
entries as the mean over positions of (gradient of the matrix's output)² · (input)², as if positions and
channels were independent: rounding errors nearly are. Labels are drawn from the model's own predictions, for
the head the expectation over them is exact.

The gradients come from one pass forward and one back through the original weights, one layer in memory, with
the activations before every layer kept: 1.3 GB at a width of 3072 and 32 layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phirt_export.calibration.hessians import HEAD, NORM
from phirt_export.calibration.stream import TABLE, LayerStream
from phirt_export.graphs.linear import Matrix
from phirt_export.graphs.weight_format import GPTQ, WeightFormat
from phirt_export.reference import DecoderConfig
from phirt_export.reference.decoder import RoutedLinear
from phirt_quant.blockwise import dequantize, highest_magnitude, quantize
from phirt_quant.gptq import ErrorCompensation

# Positions of one route that are looked at: on SmolLM2-135M at 5.0 bits a weight, costs from 1,024 and 4,096
# positions led to a mean KL of 0.0973 and 0.0898. Fewer where each takes long: so many weights times
# positions take half a minute on two cores.
_FEWEST_TOKENS, _MOST_TOKENS = 1024, 4096
_WORK = 500_000_000_000
# Error compensation is estimated as if it worked within so many columns: few positions say little about how
# one input follows from thousands.
_COMPENSATED_COLUMNS = 512
_TRIED_BITS = 4
INPUT_BLOCK = 64


class MatrixRows(NamedTuple):
    """Rows first..stop-1 of a matrix, which have one format."""

    tensor: str
    first: int
    stop: int


Formats = Mapping[MatrixRows, Items[WeightFormat]]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Expected divergence of the predictions per position, in nats, that comes from some rows alone.

    Attributes:
        weights: for each of their formats, of rounding them.
        inputs: of rounding their inputs to int8 in blocks of INPUT_BLOCK; a table has none.
    """

    weights: Mapping[MatrixRows, tuple[float, ...]]
    inputs: Mapping[MatrixRows, float]


def sensitivity_tokens(decoder: DecoderConfig) -> int:
    """How many positions of one route are looked at."""
    attention = decoder.hidden_size * (decoder.qkv_size + decoder.num_heads * decoder.head_dim)
    layer = attention + 3 * decoder.hidden_size * decoder.intermediate_size
    return min(max(_WORK // (decoder.num_layers * layer), _FEWEST_TOKENS), _MOST_TOKENS)


def rounding_costs(stream: LayerStream, formats: Formats, note: Callable[[str], None]) -> Costs:
    """What rounding costs.

    Args:
        stream: sequences on their routes; all of their activations are kept.
        formats: quantized ones by matrix: base projections, the token table, a head of its own.
        note: called with each layer's name before it is looked at.
    """
    costs = _Costs(stream, formats)
    layers = range(stream.config.decoder.num_layers)
    hidden = []
    with torch.no_grad():
        for index in layers:
            note(f"model.layers.{index}")
            hidden.append(list(stream.before(index, None)))
        gradients = _through_head(stream, stream.before(len(layers), None), costs)
    for index in reversed(layers):
        note(f"model.layers.{index}")
        gradients = _back_through(stream, index, hidden.pop(), gradients, costs)
    _through_embedding(stream, gradients, costs)
    weights = {rows: tuple(of) for rows, of in costs.weights.items()}
    return Costs(weights, dict(costs.inputs))


class _Costs:
    """Sums by rows and format, in nats per position."""

    def __init__(self, stream: LayerStream, formats: Formats) -> None:
        self._formats = formats
        self._positions = sum(len(sequence.token_ids) for sequence in stream.sequences)
        self.weights = {rows: [0.0] * len(of) for rows, of in formats.items()}
        self.inputs: dict[MatrixRows, float] = {}
        self._of: dict[str, list[MatrixRows]] = {}
        for rows in formats:
            self._of.setdefault(rows.tensor, []).append(rows)

    def rows_of(self, tensor: str) -> Items[MatrixRows]:
        """The rows of a tensor that have formats of their own."""
        return self._of.get(tensor, ())

    def add(
        self,
        tensor: str,
        values: np.ndarray,
        information: Tensor,
        remaining: Tensor | None = None,
        start: int = 0,
    ) -> None:
        """Take in rows [n, K] of a matrix from `start` on, the sums over positions of their diagonal
        information, and the share [K] of each column's error that compensation leaves.
        """
        for rows in self.rows_of(tensor):
            part = slice(max(rows.first - start, 0), max(rows.stop - start, 0))
            if len(values[part]):
                self.add_to(rows, values[part], information[part], remaining)

    def add_inputs(self, tensor: str, sums: Tensor) -> None:
        """Take in what errors of the inputs cost each row of a matrix, summed over positions, [N]."""
        for rows in self.rows_of(tensor):
            self.inputs[rows] = 0.5 * float(sums[rows.first : rows.stop].sum()) / self._positions

    def add_to(
        self, of: MatrixRows, rows: np.ndarray, information: Tensor, remaining: Tensor | None = None
    ) -> None:
        """Take in some of these rows."""
        known: dict[tuple[str, int], float] = {}
        for i, form in enumerate(self._formats[of]):
            block = form.block_for(rows.shape[1])
            if (form.method, block) not in known:
                rounded = dequantize(quantize(rows, _TRIED_BITS, block))
                squares = torch.from_numpy(np.square(rounded - rows))
                if form.method == GPTQ and remaining is not None:
                    squares *= remaining
                known[form.method, block] = float((squares * information).sum())
            # Errors are as large as steps.
            share = (highest_magnitude(_TRIED_BITS) / highest_magnitude(form.bits)) ** 2
            self.weights[of][i] += 0.5 * share * known[form.method, block] / self._positions


def _through_head(stream: LayerStream, hidden: Items[Tensor], costs: _Costs) -> list[Tensor]:
    """Gradients at the input of the final norm, [1, T, hidden] of each sequence. The head is read twice."""
    decoder = stream.config.decoder
    tensor = TABLE if decoder.tied else HEAD
    weight = torch.from_numpy(stream.source.tensor(NORM))
    norm = functools.partial(torch.nn.functional.rms_norm, normalized_shape=weight.shape, weight=weight)
    x = torch.cat([norm(h, eps=decoder.norm_eps)[0] for h in hidden])
    total, labels = _labels(stream, tensor, x)
    moments = _GroupMoments(x.shape[1])
    moments.add(x)
    remaining, slopes = moments.remaining(), torch.zeros_like(x)
    for start, rows in _slabs(stream, tensor):
        share = torch.exp(x @ rows.T - total[:, None])
        costs.add(tensor, rows.numpy(), (share * (1 - share)).T @ x.square(), remaining, start)
        drawn = torch.nonzero((start <= labels) & (labels < start + len(rows)))[:, 0]
        share[drawn, labels[drawn] - start] -= 1
        slopes += share @ rows
    gradients = []
    for h, slope in zip(hidden, slopes.split([h.shape[1] for h in hidden]), strict=True):
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            norm(h, eps=decoder.norm_eps).backward(slope[None])
        assert h.grad is not None
        gradients.append(h.grad)
    return gradients


def _labels(stream: LayerStream, tensor: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum of all exp(logits) [N], and a label [N] drawn by them: the greatest logit
    after Gumbel noise.
    """
    generator = torch.Generator().manual_seed(0)
    total, highest = torch.full((len(x),), -torch.inf), torch.full((len(x),), -torch.inf)
    labels = torch.zeros(len(x), dtype=torch.int64)
    for start, rows in _slabs(stream, tensor):
        logits = x @ rows.T
        total = torch.logaddexp(total, logits.logsumexp(dim=1))
        noisy, at = (logits - torch.empty_like(logits).exponential_(generator=generator).log()).max(dim=1)
        labels = torch.where(noisy > highest, at + start, labels)
        highest = torch.maximum(noisy, highest)
    return total, labels


def _back_through(
    stream: LayerStream, index: int, hidden: Items[Tensor], gradients: Items[Tensor], costs: _Costs
) -> list[Tensor]:
    """Gradients at the input of a layer, from those at its output."""
    layer = stream.layer(index, None).requires_grad_(False)
    watched: dict[str, _Watched] = {}
    for name, module in layer.named_modules():
        if isinstance(module, RoutedLinear):
            watched[f"model.layers.{index}.{name}.base_layer.weight"] = _Watched(module)
    arrived = []
    for sequence, before, after in zip(stream.sequences, hidden, gradients, strict=True):
        with torch.enable_grad():
            h = before.detach().requires_grad_()
            stream.through(layer, h, sequence.route).backward(after)
        assert h.grad is not None
        arrived.append(h.grad)
    for tensor, projection in watched.items():
        projection.release()
        remaining, start = projection.moments.remaining(), 0
        for rows in Matrix(stream.source, tensor).slabs():
            here = slice(start, start + len(rows))
            costs.add(tensor, rows, projection.information[here], remaining, start)
            start += len(rows)
        costs.add_inputs(tensor, projection.input_costs)
    return arrived


class _Watched:
    """Sums over the positions that pass a projection forth and back: of (gradient of its output)² (its
    input)², of (gradient of its output)² W² (error of its rounded input)², and the moments of its inputs.
    """

    def __init__(self, module: RoutedLinear) -> None:
        self.information = torch.zeros_like(module.base_layer.weight)
        self.input_costs = torch.zeros(len(self.information))
        self._squares = module.base_layer.weight.detach().square()
        self.moments = _GroupMoments(self.information.shape[1])
        self._handle = module.register_forward_hook(self._forth)

    def release(self) -> None:
        """Watch no longer."""
        self._handle.remove()

    def _forth(self, _: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs = args[0].detach().reshape(-1, args[0].shape[-1])
        self.moments.add(inputs)
        squares, errors = inputs.square(), _rounding_errors(inputs).square() @ self._squares.T

        def back(gradient: Tensor) -> None:
            slopes = gradient.reshape(-1, gradient.shape[-1]).square()
            self.information.add_(slopes.T @ squares)
            self.input_costs.add_((slopes * errors).sum(dim=0))

        output.register_hook(back)


def _rounding_errors(inputs: Tensor) -> Tensor:
    """What MatMulNBits' own rounding to int8 changes of inputs [n, K], in blocks of INPUT_BLOCK."""
    columns = inputs.shape[1]
    blocks = F.pad(inputs, (0, -columns % INPUT_BLOCK)).reshape(len(inputs), -1, INPUT_BLOCK)
    step = blocks.abs().amax(dim=-1, keepdim=True).div(127).clamp_min(1e-30)
    errors = (blocks / step).round().mul(step).sub(blocks)
    return errors.reshape(len(inputs), -1)[:, :columns]


class _GroupMoments:
    """Sums of x xᵀ within groups of columns."""

    def __init__(self, columns: int) -> None:
        sizes = (columns - at for at in range(0, columns, _COMPENSATED_COLUMNS))
        self._sums = [torch.zeros((min(size, _COMPENSATED_COLUMNS),) * 2) for size in sizes]

    def add(self, inputs: Tensor) -> None:
        """Take in float32 [n, columns]."""
        for total, x in zip(self._sums, inputs.split(_COMPENSATED_COLUMNS, dim=1), strict=True):
            total.addmm_(x.T, x)

    def remaining(self) -> Tensor:
        """See `ErrorCompensation.remaining`; float32 [columns]."""
        shares = [ErrorCompensation(total.numpy().copy()).remaining for total in self._sums]
        return torch.from_numpy(np.concatenate(shares))


def _through_embedding(stream: LayerStream, gradients: Items[Tensor], costs: _Costs) -> None:
    """What rounding costs the rows of the table that embed tokens."""
    token_ids = torch.cat(
        [torch.tensor(sequence.token_ids)[~stream.is_media(sequence)] for sequence in stream.sequences]
    )
    squares = torch.cat(
        [g[0][~stream.is_media(s)].square() for s, g in zip(stream.sequences, gradients, strict=True)]
    )
    used, places = token_ids.unique(return_inverse=True)
    sums = torch.zeros(len(used), squares.shape[1]).index_add_(0, places, squares)
    for start, rows in _slabs(stream, TABLE):
        for of in costs.rows_of(TABLE):
            first, stop = max(of.first, start), min(of.stop, start + len(rows))
            here = (first <= used) & (used < stop)
            if here.any():
                costs.add_to(of, rows[used[here] - start].numpy(), sums[here])


def _slabs(stream: LayerStream, tensor: str) -> Iterator[tuple[int, Tensor]]:
    """Consecutive rows of a matrix, a bounded part at a time, with the number of the first."""
    start = 0
    for rows in Matrix(stream.source, tensor).slabs():
        yield start, torch.from_numpy(rows)
        start += len(rows)
