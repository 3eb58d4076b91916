"""What inactive LoRA branches cost: a routed decoder on route none against the same decoder without branches.

Run it by hand: `python tests/benchmarks/inactive_branches.py nano phi4-mini`. Both graphs have the
same random weights and run alternately in one process over one shared buffer of keys and values;
they are compared pair by pair, so that a busy machine disturbs both alike. Which session is loaded
first decides where its weights lie, which alone moves a decode step of a large model by up to 10 %:
so both orders are loaded and averaged, and `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (huge pages)
makes it steadier. `--cpu-time` (one thread) leaves out what other processes took.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from phirt_export.checkpoint import expected_shapes
from phirt_export.exporter import write_graphs
from phirt_export.formats import choose_formats
from phirt_export.reference import AdapterConfig, DecoderConfig, ModelConfig, RopeConfig, TokenConfig

Clock = Callable[[], float]
DEPTH = 64
CHUNK = 128


@dataclasses.dataclass(frozen=True)
class Scale:
    """A model size with its weight format, the target of the ratio, and how much to run per pair."""

    config: ModelConfig
    bits: int
    block_size: int
    target: float
    steps: int


def _scale(
    decoder: DecoderConfig, ranks: tuple[int, int], bits: int, block: int, target: float, steps: int
) -> Scale:
    adapters = {n: AdapterConfig(r, 2.0 * r) for n, r in zip(("vision", "speech"), ranks, strict=True)}
    config = ModelConfig(decoder, TokenConfig(0, 0, (0, 4), 1, 2), None, None, adapters)
    return Scale(config, bits, block, target, steps)


def _rope(pairs: int, context: int) -> RopeConfig:
    return RopeConfig(10000.0, 2 * pairs, context, context, (1.0,) * pairs, (1.0,) * pairs)


SCALES = {
    "nano": _scale(
        DecoderConfig(6, 256, 4, 2, 64, 768, 4096, 1e-5, _rope(24, 2048)), (16, 32), 8, 32, 1.08, 50
    ),
    "phi4-mini": _scale(
        DecoderConfig(8, 3072, 24, 8, 128, 8192, 32064, 1e-5, _rope(48, 4096)), (256, 320), 4, 128, 1.03, 2
    ),
}


class RandomWeights:
    """A weight source: pieces of one random slab, so that building a large model takes seconds.

    Each tensor begins elsewhere in the slab: onnxruntime keeps one packed copy of weights with equal bytes,
    and layers that share one would be read from caches instead of memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_shapes(config)
        self._slab = (0.02 * np.random.default_rng(0).standard_normal(1 << 22)).astype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        shape = (stop - start, *self._shapes[name][1:])
        if "norm" in name:
            return np.ones(shape, np.float32)
        return np.resize(np.roll(self._slab, zlib.crc32(f"{name} {start}".encode())), shape)

    def tensor(self, name: str) -> np.ndarray:
        return self.rows(name, 0, self._shapes[name][0])


class Runner:
    """One session, with bindings made ahead for one-token and chunk runs."""

    def __init__(
        self, path: Path, config: DecoderConfig, caches: list[ort.OrtValue], threads: int, clock: Clock
    ) -> None:
        self._clock = clock
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._bindings = {length: self._bind(length, config, caches) for length in (1, CHUNK)}

    def _bind(self, length: int, config: DecoderConfig, caches: list[ort.OrtValue]) -> ort.IOBinding:
        total = length if length == CHUNK else DEPTH + 1
        feeds = {
            "input_ids": np.full((1, length), 5, np.int64),
            "media_features": np.zeros((0, config.hidden_size), np.float32),
            "route": np.zeros(1, np.int64),
            "num_logits": np.ones(1, np.int64),
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array([total], np.int32),
        }
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for i, cache in enumerate(caches):
            part = f"{i // 2}.{'value' if i % 2 else 'key'}"
            binding.bind_ortvalue_input(f"past_key_values.{part}", cache)
            binding.bind_ortvalue_output(f"present.{part}", cache)
        logits = np.zeros((1, 1, config.vocab_size), np.float32)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        return binding

    def run(self, length: int, times: int) -> float:
        """Seconds a run takes, averaged over `times`."""
        start = self._clock()
        for _ in range(times):
            self._session.run_with_iobinding(self._bindings[length])
        return (self._clock() - start) / times


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Routed over plain: median (averaged over load orders), quartiles over pairs, microseconds a run."""

    median: float
    quartiles: tuple[float, float]
    routed_micros: float
    plain_micros: float


def alternate(routed: Callable[[], float], plain: Callable[[], float], pairs: int) -> np.ndarray:
    """Seconds [pairs, 2] of both, each pair in the opposite order of the one before."""
    seconds = np.empty((pairs, 2))
    sides = [(routed, 0), (plain, 1)]
    for run, _ in sides:
        run()
    for i in range(pairs):
        for run, column in sides if i % 2 == 0 else reversed(sides):
            seconds[i, column] = run()
    return seconds


def summarize(loads: list[np.ndarray]) -> Ratio:
    """One figure from the pairs of each load order."""
    ratios = [seconds[:, 0] / seconds[:, 1] for seconds in loads]
    low, high = np.percentile(np.concatenate(ratios), [25, 75])
    median = np.exp(np.mean([np.log(np.median(r)) for r in ratios]))
    routed, plain = np.median(np.concatenate(loads), axis=0) * 1e6
    return Ratio(float(median), (float(low), float(high)), float(routed), float(plain))


def build(folder: Path, config: ModelConfig, scale: Scale) -> Path:
    """Write the decoder of `config` into `folder`."""
    folder.mkdir()
    formats = choose_formats(scale.bits, scale.block_size, None, 8, 8, "rtn")
    write_graphs(folder, config, RandomWeights(config), formats)
    return folder / "decoder.onnx"


def measure(scale: Scale, threads: int, pairs: int, clock: Clock) -> dict[str, Ratio]:
    """Ratios of decode at a depth of 64 and of a prefill of one chunk."""
    decoder = scale.config.decoder
    shape = (1, decoder.num_kv_heads, 256, decoder.head_dim)
    caches = [
        ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for _ in range(2 * decoder.num_layers)
    ]
    seconds: dict[str, list[np.ndarray]] = {"decode": [], "prefill": []}
    with tempfile.TemporaryDirectory() as name:
        plain_config = dataclasses.replace(scale.config, adapters={})
        paths = {
            "routed": build(Path(name) / "routed", scale.config, scale),
            "plain": build(Path(name) / "plain", plain_config, scale),
        }
        for order in (("routed", "plain"), ("plain", "routed")):
            runners = {part: Runner(paths[part], decoder, caches, threads, clock) for part in order}
            for phase, length, steps, count in (
                ("decode", 1, scale.steps, pairs),
                ("prefill", CHUNK, 1, max(5, pairs // 4)),
            ):
                both = [functools.partial(runners[part].run, length, steps) for part in ("routed", "plain")]
                seconds[phase].append(alternate(*both, count))
            del runners, both
    return {phase: summarize(loads) for phase, loads in seconds.items()}


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scales", nargs="*", choices=[*SCALES, []], default=list(SCALES))
    parser.add_argument("--threads", type=int, default=1, help="threads of each session (default 1)")
    parser.add_argument(
        "--pairs", type=int, default=60, help="decode pairs of each load order (prefill: a quarter)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--cpu-time", action="store_true", help="time of this thread, not of the wall clock")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time sees one thread only; leave --threads at 1")
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    report = {}
    for name in arguments.scales:
        scale = SCALES[name]
        ratios = measure(scale, arguments.threads, arguments.pairs, clock)
        report[name] = {
            "target": scale.target,
            **{phase: dataclasses.asdict(ratio) for phase, ratio in ratios.items()},
        }
        if not arguments.json:
            print(f"{name} (target {scale.target}):")
            for phase, r in ratios.items():
                spread = f"{r.quartiles[0]:.3f} to {r.quartiles[1]:.3f}"
                micros = f"{r.routed_micros:.0f} against {r.plain_micros:.0f} µs a run"
                print(f"  {phase}: {r.median:.3f} (quartiles {spread}), {micros}")
    if arguments.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
