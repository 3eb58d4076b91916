"""How a weight of a checkpoint becomes nodes: MatMulNBits for 4 and 8 bits, MatMul for 32. The format is
data.

Knows weight formats, the streaming of rows into the data file, biases, and the table that embeds tokens and
scores them from one stored copy. The nodes over quantized blocks are `stored_blocks`' matter. Knows nothing
of the model around the projection.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import Part
from phirt_export.graphs.stored_blocks import Activations, Stored, StoredBlocks
from phirt_quant.blockwise import METHODS, BlockQuantized, check_format, dequantize, num_blocks, quantize
from phirt_quant.drift import DriftCorrection, InputMoments
from phirt_quant.gptq import DAMPING, ErrorCompensation
from phirt_quant.weight_error import RelativeError, StoredSize, WeightError

FLOAT_BITS = 32
# The method that looks at calibration data; `blockwise` has those that look at weights alone.
GPTQ = "gptq"
ACCEPTED_METHODS = (*METHODS, GPTQ)
# What a matrix has whose codes the checkpoint holds and which keeps them; nobody asks for it by name.
KEPT = "kept"
ACCEPTED_BITS = (4, 8, FLOAT_BITS)
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
class WeightFormat:
    """How matrices are stored: 4 or 8 bits in blocks of `block_size` along the input dimension, or float32
    (32). `method` is one of ACCEPTED_METHODS; or KEPT, for which the checkpoint says in what type its scales
    are, and whether blocks have minimums. `activations`: see `stored_blocks`.
    """

    bits: int
    block_size: int = 32
    method: str = "rtn"
    scale_type: Literal["float32", "float16"] = "float32"
    has_minimums: bool = False
    activations: Activations = "int8"

    def __post_init__(self) -> None:
        if self.bits not in ACCEPTED_BITS:
            accepted = ", ".join(str(bits) for bits in ACCEPTED_BITS)
            raise ConfigError(
                f"{self.bits} bits a weight are not supported; choose from {accepted} (32 = unquantized)"
            )
        if self.method not in (*ACCEPTED_METHODS, KEPT):
            accepted = ", ".join(ACCEPTED_METHODS)
            raise ConfigError(f"quantization method {self.method!r} is unknown; choose from {accepted}")
        if self.is_quantized:
            check_format(self.bits, self.block_size)

    @property
    def is_quantized(self) -> bool:
        """Whether matrices become codes and scales."""
        return self.bits != FLOAT_BITS

    def block_for(self, columns: int) -> int:
        """Block size for rows of `columns` elements: the one, up to `block_size`, that stores a row in the
        fewest bytes. Short rows (a LoRA rank) get a smaller one where padding would cost more than scales.
        """

        # MatMulNBits takes powers of two from 16 on; of two that cost the same, the larger comes first.
        halvings = (self.block_size // 16).bit_length()
        return min(
            (self.block_size >> n for n in range(halvings)), key=lambda block: self._row_bytes(columns, block)
        )

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of codes and scales of a quantized matrix."""
        return rows * self._row_bytes(columns, self.block_for(columns))

    def _row_bytes(self, columns: int, block: int) -> int:
        scales = np.dtype(self.scale_type).itemsize * (1 + self.has_minimums)
        return num_blocks(columns, block) * (block * self.bits // 8 + scales)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A tensor of the checkpoint as a matrix [N, K], times `factor`; trailing axes are flattened into K."""

    source: WeightSource
    name: str
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, *rest = self.source.shape(self.name)
        return rows, int(np.prod(rest))

    def slabs(self) -> Iterator[np.ndarray]:
        """Consecutive rows as float32 [n, K], a bounded number of elements at a time."""
        rows, columns = self.shape
        step = max(1, _SLAB_ELEMENTS // columns)
        for start in range(0, rows, step):
            slab = self.source.rows(self.name, start, min(start + step, rows))
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
        chosen: Mapping[str, WeightFormat] | None = None,
        kept: KeptSource | None = None,
    ) -> None:
        self.g, self.source, self._hessians = g, source, hessians
        self._chosen, self._kept = chosen or {}, kept
        self.errors: list[WeightError] = []
        self.sizes: list[StoredSize] = []
        self._vectors: dict[str, Stored] = {}
        self._dense: dict[tuple[Matrix, bool], Stored] = {}
        self._blocks: dict[tuple[Matrix, WeightFormat], StoredBlocks] = {}

    def onto(self, g: GraphBuilder) -> WeightStore:
        """The same weights for another graph over the same data file; what is stored is not stored again."""
        assert g.data is self.g.data
        other = copy.copy(self)
        other.g = g
        return other

    def format_of(self, tensor: str, form: WeightFormat) -> WeightFormat:
        """The format of a tensor for which the graph asks for `form`."""
        return self._chosen.get(tensor, form)

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
        g, weight, form = self.g, Matrix(self.source, tensor, factor), self.format_of(tensor, form)
        b = None
        if bias is not None:
            array = self.source.tensor(bias) if isinstance(bias, str) else bias
            b = g.constant(array * np.float32(factor), f"{name}.bias")
        if form.is_quantized:
            return self.multiply_blocks(x, weight, form, name, b, outer)
        stored = self.dense(weight, transposed=True)
        y = g.MatMul(x, stored.value(g, f"{name}.weight", outer=outer), name=name)
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
        return stored.multiply(self.g, x, weight.shape[1], name, form.activations, bias, outer)

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
        shape = (rows, num_blocks(columns, block), block * form.bits // 8)
        # The small parts of blocks, which follow the codes: scales, and minimums where there are any.
        floats: tuple[list[np.ndarray], ...] = ([], []) if form.has_minimums else ([],)
        error = RelativeError()

        def codes() -> Iterator[np.ndarray]:
            # Asked for here, so that a piece that an interrupted export has finished costs nothing.
            rounded, start = self._rounding(weight, form, block), 0
            for slab in weight.slabs():
                quantized = rounded(slab, start)
                start += len(slab)
                error.add(slab, dequantize(quantized))
                for part, array in zip(floats, (quantized.scales, quantized.minimums), strict=False):
                    assert array is not None and array.dtype == form.scale_type
                    part.append(array)
                yield quantized.codes

        # One piece: codes without their scales would be worth nothing to an export that goes on.
        float_bytes = np.dtype(form.scale_type).itemsize * shape[0] * shape[1]
        parts: list[Part] = [(codes(), int(np.prod(shape))), *((part, float_bytes) for part in floats)]
        piece = self.g.data.append(weight.name, parts, error.sums)
        self.errors.append(WeightError(weight.name, form.bits, *piece.note))
        stored_bytes = sum(extent.length for extent in piece.extents)
        self.sizes.append(StoredSize(weight.name, rows * columns, stored_bytes))
        code_extent, *others = piece.extents
        dtype = ir.DataType.from_numpy(np.dtype(form.scale_type))
        stored = [Stored(extent.tensor("scales", dtype, shape[:2])) for extent in others]
        minimums = stored[1] if form.has_minimums else None
        codes_stored = Stored(code_extent.tensor("codes", ir.DataType.UINT8, shape))
        return StoredBlocks(codes_stored, stored[0], minimums, shape, form.bits, block)

    def _rounding(
        self, weight: Matrix, form: WeightFormat, block: int
    ) -> Callable[[np.ndarray, int], BlockQuantized]:
        """What quantizes a slab of this matrix, given the number of its first row."""
        if form.method == KEPT:
            kept = self._kept
            assert kept is not None and weight.factor == 1.0, "kept blocks come from a checkpoint as they are"
            return lambda slab, start: kept.kept_rows(weight.name, start, start + len(slab))
        if form.method != GPTQ:
            return lambda slab, _: quantize(slab, form.bits, block, form.method)
        assert self._hessians is not None, "a calibrated method needs calibration data"
        moments = self._hessians.moments(weight.name, self.read_back)
        if moments is None:
            return lambda slab, _: quantize(slab, form.bits, block, "mse")
        damping = self._hessians.damping(weight.name) or DAMPING
        correction = DriftCorrection(moments, damping)
        compensation = ErrorCompensation(moments.inputs, damping)
        return lambda slab, start: compensation.quantize(correction.moved(slab, start), form.bits, block)

    def read_back(self, tensor: str, start: int, stop: int) -> np.ndarray | None:
        """Rows of a stored matrix; see `StoredRows`."""
        for (weight, form), stored in self._blocks.items():
            if weight.name == tensor:
                codes, scales = (self._rows_of(part, start, stop) for part in (stored.codes, stored.scales))
                low = None if stored.minimums is None else self._rows_of(stored.minimums, start, stop)
                columns = weight.shape[1]
                values = dequantize(BlockQuantized(codes, scales, columns, form.bits, stored.block_size, low))
                return values / np.float32(weight.factor)
        return None

    def _rows_of(self, stored: Stored, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 of an array in the data file."""
        t = stored.tensor
        shape = t.shape.numpy()
        assert t.offset is not None and t.length is not None
        row = t.length // shape[0]
        raw = self.g.data.read(t.offset + start * row, (stop - start) * row)
        return raw.view(t.dtype.numpy()).reshape(stop - start, *shape[1:])


class EmbeddingTable:
    """A table [vocab, hidden], stored once: `embed` gathers rows from it, `score` multiplies by it."""

    def __init__(self, store: WeightStore, tensor: str, form: WeightFormat) -> None:
        self._store, self._form = store, store.format_of(tensor, form)
        self._weight, form = Matrix(store.source, tensor), self._form

    def embed(self, ids: ir.Value) -> ir.Value:
        """int64 [...] -> float32 [..., hidden]."""
        g = self._store.g
        if not self._form.is_quantized:
            return g.Gather(self._store.dense(self._weight).value(g, "embed.weight"), ids, name="embed")
        stored, columns = self._store.blocks(self._weight, self._form), self._weight.shape[1]
        rows = stored.gather(g, ids, "embed")
        if columns == stored.shape[1] * stored.block_size:
            return rows
        # The last block of a row is filled up with zeros.
        first, last = (
            g.constant([at], f"embed.{name}", "int64") for name, at in (("first", 0), ("stop", columns))
        )
        return g.Slice(rows, first, last, g.constant([-1], "embed.axis", "int64"), name="embed.rows")

    def score(self, x: ir.Value) -> ir.Value:
        """float32 [1, n, hidden] -> logits float32 [1, n, vocab]."""
        g = self._store.g
        if self._form.is_quantized:
            return self._store.multiply_blocks(x, self._weight, self._form, "head")
        # Gemm reads the table as it lies; a MatMul would need a second, transposed copy in the file.
        flat = g.Squeeze(x, g.constant([0], "head.axis", "int64"), name="head.flat")
        scores = g.Gemm(flat, self._store.dense(self._weight).value(g, "head.weight"), transB=1, name="head")
        return g.Unsqueeze(scores, g.constant([0], "head.axis", "int64"), name="head.batched")


def _transposed_slabs(weight: Matrix) -> Iterator[np.ndarray]:
    rows, columns = weight.shape
    whole = weight.source.tensor(weight.name).reshape(rows, columns)
    step = max(1, _SLAB_ELEMENTS // rows)
    for start in range(0, columns, step):
        yield whole[:, start : start + step].T * np.float32(weight.factor)
