"""Keys and values of the positions that were run: buffers that grow, shared by the graph's past and present.

Knows shapes and lengths. Knows nothing of token ids, adapters or what makes an entry valid; `engine` decides
that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import Geometry, TensorSpec
from phirt.errors import BundleError, out_of_memory
from phirt.runtime.device import CPU
from phirt.runtime.tensor import Allocator, Tensor

_FIRST_CAPACITY = 256

Layer = npt.NDArray[Any]
DTYPES = ("float32", "float16", "int8", "uint16", "uint8")
_INPUT = "past_key_values."


class KVCache:
    """Buffers [1, num_kv_heads, capacity, head_dim] for keys and values of every layer, in the memory of the
    device: float32 or float16, or whole numbers where the graph knows the scales.

    GroupQueryAttention writes new entries in place after `length` ones, so past and present are one buffer.
    Capacity doubles from 256 up to `context`; graphs of one size want all of it at once, as `capacity` says,
    and what they compute is `put` there. Entries past `length` are leftovers and never read.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        context: int,
        dtype: str = "float32",
        device: Allocator = CPU,
        capacity: int | None = None,
    ) -> None:
        self.num_layers = num_layers
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.context = context
        self.dtype = np.dtype(dtype)
        self._device = device
        self.length = 0
        self.capacity = 0
        self._tensors: dict[str, Tensor] = {}
        self._first_capacity = min(_FIRST_CAPACITY, context) if capacity is None else capacity
        self._allocate(self._first_capacity)

    @classmethod
    def of_graph(
        cls,
        inputs: Sequence[TensorSpec],
        geometry: Geometry,
        device: Allocator = CPU,
        capacity: int | None = None,
    ) -> KVCache:
        """An empty cache for a decoder graph with these inputs. Raises BundleError where they are not one
        buffer for keys and one for values of each of the geometry's layers, in one of DTYPES.
        """
        sizes = (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, geometry.context)
        cache = cls(*sizes, dtype=cache_dtype(inputs), device=device, capacity=capacity)
        names = {spec.name for spec in inputs if spec.name.startswith(_INPUT)}
        if names != {f"{_INPUT}{name}" for name in cache.names}:
            raise BundleError(
                f"the decoder graph takes {len(names)} cache buffers, the geometry's layers make "
                f"{len(cache.names)}; export the bundle again"
            )
        return cache

    def reserve(self, total: int) -> bool:
        """Makes room for `total` positions, keeping what is cached. Returns whether the buffers moved."""
        assert total <= self.context
        if total <= self.capacity:
            return False
        self._allocate(_grown(self.capacity, total, self.context))
        return True

    def nbytes_for(self, total: int) -> int:
        """Bytes of a cache that has grown to hold `total` positions."""
        grown = max(self._first_capacity, _grown(self._first_capacity, total, self.context))
        return self.nbytes * grown // self.capacity

    def advance(self, count: int) -> None:
        """Notes that the graph has written `count` more positions."""
        assert self.length + count <= self.capacity
        self.length += count

    def put(self, arrays: Mapping[str, Layer]) -> None:
        """Writes keys and values [1, num_kv_heads, n, head_dim] of every buffer behind the cached positions;
        they count once the cache is told to advance.
        """
        for name, array in arrays.items():
            self._tensors[name].write(array, self.length)

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on; costs nothing."""
        assert 0 <= length <= self.length
        self.length = length

    def clear(self) -> None:
        """Forgets everything and gives grown buffers back."""
        self.length = 0
        if self.capacity > self._first_capacity:
            self._tensors.clear()
            self._allocate(self._first_capacity)

    def copy(self, length: int | None = None) -> KVCache:
        """An independent cache with the same first `length` positions, by default all."""
        length = self.length if length is None else length
        assert length <= self.length
        sizes = (self.num_layers, self.num_kv_heads, self.head_dim, self.context)
        whole = self._first_capacity if self._first_capacity == self.capacity else None
        other = KVCache(*sizes, self.dtype.name, self._device, whole)
        other.reserve(length)
        for suffix, tensor in self._tensors.items():
            other._tensors[suffix].write(tensor.read(length))
        other.length = length
        return other

    def bindings(self) -> Iterator[tuple[str, str, Any]]:
        """Graph input name, graph output name and the OrtValue that serves as both."""
        for suffix, tensor in self._tensors.items():
            yield f"{_INPUT}{suffix}", f"present.{suffix}", tensor.value

    def export(self) -> Iterator[tuple[str, Layer]]:
        """(name, array [1, num_kv_heads, length, head_dim]) for every buffer, names as `names`."""
        for suffix, tensor in self._tensors.items():
            yield suffix, tensor.read(self.length)

    def restore(self, arrays: Mapping[str, Layer], length: int) -> None:
        """Takes over exported arrays of `length` positions."""
        assert set(arrays) == set(self._tensors)
        self.length = 0
        self.reserve(length)
        for suffix, array in arrays.items():
            self._tensors[suffix].write(array)
        self.length = length

    @property
    def names(self) -> tuple[str, ...]:
        """The buffers' names: "0.key", "0.value", "1.key", …"""
        return tuple(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers at their present capacity."""
        positions = 2 * self.num_layers * self.num_kv_heads * self.capacity  # of keys and of values
        return positions * self.head_dim * self.dtype.itemsize

    def _allocate(self, capacity: int) -> None:
        try:
            self._grow(capacity)
        except BaseException as error:  # out of memory, or Ctrl-C: an empty cache is whole, half a one is not
            self.length = 0
            self._tensors = {}
            self._grow(self._first_capacity)
            raise out_of_memory(error, f"keep keys and values of {capacity} tokens") or error from None

    def _grow(self, capacity: int) -> None:
        old = self._tensors
        self._tensors = {}
        for layer in range(self.num_layers):
            for part in ("key", "value"):
                suffix = f"{layer}.{part}"
                tensor = self._device.allocate((1, self.num_kv_heads, capacity, self.head_dim), self.dtype)
                # Freed buffer by buffer, so that growth needs little extra memory.
                previous = old.pop(suffix, None)
                if previous is not None and self.length:
                    tensor.write(previous.read(self.length))
                self._tensors[suffix] = tensor
        self.capacity = capacity


def cache_dtype(inputs: Sequence[TensorSpec]) -> str:
    """The type in which a decoder graph with these inputs keeps keys and values. Raises BundleError where it
    is none of DTYPES.
    """
    kinds = sorted({spec.dtype for spec in inputs if spec.name.startswith(_INPUT)})
    if len(kinds) != 1 or kinds[0] not in DTYPES:
        raise BundleError(
            f"the decoder graph keeps keys and values as {' and '.join(kinds) or 'nothing'}, accepted: "
            f"{' or '.join(DTYPES)}; export the bundle again"
        )
    return kinds[0]


def _grown(capacity: int, total: int, context: int) -> int:
    """The capacity that buffers grow to for `total` positions."""
    while capacity < total:
        capacity *= 2
    return min(capacity, context)
