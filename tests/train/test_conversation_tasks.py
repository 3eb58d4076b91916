"""What fine-tuning on conversations is used for: several frames, several crops, recordings through the
language model with their encoder, tasks by weight, answers from a passage; and rows of documents apart.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from phirt.errors import ConfigError
from phirt_train.data.messages import passage_question
from phirt_train.objective import Share
from phirt_train.progress import Progress
from phirt_train.runner import run_recipe

STAGE = """
name = "talks"
objective = "supervised_finetuning"
trains = ["model."]
steps = 40
batch = 4
schedule = { peak = 1e-3 }
[stage.data]
sources = { "talks.jsonl" = 1.0 }
"""
PARROT = Path(__file__).resolve().parents[2] / "export/recipes/parrot/recipe.toml"


def talk(prompt: str, answer: str, **media: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt, **media}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def write_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def run_stage(folder: Path, towers: str, stage: str) -> tuple[list[float], Path]:
    """Train one stage on a small model with towers, from nothing. Returns losses, and the run's folder."""
    losses: list[float] = []

    def report(progress: Progress) -> None:
        losses.extend([] if progress.loss is None else [progress.loss])

    head = PARROT.read_text().split("[[stage]]")[0].replace("[tokenizer]", towers + "\n[tokenizer]")
    (folder / "recipe.toml").write_text(head + "[[stage]]" + stage)
    run_recipe(folder, folder / "run", report=report)
    return losses, folder / "run"


def test_frames_of_a_film_are_pictures_in_order_without_crops(
    workshop: Callable[..., Any], towers: str, tmp_path: Path
) -> None:
    for index in range(6):
        frame = Image.new("RGB", (160, 64), "white")
        frame.paste((200, 0, 0), (20 * index, 10, 20 * index + 20, 40))
        frame.save(tmp_path / f"{index}.png")
    names = [f"{index}.png" for index in range(6)]
    write_lines(tmp_path / "talks.jsonl", [
        talk("These are 6 frames. Where does it go?", "right", images=names),
        talk("These are 6 frames. Where does it go?", "left", images=names[::-1]),
    ])  # fmt: skip
    crops_off = STAGE.replace("[stage.data]", "[stage.data]\nmax_crops = 1")
    objective = workshop(crops_off, towers)
    (group, *_) = objective.prepare(0, Share())
    assert len(group.media.pictures) == 6 * 4
    # One crop, which is the global view: 2 rows of 2, a separator a row, one between, and the view again.
    rows = objective._rows.features(objective.sources, group, 1)
    assert [len(own) for own in rows] == [6] * 4
    assert {len(frame) for own in rows for frame in own} == {(1 * 2 + 1) + 1 + (2 * 2 + 2)}
    (first, *_) = group.picks
    order = [item.path for item in objective.sources[0].sequences.media[first.item]]
    assert order == (names if first.item == 0 else names[::-1])
    loss = objective.loss([group])
    loss.total.backward()
    gradient = objective.model.image_embed.img_projection[0].weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_pictures_of_several_crops_are_learnt(
    workshop: Callable[..., Any], towers: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("wide", (256, 64)), ("square", (128, 128))):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    write_lines(tmp_path / "talks.jsonl", [
        talk("What?", name, images=[f"{name}.png"]) for name in ("wide", "square")
    ])  # fmt: skip
    objective = workshop(STAGE, towers)
    (group, *_) = objective.prepare(0, Share())
    assert {tuple(one.crop_grid.tolist()) for one in group.media.pictures} <= {(1, 4), (2, 2)}
    assert {len(one.pixel_values) for one in group.media.pictures} == {1 + 4}
    loss = objective.loss([group])
    loss.total.backward()
    tower = objective.model.image_embed.img_processor
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    counted = [int(length) for length in objective.sources[0].lengths]
    rows = objective._rows.features(objective.sources, group, 1)
    text = np.diff(objective.sources[0].sequences.starts)
    for pick, (own,) in zip(group.picks, rows, strict=True):
        assert counted[pick.item] == text[pick.item] - 1 + len(own)


def test_recognition_through_the_language_model_trains_the_encoder(towers: str, tmp_path: Path) -> None:
    """What the encoder hears is projected, and the frozen language model is to write the words."""
    for pitch, name in ((300, "low"), (900, "high")):
        tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)
        soundfile.write(tmp_path / f"{name}.wav", tone, 16000)
    write_lines(tmp_path / "talks.jsonl", [
        talk("Write down what is said.", name, audio=[f"{name}.wav"]) for name in ("low", "high")
    ])  # fmt: skip
    audio = "model.embed_tokens_extend.audio_embed."
    stage = STAGE.replace('"model."', f'"{audio}encoder.", "{audio}audio_projection.speech."')
    stage = stage.replace("1e-3", "1e-2, warmup_steps = 2, muon = true")
    losses, run = run_stage(tmp_path, towers.split("[model.adapters]")[0], stage)
    weights = load_file(run / "talks/model.safetensors")
    assert all(name.startswith(audio) for name in weights)
    assert any(".encoder." in name for name in weights) and any(".speech." in name for name in weights)
    assert losses[-1] < losses[0] - 0.1


def test_tasks_are_drawn_by_their_weight(workshop: Callable[..., Any], tmp_path: Path) -> None:
    """ASR 28, translation 28, spoken questions and queries 26, audio understanding 17, summaries 1."""
    weights = {"asr": 28, "ast": 28, "sqa": 26, "au": 17, "ssum": 1}
    sources = []
    for number, kind in enumerate(weights):
        for part in range(1 + number % 2):
            name = f"{kind}{part}.jsonl"
            write_lines(tmp_path / name, [talk(f"{kind} {n}", "yes") for n in range(3 + number)])
            sources.append(f'"{name}" = {{ share = {1 + part}, kind = "{kind}" }}')
    tasks = ", ".join(f"{kind} = {weight}" for kind, weight in weights.items())
    tables = f"[stage.data]\ntasks = {{ {tasks} }}\n[stage.data.sources]\n" + "\n".join(sources)
    stage = STAGE.split("[stage.data]")[0].replace("steps = 40", "steps = 200") + tables
    objective = workshop(stage)
    drawn: Counter[str] = Counter()
    for step in range(200):
        for group in objective.prepare(step, Share()):
            drawn.update(objective.sources[pick.source].name for pick in group.picks)
    for number, (kind, weight) in enumerate(weights.items()):
        own = {name: count for name, count in drawn.items() if name.startswith(kind)}
        assert abs(sum(own.values()) / 800 - weight / 100) < 0.006, kind
        if number % 2:  # two thirds of a task's from its second file
            assert own[f"{kind}1.jsonl"] / sum(own.values()) == pytest.approx(2 / 3, abs=0.02)
    consumed = objective.consumed(200)
    assert {name: one.items for name, one in consumed.items()} == drawn
    assert {one.kind for one in consumed.values()} == set(weights)
    with pytest.raises(ConfigError, match="tasks and the kinds of the sources differ in ssum"):
        workshop(stage.replace(", ssum = 1", ""))


def test_an_answer_from_a_passage_is_asked_with_the_passage() -> None:
    turns = passage_question("Oslo is the capital of Norway.", "What is the capital?", "Oslo")
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[0]["content"] == "Oslo is the capital of Norway.\n\nWhat is the capital?"
    assert turns[1]["content"] == "Oslo"
    unknown = passage_question("Oslo is the capital of Norway.", "Who is king?", None)
    assert unknown[1]["content"] == "The text does not say."


ROWS = """
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 20
batch = 2
schedule = { peak = 1e-3 }
[stage.data]
row_tokens = 64
pack_documents = true
document_share = 0.5
[stage.data.documents]
"web.jsonl" = { start = 1.0, end = 0.0, kind = "web" }
"made.jsonl" = { start = 0.0, end = 1.0, kind = "synthetic", min_tokens = 40, max_tokens = 90 }
[stage.data.conversations]
"talks.jsonl" = 1.0
"""


def test_rows_are_of_one_source_each_and_documents_do_not_see_each_other(
    workshop: Callable[..., Any], tmp_path: Path, in_float32: None
) -> None:
    write_lines(tmp_path / "web.jsonl", [{"text": "w" * n} for n in range(5, 30)])
    write_lines(tmp_path / "made.jsonl", [{"text": "m" * n} for n in (10, 39, 60, 88, 89, 90, 150)])
    write_lines(tmp_path / "talks.jsonl", [talk("a" * n, "b" * n) for n in range(1, 9)])
    objective = workshop(ROWS)
    kinds: Counter[tuple[str, bool]] = Counter()
    for step in range(20):
        batch = objective.prepare(step, Share())
        for row in batch.token_ids:
            text = objective.context.encoder.decode(row.tolist())
            kind = next(letter for letter in "wma" if letter in text)
            assert not any(letter in text for letter in "wma" if letter != kind)
            kinds[kind, step < 10] += 1
    assert kinds["w", True] > kinds["w", False] and kinds["m", True] < kinds["m", False]
    assert abs(sum(count for (kind, _), count in kinds.items() if kind == "a") - 20) <= 2
    consumed = objective.consumed(20)
    assert {name: one.kind for name, one in consumed.items()} == {
        "web.jsonl": "web", "made.jsonl": "synthetic", "talks.jsonl": ""
    }  # fmt: skip
    assert consumed["made.jsonl"].unique_tokens <= 40 + 61 + 89 + 90 + 2 * 2  # and where two are cut
    # The loss of a packed row is that of its documents alone.
    token_ids, targets, documents = objective.prepare(0, Share())
    loss = objective.loss(objective.prepare(0, Share()))
    total = 0.0
    for row in range(2):
        firsts = [*np.flatnonzero(documents.positions[row] == 0).tolist(), 64]
        for begin, end in itertools.pairwise(firsts):
            with torch.no_grad():
                logits = objective.model(token_ids[row : row + 1, begin:end])[0]
            wanted = targets[row, begin:end]
            total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_limits_that_leave_nothing_are_named(workshop: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("web", "made"):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": "short"}])
    write_lines(tmp_path / "talks.jsonl", [talk("a", "b")])
    message = r"made\.jsonl has no item of 40 to 90 tokens, its longest has 6; change min_tokens"
    with pytest.raises(ConfigError, match=message):
        workshop(ROWS)
