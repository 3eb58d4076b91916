"""How far an export is, tensor by tensor.

Knows which tensors were read or kept, and how much of each. Knows nothing of clocks or screens.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from phirt_export.graphs.linear import WeightSource


@dataclasses.dataclass(frozen=True)
class Step:
    """The state after reading a part of `tensor`, or after finding it finished by an interrupted run, or
    before that part of the model is looked at for calibration; or, where `tensors` is 0, before what `tensor`
    says is done to all of them.

    `begun` of `tensors` tensors were read in full or in part or kept; `done` of `weights` elements were, and
    `kept` of those are from the interrupted run.
    """

    tensor: str
    begun: int
    tensors: int
    done: int
    weights: int
    kept: int


Progress = Callable[[Step], None]
_SOME_ROWS = re.compile(r"(.+)\[\d+:(\d+)\]")


def announce(progress: Progress | None, activity: str) -> None:
    """Report that something begins which is not counted in weights."""
    if progress is not None:
        progress(Step(activity, 0, 0, 0, 0, 0))


class ObservedSource:
    """A weight source that reports what is read from it."""

    def __init__(
        self, source: WeightSource, shapes: Mapping[str, tuple[int, ...]], progress: Progress | None
    ) -> None:
        self._source, self._progress = source, progress
        self._sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self._weights = sum(self._sizes.values())
        self._read: dict[str, int] = {}
        self._done = self._kept = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self._source.shape(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis, float32."""
        rows = self._source.rows(name, start, stop)
        self._note(name, stop * (rows.size // max(1, stop - start)))
        return rows

    def tensor(self, name: str) -> np.ndarray:
        """The whole tensor, float32."""
        tensor = self._source.tensor(name)
        self._note(name, tensor.size)
        return tensor

    def note_kept(self, key: str) -> None:
        """A piece of the data file was finished already; where `key` is a tensor, or some rows of one as
        `Matrix.label` writes them, these were.
        """
        rows = _SOME_ROWS.fullmatch(key)
        name = rows[1] if rows else key
        if name in self._sizes:
            size, before = self._sizes[name], self._read.get(name, 0)
            read = size // self._source.shape(name)[0] * int(rows[2]) if rows else size
            self._kept += max(read - before, 0)
            self._note(name, read)

    def note_look(self, part: str) -> None:
        """A part of the model is looked at on calibration data; no tensor is done by that."""
        self._report(part)

    def _note(self, name: str, read: int) -> None:
        before = self._read.get(name, 0)
        self._read[name] = max(before, read)
        self._done += self._read[name] - before
        if read > before or not before:
            self._report(name)

    def _report(self, name: str) -> None:
        if self._progress is not None:
            tensors, weights = len(self._sizes), self._weights
            self._progress(Step(name, len(self._read), tensors, self._done, weights, self._kept))
