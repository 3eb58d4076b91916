"""How close a quantized bundle stays to the unquantized one on held-out data, per route.

    phirt export CHECKPOINT -o FP32 --bits 32
    python tests/benchmarks/nano_fidelity.py INT4 FP32 [--data ../shared/data] [--items 40] [--json]

The comparison of `phirt eval`, on prompts from the data package: pages, photos and sentences that training
has not seen. Both bundles run the same prompts, each with its own encoders. The unquantized one leads: its
greedy answer (for text: the page itself) is forced on both, and their logits are compared at every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import phirt
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_quant.evaluation import BundleReference, Case, compare

PAGE_TOKENS = 128


def media(folder: Path, name: str, count: int) -> Iterator[bytes]:
    """The first media files of a source, spread over it."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    with tarfile.open(folder / f"{name}.tar") as tar:
        for line in lines[:: max(1, len(lines) // count)][:count]:
            member = tar.extractfile(json.loads(line)["file"])
            assert member is not None
            yield member.read()


def cases(model: phirt.Model, data: Path, items: int) -> dict[str, list[Case]]:
    """Held-out prompts of each route."""
    with lzma.open(data / "text/wikipedia.val.jsonl.xz", "rt", encoding="utf-8") as lines:
        pages = [json.loads(line)["text"] for _, line in zip(range(items), lines, strict=False)]
    texts = [
        Case(forced=tuple(model.generator.tokenizer.encode_content(page)[: PAGE_TOKENS + 1]))
        for page in pages
    ]
    photos = list(media(data / "images", "clothing.val", items // 2))
    photos += media(data / "images", "caltech101.val", items // 2)
    clips = list(media(data / "speech", "speechocean762.val", items))
    seen = [Case("What is in the picture?", images=(photo,)) for photo in photos]
    heard = [Case(TRANSCRIBE_PROMPT, audio=(clip,)) for clip in clips]
    return {"none": texts, "vision": seen, "speech": heard}


def main() -> None:
    """Print one row per route, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidate", type=Path)
    parser.add_argument("leader", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    candidate, leader = phirt.load(options.candidate), phirt.load(options.leader)
    reference = BundleReference(leader, candidate)
    results: dict[str, Any] = {
        route: dataclasses.asdict(compare(candidate, reference, batch, route).fidelity)
        for route, batch in cases(leader, options.data, options.items).items()
    }
    if options.json:
        print(json.dumps(results, indent=1))
        return
    print("| route | positions | mean KL (nats) | 99th percentile | top-1 agreement |\n|---|---|---|---|---|")
    for route, row in results.items():
        print(
            f"| {route} | {row['positions']} | {row['mean_kl']:.4f} | {row['p99_kl']:.3f} "
            f"| {100 * row['top1_agreement']:.1f} % |"
        )


if __name__ == "__main__":
    main()
