"""What the machine can do at most: reading memory, and multiplying int4 weights by int8 activations.

Knows threads, pages and kernels. Knows nothing of bundles. Each probe runs in a process of its own
(`measure_…`), so that its buffers are not counted as the model's and no other library's threads stand in its
way:

    python -m phirt_apps.bench.peaks read 2
    python -m phirt_apps.bench.peaks multiply 2

prints one JSON object, null where the probe cannot run here.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import psutil

from phirt.errors import PhirtError
from phirt.runtime import kernels

Probe = Literal["read", "multiply"]

_BUFFER_BYTES = 1 << 30  # many times the largest cache of a processor; smaller where memory is short
_ROUNDS = 4
_PIECES = (1, 8)  # of each thread's share: a piece a thread, or many small ones
# One library that multiplies may not start threads of its own beside the probe's.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# An int4 product of a large layer's shape; block sizes that onnxruntime has fast kernels for.
_INNER, _OUTER = 3072, 8192
_BLOCK_SIZES = (64, 128, 256)
_ROWS = (64, 128, 256)
_SECONDS_EACH = 0.25
_ACCURACY_INT8 = 4  # MatMulNBits' accuracy_level: activations are quantized to int8
_PROBE_SECONDS = 300


def measure_reading(threads: int) -> dict[str, Any]:
    """What `read_bandwidth` finds, in a process of its own. Raises PhirtError where that fails."""
    result = _measure("read", threads)
    assert result is not None
    return result


def measure_multiplying(threads: int) -> dict[str, Any] | None:
    """What `int4_product` finds, in a process of its own. Raises PhirtError where that fails."""
    return _measure("multiply", threads)


def _measure(probe: Probe, threads: int) -> dict[str, Any] | None:
    # -P: whatever lies in the current folder is not imported.
    command = [sys.executable, "-P", "-m", __name__, probe, str(threads)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **_ONE_THREAD},
            capture_output=True,
            check=True,
            timeout=_PROBE_SECONDS,
        )
        result: dict[str, Any] | None = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        detail = getattr(error, "stderr", None) or str(error).encode()
        last = detail.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise PhirtError(f"measuring what the machine can {probe} failed: {' '.join(last)}") from error
    return result


def read_bandwidth(threads: int, buffer_bytes: int) -> dict[str, Any]:
    """The fastest of several ways to read a buffer, on huge pages (where the system gives them) and on usual
    ones, with `threads` threads that share it. Best of several rounds: a probe is disturbed, never helped.

    Returns bytes_per_second, and how it was reached: method, pages, threads, buffer_bytes.
    """
    best: dict[str, Any] = {"bytes_per_second": 0.0}
    with ThreadPoolExecutor(threads) as pool:
        for pages, buffer in _buffers(buffer_bytes):
            for count in _PIECES:
                pieces = np.array_split(buffer, threads * count)
                for method, read in _METHODS.items():
                    rate = buffer.nbytes / min(_seconds(pool, read, pieces) for _ in range(_ROUNDS))
                    if rate > best["bytes_per_second"]:
                        best = {"bytes_per_second": rate, "method": method, "pages": pages}
            del pieces, buffer  # before there is another one
    return {**best, "threads": threads, "buffer_bytes": buffer_bytes}


def _dot(piece: Any) -> Any:
    return np.dot(piece, piece)  # one array, read once


def _largest(piece: Any) -> Any:
    return piece.max()


def _bits(piece: Any) -> Any:
    return np.bitwise_or.reduce(piece.view(np.uint32))


_METHODS: dict[str, Callable[[Any], Any]] = {"dot product": _dot, "maximum": _largest, "bitwise or": _bits}


def _buffers(nbytes: int) -> Iterator[tuple[str, Any]]:
    """float32 buffers whose pages are in memory, one kind of pages after the other."""
    kinds = {"huge": "MADV_HUGEPAGE", "usual": "MADV_NOHUGEPAGE"}
    advice = {pages: getattr(mmap, name) for pages, name in kinds.items() if hasattr(mmap, name)}
    for pages, wanted in (advice or {"as given": None}).items():
        memory = mmap.mmap(-1, nbytes)
        if wanted is not None:
            try:
                memory.madvise(wanted)
            except OSError:  # a kernel without huge pages
                pages = "as given"
        yield pages, _filled(memory)
        del memory


def _filled(memory: mmap.mmap) -> Any:
    buffer = np.frombuffer(memory, dtype=np.float32)
    buffer[:] = 1.0
    return buffer


def _seconds(pool: ThreadPoolExecutor, read: Callable[[Any], Any], pieces: list[Any]) -> float:
    start = time.perf_counter()
    list(pool.map(read, pieces))
    return time.perf_counter() - start


def _affordable(nbytes: int) -> int:
    """At most a quarter of the memory that is there, but enough to be larger than caches."""
    total = psutil.virtual_memory().total
    return int(min(nbytes, max(1 << 27, total // 4))) & ~0xFFFFF


def int4_product(threads: int) -> dict[str, Any] | None:
    """The fastest int4 x int8 product there is here, of phirt-kernels or of onnxruntime, best over block
    sizes and numbers of rows.

    Returns operations_per_second (a multiplication and an addition are two), block_size, rows and threads;
    None where onnx_ir, of the extra `export`, is missing: nothing else here can make the graph.
    """
    try:
        import onnx_ir  # noqa: F401 - imported again where the graph is made
    except ImportError:
        return None
    best: dict[str, Any] = {"operations_per_second": 0.0}
    for block_size in _BLOCK_SIZES:
        session = _product_session(block_size, threads)
        for rows in _ROWS:
            seconds = _product_seconds(session, rows)
            rate = 2 * rows * _INNER * _OUTER / seconds
            if rate > best["operations_per_second"]:
                best = {"operations_per_second": rate, "block_size": block_size, "rows": rows}
    return {**best, "threads": threads}


def _product_seconds(session: Any, rows: int) -> float:
    """The fastest of the products that fit into a quarter of a second."""
    feed = {"x": np.random.default_rng(0).standard_normal((rows, _INNER), np.float32)}
    session.run(None, feed)
    best, end = float("inf"), time.perf_counter() + _SECONDS_EACH
    while (start := time.perf_counter()) < end:
        session.run(None, feed)
        best = min(best, time.perf_counter() - start)
    return best


def _product_session(block_size: int, threads: int) -> Any:
    """One MatMulNBits [rows, 3072] x [3072, 8192] with random weights."""
    import onnx_ir as ir

    import phirt.runtime.session  # noqa: F401 - it turns telemetry off while onnxruntime is imported
    import onnxruntime as ort  # isort: skip

    rng = np.random.default_rng(0)
    blocks = _INNER // block_size
    codes = rng.integers(0, 256, (_OUTER, blocks, block_size // 2), dtype=np.uint8)
    scales = rng.uniform(0.001, 0.01, (_OUTER, blocks)).astype(np.float32)
    weights = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name))
        for name, array in (("codes", codes), ("scales", scales))
    ]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", _INNER]))
    sizes = {"K": _INNER, "N": _OUTER, "bits": 4, "block_size": block_size, "accuracy_level": _ACCURACY_INT8}
    node = ir.node("MatMulNBits", [x, *weights], attributes=sizes, domain="com.microsoft")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", _OUTER])
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=weights, opset_imports=opsets, name="product")
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=10)).SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if (library := kernels.library()) is not None and (faster := kernels.with_kernels(model)) is not None:
        options.register_custom_ops_library(str(library))
        model = faster
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _main() -> None:
    probe, threads = sys.argv[1], int(sys.argv[2])
    if probe == "read":
        print(json.dumps(read_bandwidth(threads, _affordable(_BUFFER_BYTES))))
    else:
        print(json.dumps(int4_product(threads)))


if __name__ == "__main__":
    _main()
