"""How close a quantized bundle stays to the unquantized one, per route: KL divergence and top-1 agreement.

    phirt export CHECKPOINT -o FP32 --bits 32
    python tests/benchmarks/nano_fidelity.py INT4 FP32 [--data ../shared/data] [--items 40] [--json]

Both bundles run the same held-out prompts through the engine, each with its own encoders. The unquantized one
leads: its greedy answer (for text: the page itself) is forced on both, and their logits are compared at every
step.
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

import numpy as np

import phirt
from phirt.chat import Message
from phirt.model import TRANSCRIBE_PROMPT
from phirt.sequence import Prompt
from phirt_quant.fidelity import Fidelity, FidelityMeter

STEPS = 16
PAGE_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """One prompt: its media, and the ids to force, or None for the leader's own answer."""

    text: str
    images: tuple[bytes, ...] = ()
    audio: tuple[bytes, ...] = ()
    forced: tuple[int, ...] | None = None


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
        Case("", forced=tuple(model.tokenizer.encode_content(page)[: PAGE_TOKENS + 1])) for page in pages
    ]
    photos = list(media(data / "images", "clothing.val", items // 2))
    photos += media(data / "images", "caltech101.val", items // 2)
    clips = list(media(data / "speech", "speechocean762.val", items))
    seen = [Case("What is in the picture?", images=(photo,)) for photo in photos]
    heard = [Case(TRANSCRIBE_PROMPT, audio=(clip,)) for clip in clips]
    return {"none": texts, "vision": seen, "speech": heard}


def prompt_of(model: phirt.Model, case: Case) -> Prompt:
    """The engine's prompt: a bare first token for pages, a whole user turn for media."""
    if case.forced is not None:
        return Prompt(np.array(case.forced[:1], np.int64))
    parts = model.prepare_media(case.images, case.audio)
    return model.encode_prompt((Message("user", case.text, parts),), None, None)


def compare(candidate: phirt.Model, leader: phirt.Model, batch: list[Case], route: str) -> Fidelity:
    """Agreement over all steps of all cases."""
    meter = FidelityMeter()
    for case in batch:
        engines = [leader.new_engine(), candidate.new_engine()]
        prompts = [prompt_of(leader, case), prompt_of(candidate, case)]
        assert prompts[0].route == prompts[1].route == route
        logits = [e.prefill_prompt(p).copy() for e, p in zip(engines, prompts, strict=True)]
        forced = case.forced[1:] if case.forced is not None else (None,) * STEPS
        for wanted in forced:
            token = int(logits[0].argmax()) if wanted is None else int(wanted)
            meter.add(logits[0][None], logits[1][None], np.array([token]))
            if wanted is None and token in leader.manifest.tokens.eos:
                break
            logits = [engine.decode_step(token).copy() for engine in engines]
    return meter.result()


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
    results: dict[str, Any] = {
        route: dataclasses.asdict(compare(candidate, leader, batch, route))
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
