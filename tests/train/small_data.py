"""A data folder of the real layout with a few made-up records in every file, so that recipes run in
seconds.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

SENTENCE = "The small river runs past the old stone house and into the wide green valley below the hills. "


def write_small_data(folder: Path) -> Path:
    """Fill `folder` and return it."""
    for name in ("text", "images", "speech", "eval"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text("a small stand-in\n")
    _write_text(folder / "text")
    _write_evaluation(folder / "eval")
    rng = np.random.default_rng(5)
    labels = {"clothing": ["shirt", "hat"], "caltech101": ["leopard", "chair"], "grocery": ["pear", "plum"]}
    for source, names in labels.items():
        for split in ("train", "val"):
            _write_pictures(folder / "images" / f"{source}.{split}", names, rng)
    _write_pictures(folder / "images/flags.train", ["Chad", "Peru"], rng)
    _write_related(folder, rng)
    digits = [{"text": "one", "speaker": "fsdd1"}, {"text": "two", "speaker": "fsdd5"}]
    _write_clips(folder / "speech/fsdd.train", digits, 8000, rng)
    read = [{"text": "the river runs", "speaker": "so1"}, {"text": "an old house", "speaker": "so2"}]
    for split in ("train", "val"):
        _write_clips(folder / f"speech/speechocean762.{split}", read, 16000, rng)
    _write_clips(folder / "speech/letters.train", [{"text": "a", "speaker": "ms1"}], 16000, rng)
    order = {"text": None, "speaker": None, "intent": "orderDrink", "slots": {"size": "large"}}
    _write_clips(folder / "speech/speech_to_intent.train", [order], 16000, rng)
    return folder


def _write_related(folder: Path, rng: np.random.Generator) -> None:
    """Pages of a story, boxes with a sentence, and what is known of classes."""
    pages = [
        "The dog runs fast.",
        "The cat sleeps.",
        "It rains all day.",
        "The sun is back.",
        "We eat.",
        "End.",
    ]
    boxes = [[["circle", "blue", 10, 10, 10]]] * 3
    for split in ("train", "val"):
        told = [{"captions": [page], "attributes": {"pages": [["1", n]]}} for n, page in enumerate(pages)]
        _write_pictures(folder / f"images/asp.{split}", ["story illustration"] * 2, rng, told)
        claims = [{"sentence": "There is a circle.", "attributes": {"boxes": boxes}}] * 6
        _write_pictures(folder / f"images/nlvr.{split}", ["true", "false"], rng, claims, (100, 400))
    known = {"label": "pear", "description": "A pear is green and soft. It is sweet."}
    (folder / "images/grocery.classes.jsonl").write_text(json.dumps(known) + "\n")


def _write_text(folder: Path) -> None:
    body = "\n\n".join([SENTENCE * 2] * 12)
    lead = "Valley {} is a valley in the hills."
    pages = [{"title": f"Valley {n}", "text": f"{lead.format(n)}\n\n{body}"} for n in range(8)]
    request = {"text": "add blue song to my list", "intent": "Add", "slots": [["item", "blue song"]]}
    call = {"name": "Find", "arguments": {"city": "Oslo"}}
    turns = [
        {"role": "user", "text": "Find a place."},
        {"role": "assistant", "text": "Here.", "calls": [call]},
    ]
    files: dict[str, list[dict[str, Any]]] = {
        "wikipedia.train": pages[:6],
        "wikipedia.val": pages[6:],
        "stories.train": [
            {"title": "Wind", "pages": [SENTENCE * 12, "The wind roars. It is loud today."]},
            {
                "title": "Rain",
                "pages": ["It rains today.", *["The clouds are grey and low."] * 6, "It is dry."],
            },
        ],
        "snips.train": [
            request,
            {**request, "text": "add red song to my list", "slots": [["item", "red song"]]},
        ],
        "wordset.train": [
            {"word": f"word{n}", "part": "noun", "definition": "a thing", "example": "it is a word"}
            for n in range(40)
        ],
        "countries.train": [
            {"name": "Norway", "capital": "Oslo", "continent": "Europe", "currency": "Krone"}
        ],
        "chatterbot.train": [{"category": "x", "turns": ["Hi there", "Hello to you"]}],
        "rasbt_instructions.train": [{"instruction": "Say yes.", "input": "", "output": "Yes."}],
        "trivia.train": [{"question": "Is it?", "answer": "Yes", "choices": ["Yes", "No"], "category": "x"}],
        "stories_en_fr.train": [
            {
                "story": "1",
                "title": {"en": "Wind", "fr": "Vent"},
                "pages": [{"en": f"It is {n}.", "fr": f"Il est {n}."} for n in ("late", "cold", "warm")],
            }
        ],
        "sgd.train": [{"id": "1", "services": ["Find"], "turns": turns}],
    }
    problem = {"question": "A cart has 3 wheels and gets 2. How many?", "answer": "3+2 = <<3+2=5>>5\n#### 5"}
    page = {"en": "The wind is loud.", "fr": "Le vent est fort."}
    answers = {"chosen": "Gladly: yes.", "rejected": "No."}
    files |= {
        "gsm8k.train": [{**problem, "question": f"{problem['question']} {n}"} for n in range(25)],
        "stories_en_fr.train": [{"story": "1", "title": {"en": "Wind", "fr": "Vent"}, "pages": [page] * 12}],
        "rasbt_preferences.train": [{"instruction": f"Say {n}.", "input": "", **answers} for n in range(12)],
        "hh_harmless.train": [
            {"prompt": [{"role": "user", "text": f"May I ask {n}?"}], **answers} for n in range(9)
        ],
    }
    for name, rows in files.items():
        with lzma.open(folder / f"{name}.jsonl.xz", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


def _write_evaluation(folder: Path) -> None:
    """Sets that data are cleaned of, with the fields that are looked at."""
    sets = {
        "arc_easy": {"query": "Which of these is a plant: an oak, a stone, or a small quiet river?"},
        "svamp": {"context": "Ann has 4 pears and 9 plums in a basket on the table at home today."},
        "lambada": {"context": "She looked at the old boat again and said that it was his own old boat"},
    }
    for name, row in sets.items():
        with lzma.open(folder / f"{name}.jsonl.xz", "wt", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


def _write_tar(path: Path, rows: list[dict[str, Any]], media: list[bytes]) -> None:
    path.with_name(path.name + ".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with tarfile.open(path.with_name(path.name + ".tar"), "w") as tar:
        for row, content in zip(rows, media, strict=True):
            member = tarfile.TarInfo(row["file"])
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _write_pictures(
    path: Path,
    labels: list[str],
    rng: np.random.Generator,
    known: list[dict[str, Any]] | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    rows, media = [], []
    for index in range(6):
        height, width = size or (40 + 4 * index, 48)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        row = {"file": f"{index}.png", "label": labels[index % 2]}
        rows.append({**row, **(known[index] if known else {})})
        media.append(out.getvalue())
    _write_tar(path, rows, media)


def _write_clips(path: Path, records: list[dict[str, Any]], rate: int, rng: np.random.Generator) -> None:
    rows, media = [], []
    for index in range(6):
        samples = rng.normal(0, 0.1, int(rate * (0.5 + 0.1 * index))).astype(np.float32)
        out = io.BytesIO()
        soundfile.write(out, samples, rate, format="WAV")
        rows.append({"file": f"{index}.wav", **records[index % len(records)]})
        media.append(out.getvalue())
    _write_tar(path, rows, media)
