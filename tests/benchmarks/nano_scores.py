"""Scores nano on data it has not seen, through `phirt` alone: free text, exact match after normalisation.

    python tests/benchmarks/nano_scores.py [BUNDLE] [--data ../shared/data] [--json] [--limit N]

Sources: the validation splits of the data package, and for digits the speaker that training leaves out.
Nothing here imports torch; the answers are what a user of the bundle gets.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import phirt
from phirt.generate.sequence import Prompt
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_quant.word_errors import word_errors

NANO = Path(__file__).resolve().parents[1] / "bundles/nano"
HELD_OUT_SPEAKER = "fsdd5"
TOOL_SYSTEM = "Turn the request into a tool call."
QUESTIONS = {
    "clothing": "What piece of clothing is this?",
    "caltech101": "What is in the picture?",
    "grocery": "Which product is this?",
}
GREEDY = phirt.GenerationConfig(max_new_tokens=96)
# Floors of a first model, as shares.
FLOORS = {
    "clothing": 0.65,
    "caltech101": 0.30,
    "grocery": 0.35,
    "digits of a new speaker": 0.85,
    "snips": 0.70,
}


def normalise(text: str) -> str:
    """Lower case, letters, digits and single spaces; articles at the start left out."""
    words = re.sub(r"[^\w\s]", " ", text.lower().replace("'", "")).split()
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, packed or not."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def with_media(folder: Path, name: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Records and the bytes of the media they name."""
    with tarfile.open(folder / f"{name}.tar") as tar:
        for record in records(folder / f"{name}.jsonl"):
            member = tar.extractfile(record["file"])
            assert member is not None
            yield record, member.read()


def answer(model: phirt.Model, prompt: str, system: str | None = None, **media: Any) -> phirt.Result:
    """One greedy answer in a new conversation."""
    return model.chat(system=system).send(prompt, config=GREEDY, **media).result


def pictures(model: phirt.Model, data: Path, source: str, limit: int | None) -> dict[str, float]:
    """Exact names of held-out photos."""
    right = [
        normalise(answer(model, QUESTIONS[source], images=[media]).text) == normalise(record["label"])
        for record, media in list(with_media(data / "images", f"{source}.val"))[:limit]
    ]
    return {source: float(np.mean(right))}


def digits(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """Digits of the speaker that is in no training stage; and of the known speakers' held-out takes."""
    scores: dict[str, list[bool]] = {"digits of a new speaker": [], "digits of known speakers": []}
    clips = [*with_media(data / "speech", "fsdd.val"), *with_media(data / "speech", "fsdd.train")]
    for index, (record, media) in enumerate(clips):
        new = record["speaker"] == HELD_OUT_SPEAKER
        name = "digits of a new speaker" if new else "digits of known speakers"
        if (index >= 250 and not new) or (limit is not None and len(scores[name]) >= limit):
            continue
        text = answer(model, TRANSCRIBE_PROMPT, audio=[media]).text
        scores[name].append(normalise(text) == record["text"])
    return {name: float(np.mean(right)) for name, right in scores.items()}


def sentences(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """Word error rate on read sentences of new speakers."""
    errors = words = 0
    for record, media in list(with_media(data / "speech", "speechocean762.val"))[:limit]:
        heard = normalise(answer(model, TRANSCRIBE_PROMPT, audio=[media]).text)
        errors += word_errors(normalise(record["text"]), heard)
        words += len(normalise(record["text"]).split())
    return {"spoken sentences, word error rate": errors / words}


def orders(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """Spoken coffee orders as exact tool calls."""
    right = []
    for record, media in list(with_media(data / "speech", "speech_to_intent.val"))[:limit]:
        calls = answer(model, "", TOOL_SYSTEM, audio=[media]).tool_calls
        right.append([same_call(call, record["intent"], record["slots"]) for call in calls] == [True])
    return {"spoken orders to tool calls": float(np.mean(right))}


def same_call(call: Any, name: str, arguments: dict[str, Any]) -> bool:
    """Whether a parsed tool call has this name and these arguments, spelling normalised."""

    def plain(value: Any) -> Any:
        return [normalise(item) for item in value] if isinstance(value, list) else normalise(str(value))

    given = call.arguments
    return bool(
        call.name == name
        and isinstance(given, dict)
        and {key: plain(value) for key, value in given.items()}
        == {key: plain(value) for key, value in arguments.items()}
    )


def requests(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """Written requests as exact tool calls: the intent and every slot."""
    right = []
    for record in records(data / "eval/snips.validate.jsonl.xz")[:limit]:
        wanted: dict[str, Any] = {}
        for name, value in record["slots"]:
            known = wanted.get(name)
            wanted[name] = (
                value if known is None else [*([known] if isinstance(known, str) else known), value]
            )
        calls = answer(model, record["text"], TOOL_SYSTEM).tool_calls
        right.append([same_call(call, record["intent"], wanted) for call in calls] == [True])
    return {"snips": float(np.mean(right))}


def bits_per_byte(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """Bits per UTF-8 byte on the first 512 tokens of each validation page, each token scored by its own
    step.
    """
    nats, size = 0.0, 0
    for record in records(data / "text/wikipedia.val.jsonl.xz")[: 40 if limit is None else limit]:
        text = f"{record['title']}\n\n{record['text']}"
        ids = model.generator.tokenizer.encode_content(text)[:512]
        engine = model.generator.new_engine()
        logits = engine.prefill_prompt(Prompt(np.array(ids[:1], np.int64)))
        for token in ids[1:]:
            scores = logits.astype(np.float64)
            top = scores.max()
            nats += math.log(np.exp(scores - top).sum()) + top - scores[token]
            logits = engine.decode_step(int(token))
        size += len(model.generator.tokenizer.decode(ids[1:]).encode())
    return {"wikipedia, bits per byte": nats / math.log(2) / size}


def score(bundle: Path, data: Path, limit: int | None) -> dict[str, float]:
    """All scores by name."""
    model = phirt.load(bundle)
    parts: list[Callable[[], dict[str, float]]] = [
        *(lambda source=source: pictures(model, data, source, limit) for source in QUESTIONS),
        lambda: digits(model, data, limit),
        lambda: sentences(model, data, limit),
        lambda: orders(model, data, limit),
        lambda: requests(model, data, limit),
        lambda: bits_per_byte(model, data, limit),
    ]
    scores: dict[str, float] = {}
    for part in parts:
        scores |= part()
    return scores


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=NANO)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data")
    parser.add_argument("--limit", type=int, help="items of each source, for a quick look")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    scores = score(options.bundle, options.data, options.limit)
    if options.json:
        print(json.dumps(scores, indent=1))
        return
    out = io.StringIO()
    out.write("| measured on data not seen in training | score | floor |\n|---|---|---|\n")
    for name, value in scores.items():
        share = name in FLOORS or name.startswith(("digits", "spoken orders", "spoken sentences"))
        shown = f"{100 * value:.1f} %" if share else f"{value:.3f}"
        floor = f"{100 * FLOORS[name]:.0f} %" if name in FLOORS else "reported"
        out.write(f"| {name} | {shown} | {floor} |\n")
    print(out.getvalue(), end="")


if __name__ == "__main__":
    main()
