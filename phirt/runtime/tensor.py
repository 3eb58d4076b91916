"""Buffers that graphs read and write in place, in the memory of the device that runs them.

Knows onnxruntime's values and how to reach them from here. Knows nothing of what they hold.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from phirt.runtime.ort import ort

Array = npt.NDArray[Any]


class Tensor(Protocol):
    """A buffer [a, b, positions, c]: `value` is what a graph is bound to."""

    value: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the whole buffer."""
        ...

    def read(self, count: int) -> Array:
        """The first `count` positions; valid until the buffer is written."""
        ...

    def write(self, values: Array, start: int = 0) -> None:
        """Puts values at the positions from `start` on."""
        ...


class Allocator(Protocol):
    """What has memory for buffers: a device, or a session on one."""

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """A zeroed buffer [a, b, positions, c]."""
        ...


class HostTensor:
    """A buffer in this process's memory: what either side writes, the other sees at once."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.value = ort_value(array)

    @property
    def nbytes(self) -> int:
        return int(self._array.nbytes)

    def read(self, count: int) -> Array:
        return self._array[:, :, :count]

    def write(self, values: Array, start: int = 0) -> None:
        self._array[:, :, start : start + values.shape[2]] = values


class DeviceTensor:
    """A buffer in a device's own memory, which a session gives where onnxruntime does not know it otherwise.
    It is copied as a whole to be read or written from here, which happens when a cache grows, is copied or
    saved, and not between runs.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, memory: str, session: Any = None
    ) -> None:
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._shape, self._dtype, self._is_sessions = shape, np.dtype(dtype), session is not None
        if session is not None:
            self.value = session.create_ortvalue_from_shape_and_type(shape, self._dtype, memory)
        else:
            self.value = ort.OrtValue.ortvalue_from_shape_and_type(shape, self._dtype, memory)

    def read(self, count: int) -> Array:
        return self._whole()[:, :, :count]

    def write(self, values: Array, start: int = 0) -> None:
        whole = self._whole().copy()
        whole[:, :, start : start + values.shape[2]] = values
        if self._is_sessions:
            ort.copy_tensors([ort_value(whole)], [self.value])
        else:
            self.value.update_inplace(whole)

    def _whole(self) -> Array:
        if not self._is_sessions:
            known: Array = self.value.numpy()
            return known
        whole = np.empty(self._shape, self._dtype)
        ort.copy_tensors([self.value], [ort_value(whole)])
        return whole


def ort_value(array: Array) -> Any:
    """An OrtValue on the very memory of a contiguous array of this process."""
    assert array.flags.c_contiguous
    return ort.OrtValue.ortvalue_from_numpy(array)


def empty_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """A zeroed array. Zeroed pages cost no memory until they are written."""
    return np.zeros(shape, dtype)
