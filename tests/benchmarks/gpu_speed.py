"""Prefill and decoding of a bundle on a provider such as CUDA, in tokens a second.

    python tests/benchmarks/gpu_speed.py BUNDLE --provider cuda

A decode step has to read every weight once, so beside its speed stands what that comes to in GB/s.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from phirt.bundle.files import load_manifest
from phirt.bundle.variants import for_provider
from phirt.generate.engine import Engine
from phirt.generator import Generator
from phirt.runtime.device import Device
from phirt.runtime.session import SessionConfig

PROMPTS, DEPTHS, STEPS, REPEATS = (128, 1024), (128, 1024, 4096), 64, 5


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", default="cuda")
    options = parser.parse_args()
    device = Device.named(options.provider)
    manifest = for_provider(load_manifest(options.bundle), device.provider, device.options)
    begin = time.perf_counter()
    generator = Generator(manifest, SessionConfig(device))
    engine = generator.new_engine()
    print(f"opened in {time.perf_counter() - begin:.1f} s")
    rng = np.random.default_rng(1)
    read = sum(manifest.files[name].size for name in manifest.graphs["decoder"].data)

    def prompt(count: int) -> list[int]:
        return [int(i) for i in rng.integers(10, 20_000, count)]

    for count in PROMPTS:
        rates = [count / _seconds(generator.new_engine(), prompt(count)) for _ in range(REPEATS + 1)]
        print(f"prefill of {count}: {statistics.median(rates[1:]):,.0f} tokens/s")
    for depth in (one for one in DEPTHS if one + STEPS < manifest.geometry.context):
        engine = generator.new_engine()
        engine.prefill(prompt(depth))
        engine.decode_step(17)
        begin = time.perf_counter()
        for _ in range(STEPS):
            engine.decode_step(17)
        rate = STEPS / (time.perf_counter() - begin)
        print(f"decoding behind {depth}: {rate:.1f} tokens/s, {rate * read / 1e9:.0f} GB/s of weights")
    generator.close()


def _seconds(engine: Engine, ids: list[int]) -> float:
    begin = time.perf_counter()
    engine.prefill(ids)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
