"""How a weight of a checkpoint becomes nodes: MatMulNBits for 4, 6 and 8 bits, MatMul for 32. The format is
data.

Knows the streaming of rows into the data file, rows of several formats, and biases. The nodes over quantized
blocks are `stored_blocks`' matter, formats `weight_format`'s. Knows nothing of the model around the
projection.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import Part
from phirt_export.graphs.stored_blocks import Stored, StoredBlocks
from phirt_export.graphs.weight_format import GPTQ, KEPT, Chosen, RowFormat, WeightFormat
from phirt_quant.blockwise import BlockQuantized, dequantize, num_blocks, quantize, stored_bits
from phirt_quant.drift import DriftCorrection, InputMoments
from phirt_quant.gptq import DAMPING, ErrorCompensation
from phirt_quant.weight_error import RelativeError, StoredSize, WeightError

# Elements of a matrix that are held as float32 at a time while it is quantized.
_SLAB_ELEMENTS = 1 << 21


class WeightSource(Protocol):
    """Named tensors, read on demand as float32."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor."""

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis, float32."""

    def tensor(self, name: str) -> np.ndarray:
        """The whole tensor, float32."""


# (tensor, start, stop) -> rows start..stop-1 of the matrix as it reads back from the data file, float32
# [n, K], without its factor; None while it is not stored, and where it is not quantized.
StoredRows = Callable[[str, int, int], np.ndarray | None]


_Array = tuple[tuple[int, ...], np.dtype[Any]]


class KeptSource(Protocol):
    """A checkpoint that holds quantized blocks."""

    def kept_rows(self, name: str, start: int, stop: int) -> BlockQuantized:
        """Rows start..stop-1 of a matrix as the checkpoint has them."""


class HessianSource(Protocol):
    """What calibration knows about the inputs of matrices."""

    def moments(self, tensor: str, stored: StoredRows) -> InputMoments | None:
        """Those of the inputs that a matrix multiplies; None where there is no data."""

    def damping(self, tensor: str) -> float | None:
        """The damping that suits a matrix, see `ErrorCompensation`; None for the usual one."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A tensor of the checkpoint as a matrix [N, K], times `factor`; trailing axes are flattened into K. Of
    some rows, first..stop-1 are it.
    """

    source: WeightSource
    name: str
    factor: float = 1.0
    first: int = 0
    stop: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, *rest = self.source.shape(self.name)
        return (rows if self.stop is None else self.stop) - self.first, int(np.prod(rest))

    @property
    def label(self) -> str:
        """The tensor, and which of its rows."""
        return self.name if self.stop is None else f"{self.name}[{self.first}:{self.stop}]"

    def slabs(self) -> Iterator[np.ndarray]:
        """Consecutive rows as float32 [n, K], a bounded number of elements at a time."""
        rows, columns = self.shape
        step = max(1, _SLAB_ELEMENTS // columns)
        for start in range(self.first, self.first + rows, step):
            slab = self.source.rows(self.name, start, min(start + step, self.first + rows))
            yield slab.reshape(slab.shape[0], columns) * np.float32(self.factor)


class WeightStore:
    """Turns weights of one source into initializers of one graph, each stored once however often used.

    `errors` says what quantization has cost each matrix, `sizes` what each takes. `hessians` serve the method
    `gptq`; what they know nothing of is rounded to nearest with searched scales. Tensors in `chosen` have the
    format given there, whatever the graph asks for; `kept` has the blocks of those whose method is KEPT.
    """

    def __init__(
        self,
        g: GraphBuilder,
        source: WeightSource,
        hessians: HessianSource | None = None,
        chosen: Chosen | None = None,
        kept: KeptSource | None = None,
    ) -> None:
        self.g, self.source, self._hessians = g, source, hessians
        self._chosen, self._kept = chosen or {}, kept
        self.errors: list[WeightError] = []
        self.sizes: list[StoredSize] = []
        self._vectors: dict[str, Stored] = {}
        self._dense: dict[tuple[Matrix, bool], Stored] = {}
        self._blocks: dict[tuple[Matrix, WeightFormat], StoredBlocks] = {}
        # What is known about the inputs of the tensor asked for last: all of its rows have the same.
        self._compensation: tuple[str, tuple[np.ndarray | None, ErrorCompensation] | None] | None = None

    def onto(self, g: GraphBuilder) -> WeightStore:
        """The same weights for another graph over the same data file; what is stored is not stored again."""
        assert g.data is self.g.data
        other = copy.copy(self)
        other.g = g
        return other

    def formats_of(self, tensor: str, form: WeightFormat) -> tuple[RowFormat, ...]:
        """The formats of a tensor's rows, for which the graph asks for `form`."""
        return self._chosen.get(tensor) or (RowFormat(0, self.source.shape(tensor)[0], form),)

    def linear(
        self,
        x: ir.Value,
        tensor: str,
        form: WeightFormat,
        name: str,
        *,
        bias: str | np.ndarray | None = None,
        factor: float = 1.0,
        outer: bool = False,
    ) -> ir.Value:
        """x [..., K] -> `factor` · (W x + b) [..., N]: W the tensor [N, K], b the tensor named, or an array
        [N].
        """
        g, (only, *others) = self.g, self.formats_of(tensor, form)
        weight, b = Matrix(self.source, tensor, factor), None
        if bias is not None:
            array = self.source.tensor(bias) if isinstance(bias, str) else bias
            b = g.constant(array * np.float32(factor), f"{name}.bias")
        if not others and only.form.is_quantized:
            return self.multiply_blocks(x, weight, only.form, name, b, outer)
        if others:
            y = g.Concat(
                *(
                    self.multiply_blocks(
                        x,
                        dataclasses.replace(weight, first=rows.first, stop=rows.stop),
                        rows.form,
                        row_name(name, rows.first),
                        outer=outer,
                    )
                    for rows in (only, *others)
                ),
                axis=-1,
                name=name,
            )
        else:
            y = g.MatMul(
                x, self.dense(weight, transposed=True).value(g, f"{name}.weight", outer=outer), name=name
            )
        return y if b is None else g.Add(y, b, name=f"{name}.biased")

    def vector(self, tensor: str, name: str) -> ir.Value:
        """A one-dimensional float32 initializer, stored once for all branches that use it."""
        if tensor not in self._vectors:
            array = self.source.tensor(tensor).reshape(-1)
            extent = self.g.data.append_array(tensor, array)
            self._vectors[tensor] = Stored(extent.tensor(tensor, ir.DataType.FLOAT, array.shape))
        return self._vectors[tensor].value(self.g, name, outer=True)

    def multiply_blocks(
        self,
        x: ir.Value,
        weight: Matrix,
        form: WeightFormat,
        name: str,
        bias: ir.Value | None = None,
        outer: bool = False,
    ) -> ir.Value:
        """x [..., K] -> [..., N] through a quantized matrix."""
        stored = self.blocks(weight, form)
        return stored.multiply(self.g, x, name, form.activations, bias, outer)

    def dense(self, weight: Matrix, transposed: bool = False) -> Stored:
        """The float32 matrix [N, K], or [K, N] transposed a slab of columns at a time."""
        key = (weight, transposed)
        if key not in self._dense:
            shape = weight.shape[::-1] if transposed else weight.shape
            slabs = _transposed_slabs(weight) if transposed else weight.slabs()
            (extent,) = self.g.data.append(weight.name, [(slabs, 4 * shape[0] * shape[1])]).extents
            self._dense[key] = Stored(extent.tensor(weight.name, ir.DataType.FLOAT, shape))
            self.sizes.append(StoredSize(weight.name, shape[0] * shape[1], extent.length))
        return self._dense[key]

    def blocks(self, weight: Matrix, form: WeightFormat) -> StoredBlocks:
        """Codes and scales, quantized slab by slab; the scales are small and follow the codes."""
        key = (weight, form)
        if key not in self._blocks:
            self._blocks[key] = self._store_blocks(weight, form)
        return self._blocks[key]

    def _store_blocks(self, weight: Matrix, form: WeightFormat) -> StoredBlocks:
        rows, columns = weight.shape
        block = form.block_for(columns)
        arrays = _arrays(form, rows, num_blocks(columns, block), block)
        # The small parts of blocks follow the codes.
        kept: dict[str, list[np.ndarray]] = {name: [] for name in arrays if name != "codes"}
        error = RelativeError()

        def codes() -> Iterator[np.ndarray]:
            # Asked for here, so that a piece that an interrupted export has finished costs nothing.
            rounded, start = self._rounding(weight, form, block), 0
            for slab in weight.slabs():
                quantized = rounded(slab, start)
                start += len(slab)
                error.add(slab, dequantize(quantized))
                for name, parts in kept.items():
                    array = getattr(quantized, name)
                    assert array.dtype == arrays[name][1]
                    parts.append(array)
                yield quantized.codes

        # One piece: codes without their scales would be worth nothing to an export that goes on.
        parts: list[Part] = [
            (codes() if name == "codes" else kept[name], int(np.prod(shape)) * dtype.itemsize)
            for name, (shape, dtype) in arrays.items()
        ]
        piece = self.g.data.append(weight.label, parts, error.sums)
        self.errors.append(WeightError(weight.name, form.bits, *piece.note))
        stored_bytes = sum(extent.length for extent in piece.extents)
        self.sizes.append(StoredSize(weight.name, rows * columns, stored_bytes))
        stored = {
            name: Stored(extent.tensor(name, ir.DataType.from_numpy(dtype), shape))
            for extent, (name, (shape, dtype)) in zip(piece.extents, arrays.items(), strict=True)
        }
        return StoredBlocks(**stored, columns=columns, bits=form.bits, block_size=block)

    def _rounding(
        self, weight: Matrix, form: WeightFormat, block: int
    ) -> Callable[[np.ndarray, int], BlockQuantized]:
        """What quantizes a slab of this matrix, given the number of its first row."""
        if form.method == KEPT:
            kept = self._kept
            assert kept is not None and weight.factor == 1.0, "kept blocks come from a checkpoint as they are"
            return lambda slab, start: kept.kept_rows(weight.name, start, start + len(slab))
        if form.method != GPTQ:
            return lambda slab, _: quantize(slab, form.bits, block, form.method, form.scale_type)
        known = self._compensated(weight.name)
        if known is None:
            return lambda slab, _: quantize(slab, form.bits, block, "mse", form.scale_type)
        moved, compensation = known

        def rounded(slab: np.ndarray, start: int) -> BlockQuantized:
            if moved is not None:
                first = weight.first + start
                slab = moved[first : first + len(slab)] * np.float32(weight.factor)
            return compensation.quantize(slab, form.bits, block, form.scale_type)

        return rounded

    def _compensated(self, tensor: str) -> tuple[np.ndarray | None, ErrorCompensation] | None:
        """The rows that a tensor's are to be rounded for, where these are others, and what makes errors good;
        None where nothing is known of its inputs. Nothing but these stays in memory.
        """
        if self._compensation is None or self._compensation[0] != tensor:
            assert self._hessians is not None, "a calibrated method needs calibration data"
            self._compensation = None  # one at a time
            moments, known = self._hessians.moments(tensor, self.read_back), None
            if moments is not None:
                damping = self._hessians.damping(tensor) or DAMPING
                moved, inputs = self._moved(tensor, moments, damping), moments.inputs
                del moments
                known = moved, ErrorCompensation(inputs, damping)
            self._compensation = tensor, known
        return self._compensation[1]

    def _moved(self, tensor: str, moments: InputMoments, damping: float) -> np.ndarray | None:
        """All rows of a tensor, moved by what its inputs drift; None where they are not known to."""
        if moments.drift is None:
            return None
        correction, matrix = DriftCorrection(moments, damping), Matrix(self.source, tensor)
        moved, start = np.empty(matrix.shape, np.float32), 0
        for slab in matrix.slabs():
            moved[start : start + len(slab)] = correction.moved(slab, start)
            start += len(slab)
        return moved

    def read_back(self, tensor: str, start: int, stop: int) -> np.ndarray | None:
        """Rows of a stored matrix; see `StoredRows`."""
        read: list[np.ndarray] = []
        parts = [(weight, of) for (weight, _), of in self._blocks.items() if weight.name == tensor]
        for weight, stored in sorted(parts, key=lambda part: part[0].first):
            end = min(stop, weight.first + weight.shape[0])
            if weight.first <= start < end:
                rows = range(start - weight.first, end - weight.first)
                arrays = {n: self._rows_of(a, rows.start, rows.stop) for n, a in stored.arrays().items()}
                quantized = BlockQuantized(
                    **arrays, columns=stored.columns, bits=stored.bits, block_size=stored.block_size
                )
                read.append(dequantize(quantized) / np.float32(weight.factor))
                start = end
        return np.concatenate(read) if read and start == stop else None

    def _rows_of(self, stored: Stored, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 of an array in the data file."""
        t = stored.tensor
        shape = t.shape.numpy()
        assert t.offset is not None and t.length is not None
        row = t.length // shape[0]
        raw = self.g.data.read(t.offset + start * row, (stop - start) * row)
        return raw.view(t.dtype.numpy()).reshape(stop - start, *shape[1:])


def row_name(name: str, first: int | str) -> str:
    """The name of the node for some rows of a linear, of which `first` is the first."""
    return f"{name}.rows{first}"


def _arrays(form: WeightFormat, rows: int, blocks: int, block: int) -> dict[str, _Array]:
    """Shape and type of each array that the blocks of a matrix consist of, in the order of the file, codes
    first.
    """
    floats, codes = np.dtype(form.scale_type), np.dtype(np.uint8)
    bits, *lower = stored_bits(form.bits)
    arrays: dict[str, _Array] = {"codes": ((rows, blocks, block * bits // 8), codes)}
    for bits in lower:
        arrays["low_codes"] = ((rows, blocks, block * bits // 8), codes)
    arrays["scales"] = ((rows, blocks), floats)
    if form.has_minimums:
        arrays["minimums"] = ((rows, blocks), floats)
    return arrays


def _transposed_slabs(weight: Matrix) -> Iterator[np.ndarray]:
    rows, columns = weight.shape
    whole = weight.source.tensor(weight.name).reshape(rows, columns)
    step = max(1, _SLAB_ELEMENTS // rows)
    for start in range(0, columns, step):
        yield whole[:, start : start + step].T * np.float32(weight.factor)
