"""Scores a bundle of mini's kind on data it has not seen, through `phirt` alone.

    python tests/benchmarks/mini_scores.py BUNDLE [--data ../shared/data] [--only NAME…] [--limit N] [--json]

Names, claims and orders count where they are exact after normalisation; a photo of everyday things counts
where the answer names an object that one of its captions has. Sources: the validation splits of the data
package, COCO's photos and the samples, which no training stage reads. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nano_scores import answer, digits, normalise, pictures, records, sentences, with_media

import phirt
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_quant.word_errors import word_errors

ORDER, ANY = "Turn the order into JSON.", "What is in this picture?"
# Words that name no object.
_IDLE = frozenset(
    re.findall(
        r"\w+",
        """a an the of in on at to and or with is are it its this that there for from by as one two some
        white black red green blue yellow brown old young small large big little""",
    )
)


def claims(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """True or false: a sentence about three boxes of shapes."""
    right = []
    for record, media in list(with_media(data / "images", "nlvr.val"))[:limit]:
        asked = f"True or false: {record['sentence'].strip()}"
        right.append(normalise(answer(model, asked, images=[media]).text) == record["label"])
    return {"nlvr": float(np.mean(right))}


def named_words(text: str) -> set[str]:
    """The words of a text that may name objects, in the singular."""
    words = set(normalise(text).split()) - _IDLE
    return {re.sub(r"(?<=\w\w)(?:es|s)$", "", word) for word in words} | words


def everyday(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """COCO's photos: the answer names an object that a caption has."""
    right = []
    for record, media in list(with_media(data / "images", "coco.dev"))[:limit]:
        found = answer(model, ANY, images=[media]).text
        known = set().union(*(named_words(caption) for caption in record["captions"]))
        right.append(bool(named_words(found) & known))
    return {"coco, an object named": float(np.mean(right))}


def samples(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """The samples, one by one; 1 where the answer is right, word error rates for speech."""
    scores = {}
    for record in records(data / "samples/samples.jsonl")[:limit]:
        path = data / "samples" / record["file"]
        if path.suffix == ".jpg":
            said = answer(model, ANY, images=[path]).text
            known = {record["label"]} if "label" in record else set(record["captions"])
            words = set().union(*map(named_words, known))
            scores[f"{path.name}: {said}"] = float(bool(named_words(said) & words))
        elif "slots" in record:
            said = answer(model, ORDER, audio=[path]).text
            scores[f"{path.name}: {said}"] = float(same_order(said, record))
        else:
            said = answer(model, TRANSCRIBE_PROMPT, audio=[path]).text
            truth = normalise(record["text"])
            rate = word_errors(truth, normalise(said)) / len(truth.split())
            scores[f"{path.name}, word error rate: {said}"] = rate
    return scores


def same_order(text: str, record: dict[str, Any]) -> bool:
    """Whether an answer is the order's JSON: the intent and every slot, spelling normalised."""
    try:
        given = json.loads(text)
    except ValueError:
        return False
    wanted = {"intent": record["intent"], **record["slots"]}
    return isinstance(given, dict) and {k: normalise(str(v)) for k, v in given.items()} == {
        k: normalise(v) for k, v in wanted.items()
    }


def orders(model: phirt.Model, data: Path, limit: int | None) -> dict[str, float]:
    """Spoken coffee orders as JSON."""
    found = list(with_media(data / "speech", "speech_to_intent.val"))[:limit]
    right = [same_order(answer(model, ORDER, audio=[media]).text, record) for record, media in found]
    return {"spoken orders to JSON": float(np.mean(right))}


def score(bundle: Path, data: Path, only: list[str], limit: int | None) -> dict[str, float]:
    """All scores by name, or those of the parts named in `only`."""
    model = phirt.load(bundle)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "caltech101": lambda: pictures(model, data, "caltech101", limit),
        "clothing": lambda: pictures(model, data, "clothing", limit),
        "grocery": lambda: pictures(model, data, "grocery", limit),
        "nlvr": lambda: claims(model, data, limit),
        "coco": lambda: everyday(model, data, limit),
        "samples": lambda: samples(model, data, limit),
        "digits": lambda: digits(model, data, limit),
        "sentences": lambda: sentences(model, data, limit),
        "orders": lambda: orders(model, data, limit),
    }
    scores: dict[str, float] = {}
    for name in only or parts:
        scores |= parts[name]()
    return scores


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--limit", type=int, help="records of each source; default: all")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    scores = score(given.bundle, given.data, given.only, given.limit)
    if given.json:
        print(json.dumps(scores, ensure_ascii=False))
        return
    for name, value in scores.items():
        print(f"{name:60} {value:7.3f}")


if __name__ == "__main__":
    main()
