"""Products of phirt-kernels beside onnxruntime's own, and what the machine can do at most, with several
numbers of threads: for a machine with many cores.

    pip install ./quant/kernels
    python tests/benchmarks/kernels.py
    python tests/benchmarks/kernels.py --threads 1,2,4,8,16 --block-sizes 32,128 --rows 1,4,256

One MatMulNBits [rows, 3072] x [3072, 8192] with 4 bits, in so many copies, one after the other, that no cache
holds their weights where rows are few. Both take turns, so that a busy machine disturbs both alike; best and
median of the pairs' ratios are printed. Shares are those of memory read by as many threads (few rows) and of
the fastest int4 x int8 product that is known here with as many threads, phirt-kernels' or onnxruntime's
(`phirt bench` measures both peaks the same way).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from phirt.runtime import kernels
from phirt.runtime.cpus import usable_cpus
from phirt.runtime.ort import ort
from phirt_apps.bench import peaks
from phirt_apps.machine import cpu_name, instruction_sets, products

INNER, OUTER = 3072, 8192
FEW_ROWS = 8  # up to so many, weights are read from memory at each product
COPIES = 16  # 200 MB of weights
SECONDS = 0.02  # that one take lasts at least


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured: rows of activations, rows of weights that share a scale."""

    rows: int
    block_size: int

    @property
    def copies(self) -> int:
        return COPIES if self.rows <= FEW_ROWS else 1

    @property
    def operations(self) -> int:
        """Of one run, a multiplication and an addition being two."""
        return 2 * self.rows * INNER * OUTER * self.copies

    @property
    def weight_bytes(self) -> int:
        """That one run reads at least: codes, and scales in float16."""
        return INNER * OUTER * self.copies // 2 + INNER * OUTER // self.block_size * 2 * self.copies


def graph(shape: Shape) -> bytes:
    """The products, all of the same activations; their outputs added up in a small way."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    blocks = INNER // shape.block_size
    constants, nodes = [], []
    for copy in range(shape.copies):
        codes = rng.integers(0, 256, (OUTER, blocks, shape.block_size // 2), dtype=np.uint8)
        scales = rng.uniform(0.001, 0.01, (OUTER, blocks)).astype(np.float16).astype(np.float32)
        constants += [numpy_helper.from_array(codes, f"B{copy}"), numpy_helper.from_array(scales, f"s{copy}")]
        sizes = {"K": INNER, "N": OUTER, "bits": 4, "block_size": shape.block_size, "accuracy_level": 4}
        inputs = ["A", f"B{copy}", f"s{copy}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{copy}"], domain="com.microsoft", **sizes))
    a = helper.make_tensor_value_info("A", TensorProto.FLOAT, ["rows", INNER])
    outputs = [
        helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["rows", OUTER]) for node in nodes
    ]
    made = helper.make_graph(nodes, "products", [a], outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(made, opset_imports=opsets, ir_version=10)
    return model.SerializeToString()


def opened(model: bytes, threads: int, library: Path | None) -> Any:
    """A session with onnxruntime's own operators, or with the library's."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def take(session: Any, feed: dict[str, Any]) -> float:
    """Seconds of one run, over as many as fill a take."""
    count, start = 0, time.perf_counter()
    while True:
        session.run(None, feed)
        count += 1
        if (passed := time.perf_counter() - start) >= SECONDS:
            return passed / count


def measure(shape: Shape, threads: int, library: Path, pairs: int) -> list[tuple[float, float]]:
    """Seconds of the library's and of onnxruntime's, pair by pair; the first is left out."""
    model = graph(shape)
    changed = kernels.with_kernels(model)
    assert changed is not None
    ours, theirs = opened(changed, threads, library), opened(model, threads, None)
    feed = {"A": np.random.default_rng(1).standard_normal((shape.rows, INNER), np.float32)}
    taken = []
    for number in range(1 + pairs):
        times = {}
        for session in (ours, theirs) if number % 2 else (theirs, ours):
            times[session] = take(session, feed)
        taken.append((times[ours], times[theirs]))
    return taken[1:]


def table(threads: int, shapes: Sequence[Shape], library: Path, pairs: int) -> list[str]:
    """The rows for one number of threads."""
    read = peaks.measure_reading(threads)["bytes_per_second"]
    timed = {shape: measure(shape, threads, library, pairs) for shape in shapes}
    read = max(read, peaks.measure_reading(threads)["bytes_per_second"])
    known = peaks.measure_multiplying(threads)
    fastest = [shape.operations / min(min(pair) for pair in taken) for shape, taken in timed.items()]
    multiply = max([*fastest, known["operations_per_second"] if known else 0.0])
    rows = []
    for shape, taken in timed.items():
        best, theirs = min(one for one, _ in taken), min(other for _, other in taken)
        ratio = statistics.median(other / one for one, other in taken)
        if shape.rows <= FEW_ROWS:
            share = f"{shape.weight_bytes / best / read:.0%} of {read / 1e9:.1f} GB/s"
        else:
            share = f"{shape.operations / best / multiply:.0%} of {multiply / 1e9:.0f} GOP/s"
        rows.append(
            f"| {threads} | {shape.block_size} | {shape.rows} | {shape.operations / best / 1e9:.0f} "
            f"| {shape.weight_bytes / best / 1e9:.1f} | {shape.operations / theirs / 1e9:.0f} "
            f"| {ratio:.2f} | {share} |"
        )
    return rows


def numbers(given: str) -> list[int]:
    """A list such as 1,2,4."""
    return [int(part) for part in given.split(",")]


def main() -> None:
    """Measures and prints, row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    some = [count for count in (1, 2, 4, 8, 16) if count <= usable_cpus()]
    parser.add_argument("--threads", type=numbers, default=some, metavar="N,...")
    parser.add_argument("--block-sizes", type=numbers, default=[32, 128], metavar="N,...")
    parser.add_argument("--rows", type=numbers, default=[1, 4, 256], metavar="N,...")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if (library := kernels.library()) is None:
        parser.error("phirt-kernels is not installed, or of no use here: pip install ./quant/kernels")
    shapes = [Shape(rows, size) for size in options.block_sizes for rows in options.rows]
    print(f"{cpu_name()} ({', '.join(instruction_sets())}), {usable_cpus()} logical cores; {products()}\n")
    print("| threads | block | rows | GOP/s | GB/s | onnxruntime, GOP/s | faster by | share of the peak |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in options.threads:
        print("\n".join(table(threads, shapes, library, options.pairs)), flush=True)


if __name__ == "__main__":
    main()
