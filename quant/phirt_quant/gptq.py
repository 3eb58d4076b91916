"""Quantization that looks at the inputs: the error of a column is made good by the columns after it.

Knows one matrix and the second moments of its inputs. Knows nothing of models, samples or files.

What is minimised is the error of the outputs, tr((W - Q) H (W - Q)ᵀ) with H = E[x xᵀ], row by row and in
three steps:

1. GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded in order, and what rounding has done to the
   earlier ones is taken out of the later ones before it is their turn. It is computed in the form of LDLQ,
   which is the same rounding (Chee et al., arXiv 2307.13304, theorem 6) and needs no inverse: with H = R Rᵀ,
   R upper triangular, and U = R / diag(R), the error equals the sum over columns k of
   R[k, k]² · (t_k - q_k)², t_k = w_k + sum over i < k of (w_i - q_i) U[i, k].
2. A block's scale moves to where the error is least, with the codes and all other scales as they are.
3. Each code of the block in turn takes its best value given all others: coordinate descent, as in QuantEase
   (Behdin et al., arXiv 2309.01885).

Steps 2 and 3 go over the blocks in order, several times; neither can raise the error. A pass takes n·K²
multiplications and step 1 half of that. A matrix lies transposed, so that a column is one run of memory.

Float32 is enough for R, whose error counts by the size of each input, however different these are: with one
of 1,000 times the others', the error that is minimised came out within 0.3 % of what float64 gives.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from phirt.errors import ConfigError
from phirt_quant.blockwise import (
    BlockQuantized,
    ScaleType,
    block_levels,
    check_format,
    from_levels,
    mse_scales,
    stored_scales,
)

DAMPING = 0.01
# Measured on the nano model in blocks of 128, three passes and six: mean KL 0.0113 and 0.0112 on text, 0.0050
# and 0.0039 on images, 0.0069 and 0.0066 on speech. Wide matrices, whose passes take most of an export, make
# do with three; what that costs a wide model is not measured.
_PASSES, _WIDE_PASSES, _WIDE = 6, 3, 2048

Floats = npt.NDArray[np.float32]


class ErrorCompensation:
    """Quantizes matrices [n, K] that multiply inputs with the second moments `hessian`; memory for K² float32
    twice, the given ones among it, and once more while it is made.

    Args:
        hessian: float32 [K, K], E[x xᵀ] up to a factor; only directions that occur need to be in it. It is
            taken over and changed.
        damping: added to its diagonal, as a share of the diagonal's mean. It bounds what is done to
            directions that calibration has not seen; an input that is always zero is rounded to nearest.

    Raises:
        ConfigError: the second moments are not finite.
    """

    def __init__(self, hessian: Floats, damping: float = DAMPING) -> None:
        # An input that is not finite shows on the diagonal, too.
        if not np.isfinite(hessian.diagonal()).all():
            raise ConfigError(
                "the model's activations on the calibration data are not finite; the checkpoint is damaged"
            )
        count = len(hessian)
        mean = float(np.trace(hessian, dtype=np.float64)) / count
        damped = hessian.astype(np.float32, copy=False)
        damped /= np.float32(mean or 1.0)
        damped.flat[:: count + 1] += np.float32(damping if mean else 1.0)
        root = _upper_root(damped)
        pivots: Floats = root.diagonal().copy()
        self._importance = np.square(pivots)
        self._hessian: Floats = damped
        root /= pivots
        self._feedback: Floats = root

    @property
    def remaining(self) -> Floats:
        """What compensation leaves of the squared error that rounding each column causes, as a share [K]: by
        the form of step 1, the input's variance given the inputs after it over its whole variance.
        """
        return np.divide(self._importance, self._hessian.diagonal())

    def quantize(
        self, matrix: np.ndarray, bits: int, block_size: int, scale_type: ScaleType = "float32"
    ) -> BlockQuantized:
        """Quantize a float matrix [n, K] in the format of `blockwise`; rows do not influence each other.

        Raises:
            ConfigError: unsupported format, or values that are not finite.
        """
        check_format(bits, block_size)
        if not np.isfinite(matrix).all():
            raise ConfigError("the weights hold values that are not finite; the checkpoint is damaged")
        weights = np.ascontiguousarray(matrix.T, np.float32)
        starts = range(0, len(weights), block_size)
        blocks = [slice(start, min(start + block_size, len(weights))) for start in starts]
        levels, errors = np.zeros_like(weights), np.zeros_like(weights)
        grid = _Grid(bits, scale_type)
        scales = [self._round_in_order(weights, levels, errors, block, grid) for block in blocks]
        for _ in range(_PASSES if len(weights) < _WIDE else _WIDE_PASSES):
            for number, block in enumerate(blocks):
                scales[number] = self._improve(levels[block], errors, scales[number], block, grid)
                errors[block] = weights[block] - levels[block] * scales[number]
        return from_levels(levels.T, stored_scales(np.stack(scales, axis=1), scale_type), bits, block_size)

    def _round_in_order(
        self, weights: Floats, levels: Floats, errors: Floats, block: slice, grid: _Grid
    ) -> Floats:
        """Step 1 on one block of weights [K, n]: writes its levels and errors, and returns its scales [n],
        chosen for the values that it has now that all before it is rounded.
        """
        before = slice(0, block.start)
        target = weights[block] + self._feedback[before, block].T @ errors[before]
        importance = self._importance[block]
        scale = grid.scale(mse_scales(target.T, grid.bits, importance))
        feedback = np.ascontiguousarray(self._feedback[block, block].T)
        for k, index in enumerate(range(block.start, block.stop)):
            wanted = target[k] + feedback[k, :k] @ errors[block.start : index]
            levels[index] = block_levels(wanted[:, None], scale, grid.bits)[:, 0]
            errors[index] = weights[index] - levels[index] * scale
        return scale

    def _improve(self, levels: Floats, errors: Floats, scale: Floats, block: slice, grid: _Grid) -> Floats:
        """Steps 2 and 3 on one block, given the errors [K, n] of all: changes its levels [block, n] in place
        and returns its new scales [n].
        """
        inner = self._hessian[block, block]
        slope = self._hessian[block] @ errors
        turned = inner @ levels
        curvature = np.einsum("kn,kn->n", levels, turned)
        # A block of zeros has no direction, and any scale does.
        step = np.einsum("kn,kn->n", levels, slope) / np.where(curvature > 0, curvature, np.inf)
        moved_scale = grid.scale(scale + step)
        scale, slope = moved_scale, slope - turned * (moved_scale - scale)
        moved = np.zeros_like(levels)
        for k in range(len(levels)):
            wanted = levels[k] * scale + (slope[k] + inner[k, :k] @ moved[:k]) / inner[k, k]
            best = block_levels(wanted[:, None], scale, grid.bits)[:, 0]
            moved[k] = (levels[k] - best) * scale
            levels[k] = best
        return scale


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The values that a block can have: how many levels, and which scales can be stored."""

    bits: int
    scale_type: ScaleType

    def scale(self, wanted: Floats) -> Floats:
        """The nearest scales that can be stored, float32 [n]."""
        return stored_scales(wanted, self.scale_type).astype(np.float32, copy=False)


def _upper_root(matrix: Floats) -> Floats:
    """Upper triangular R with R Rᵀ = `matrix`: the Cholesky factor of the matrix read backwards."""
    backwards = matrix[::-1, ::-1]
    try:
        lower = np.linalg.cholesky(backwards)
    except np.linalg.LinAlgError:  # inputs so alike that float32 does not tell them apart
        lower = np.linalg.cholesky(backwards.astype(np.float64))
    return lower.astype(np.float32, copy=False)[::-1, ::-1]
