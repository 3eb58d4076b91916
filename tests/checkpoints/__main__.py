"""Command line: python -m tests.checkpoints phi4mm OUT --scale full (5.57 billion weights, about 11 GB)."""

from __future__ import annotations

import argparse
from pathlib import Path

from .write import FAMILIES, SCALES, SHARD_BYTES, configurations, write_checkpoint

_RANKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizer" / "o200k_base.tiktoken"


def main() -> None:
    """Write one random checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoints", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("output", type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--scale", choices=SCALES, default="small",
        help="full: the published size (Phi models); 904m: eight layers of Phi-4-mini's width",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--ranks", type=Path, default=_RANKS, help="o200k_base.tiktoken")
    options = parser.parse_args()
    if options.scale not in configurations(options.family):
        known = ", ".join(configurations(options.family))
        parser.error(f"{options.family} has no scale {options.scale}; it has {known}")
    if options.output.exists():
        parser.error(f"{options.output} exists; name a new folder")
    if not options.ranks.is_file():
        parser.error(f"{options.ranks} is not there; name o200k_base.tiktoken with --ranks")
    write_checkpoint(
        options.output, options.family, options.ranks,
        scale=options.scale, seed=options.seed, shard_bytes=options.shard_bytes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
