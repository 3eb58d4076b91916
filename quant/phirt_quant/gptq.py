"""Quantization that looks at the inputs: the error of a column is made good by the columns after it.

Knows one matrix and the second moments of its inputs. Knows nothing of models, samples or files.

What is minimised is the error of the outputs, tr((W - Q) H (W - Q)ᵀ) with H = E[x xᵀ], row by row and in
three steps:

1. GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded in order, and what rounding has done to the
   earlier ones is taken out of the later ones before it is their turn. It is computed in the form of LDLQ,
   which is the same rounding (Chee et al., arXiv 2307.13304, theorem 6) and needs no inverse: with H = R Rᵀ,
   R upper triangular, and U = R / diag(R), the error equals the sum over columns k of
   R[k, k]² · (t_k - q_k)², t_k = w_k + sum over i < k of (w_i - q_i) U[i, k].
2. With the codes fixed, the scales of a row are a least-squares problem of one unknown a block.
3. With the scales fixed, each code in turn takes its best value given all others: coordinate descent, as in
   QuantEase (Behdin et al., arXiv 2309.01885).

Steps 2 and 3 are repeated; neither can raise the error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phirt.errors import ConfigError
from phirt_quant.blockwise import (
    BlockQuantized,
    block_levels,
    check_format,
    from_levels,
    mse_scales,
    num_blocks,
)

DAMPING = 0.01
# Measured on the nano model, text: a sweep takes 6 % off the divergence that projections cause, and three
# take 13 % off that of the token table.
_SWEEPS = 3
# Elements of the equations for scales that are held at a time.
_EQUATIONS = 1 << 22

Doubles = npt.NDArray[np.float64]


class ErrorCompensation:
    """Quantizes matrices [n, K] that multiply inputs with the second moments `hessian`; memory for K² float64
    three times.

    Args:
        hessian: float64 [K, K], E[x xᵀ] up to a factor; only directions that occur need to be in it.
        damping: added to its diagonal, as a share of the diagonal's mean. It bounds what is done to
            directions that calibration has not seen; an input that is always zero is rounded to nearest.

    Raises:
        ConfigError: the second moments are not finite.
    """

    def __init__(self, hessian: Doubles, damping: float = DAMPING) -> None:
        if not np.isfinite(hessian).all():
            raise ConfigError(
                "the model's activations on the calibration data are not finite; the checkpoint is damaged"
            )
        mean = float(np.trace(hessian)) / len(hessian)
        self._hessian = hessian + (damping * mean or 1.0) * np.eye(len(hessian))
        root = _upper_root(self._hessian)
        self._importance = np.diag(root) ** 2
        self._feedback = root / np.diag(root)

    @property
    def remaining(self) -> Doubles:
        """What compensation leaves of the squared error that rounding each column causes, as a share [K]: by
        the form of step 1, the input's variance given the inputs after it over its whole variance.
        """
        return self._importance / np.diag(self._hessian)

    def quantize(self, matrix: np.ndarray, bits: int, block_size: int) -> BlockQuantized:
        """Quantize a float matrix [n, K] in the format of `blockwise`; rows do not influence each other.

        Raises:
            ConfigError: unsupported format, or values that are not finite.
        """
        check_format(bits, block_size)
        if not np.isfinite(matrix).all():
            raise ConfigError("the weights hold values that are not finite; the checkpoint is damaged")
        weights = matrix.astype(np.float64)
        levels, scales = self._round_in_order(weights, bits, block_size)
        for _ in range(_SWEEPS):
            scales = self._fit_scales(weights, levels, block_size)
            self._descend(weights, levels, scales, bits, block_size)
        return from_levels(levels, scales, bits, block_size)

    def error(self, matrix: np.ndarray, stored: np.ndarray) -> float:
        """tr((W - Q) H (W - Q)ᵀ), damping included, of matrices [n, K]."""
        difference = matrix.astype(np.float64) - stored
        return float(np.vdot(difference @ self._hessian, difference))

    def _round_in_order(self, weights: Doubles, bits: int, block_size: int) -> tuple[Doubles, np.ndarray]:
        """Levels [n, K] and scales float32 [n, blocks] of step 1; a block's scales are chosen when all before
        it is rounded, for the values that it then has.
        """
        rows, columns = weights.shape
        levels, errors = np.zeros_like(weights), np.zeros_like(weights)
        scales = np.zeros((rows, num_blocks(columns, block_size)), np.float32)
        for block, start in enumerate(range(0, columns, block_size)):
            stop = min(start + block_size, columns)
            target = weights[:, start:stop] + errors[:, :start] @ self._feedback[:start, start:stop]
            importance = self._importance[start:stop].astype(np.float32)
            scales[:, block] = mse_scales(target.astype(np.float32), bits, importance)
            scale = scales[:, block].astype(np.float64)
            for k in range(start, stop):
                wanted = target[:, k - start] + errors[:, start:k] @ self._feedback[start:k, k]
                levels[:, k] = block_levels(wanted[:, None], scale, bits)[:, 0]
                errors[:, k] = weights[:, k] - levels[:, k] * scale
        return levels, scales

    def _fit_scales(self, weights: Doubles, levels: Doubles, block_size: int) -> np.ndarray:
        """The scales float32 [n, blocks] of least error for these levels."""
        rows, columns = weights.shape
        starts = np.arange(0, columns, block_size)
        step = max(1, _EQUATIONS // max(columns, len(starts) ** 2))
        fitted = [
            self._fit_rows(weights[at : at + step], levels[at : at + step], starts, block_size)
            for at in range(0, rows, step)
        ]
        return np.concatenate(fitted).astype(np.float32)

    def _fit_rows(
        self, weights: Doubles, levels: Doubles, starts: npt.NDArray[np.int64], block_size: int
    ) -> Doubles:
        """Normal equations: a block's levels are one direction, and a row is a sum of them."""
        count = len(starts)
        left = np.empty((len(weights), count, count))
        for block, start in enumerate(starts):
            inner = slice(start, start + block_size)
            left[:, block] = np.add.reduceat(
                (levels[:, inner] @ self._hessian[inner]) * levels, starts, axis=1
            )
        right = np.add.reduceat((weights @ self._hessian) * levels, starts, axis=1)
        # A block of zeros has no direction; any scale does, and the ridge gives it zero.
        ridge = 1e-10 * np.trace(left, axis1=1, axis2=2) + np.finfo(np.float64).tiny
        left += ridge[:, None, None] * np.eye(count)
        solution: Doubles = np.linalg.solve(left, right[..., None])[..., 0]
        return solution

    def _descend(
        self, weights: Doubles, levels: Doubles, scales: np.ndarray, bits: int, block_size: int
    ) -> None:
        """One pass of step 3 over all columns, in place."""
        columns = weights.shape[1]
        spread = np.repeat(scales.astype(np.float64), block_size, axis=1)[:, :columns]
        slope = (weights - levels * spread) @ self._hessian
        for start in range(0, columns, block_size):
            stop = min(start + block_size, columns)
            moved = np.zeros((len(weights), stop - start))
            for k in range(start, stop):
                scale = spread[:, k]
                wanted = levels[:, k] * scale + slope[:, k] / self._hessian[k, k]
                best = block_levels(wanted[:, None], scale, bits)[:, 0]
                moved[:, k - start] = (levels[:, k] - best) * scale
                levels[:, k] = best
                slope[:, k + 1 : stop] += moved[:, k - start, None] * self._hessian[k, k + 1 : stop]
            slope[:, stop:] += moved @ self._hessian[start:stop, stop:]


def _upper_root(matrix: Doubles) -> Doubles:
    """Upper triangular R with R Rᵀ = `matrix`: the Cholesky factor of the matrix read backwards."""
    return np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
