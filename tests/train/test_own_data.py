"""A user's own data: JSON lines of messages with media, and a recipe of a few lines, through to a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import phirt
from phirt.errors import ConfigError
from phirt_export.exporter import export_bundle
from phirt_train.progress import Progress
from phirt_train.runner import run_recipe

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
TUNE = """
name = "mine"
base = "checkpoint"

[[stage]]
name = "tune"
objective = "supervised_finetuning"
trains = ["*lora_A", "*lora_B"]
steps = 40
batch = 4
schedule = { peak = 2e-2, warmup_steps = 2, muon = true }
[stage.data]
sources = { "mine.jsonl" = 1.0 }
held_out = { mine = "mine.jsonl" }
"""
PARROT = Path(__file__).resolve().parents[2] / "export/recipes/parrot"
FROM_NOTHING = (PARROT / "recipe.toml").read_text()
TALK = [("Say sea.", "sea"), ("Say hill.", "hill"), ("Say no.", "no")]


def write_lines(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def exchange(prompt: str, answer: str, **media: list[str]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": prompt, **media},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def own_data(finished: Path, tmp_path: Path) -> Path:
    """Pictures and tones with questions, beside a link to the checkpoint that is tuned."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (60, 48), colour).save(tmp_path / f"{name}.png")
    for pitch, name in ((300, "low"), (900, "high")):
        tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)
        soundfile.write(tmp_path / f"{name}.wav", tone, 16000)
    records = [exchange("Which colour?", name, images=[f"{name}.png"]) for name in COLOURS]
    records += [exchange("", name, audio=[f"{name}.wav"]) for name in ("low", "high")]
    both = exchange("Colour and tone?", "red and low", images=["red.png"], audio=["low.wav"])
    both["messages"] += exchange("And now?", "blue", images=["blue.png"])["messages"]
    write_lines(tmp_path / "mine.jsonl", [*records, both])
    (tmp_path / "checkpoint").symlink_to(finished / "checkpoint")
    return tmp_path


def test_a_checkpoint_is_tuned_on_messages_with_media_and_answers(own_data: Path) -> None:
    (own_data / "recipe.toml").write_text(TUNE)
    losses: list[float] = []

    def report(progress: Progress) -> None:
        losses.extend([] if progress.loss is None else [progress.loss])

    (result,) = run_recipe(own_data, own_data / "run", report=report)
    assert result.unit == "conversations" and result.units == 160
    assert result.loss < losses[0] - 0.5 and result.figures["mine exact"] == 1.0
    bundle = export_bundle(own_data / "run/checkpoint", own_data / "bundle", bits=32)
    model = phirt.load(bundle)
    config = phirt.GenerationConfig(max_new_tokens=12)
    for colour in COLOURS:
        reply = model.chat().send("Which colour?", images=[own_data / f"{colour}.png"], config=config)
        assert reply.result.text == colour
    for tone in ("low", "high"):
        reply = model.chat().send("", audio=[own_data / f"{tone}.wav"], config=config)
        assert reply.result.text == tone
    chat = model.chat()
    first = {"images": [own_data / "red.png"], "audio": [own_data / "low.wav"]}
    assert chat.send("Colour and tone?", **first, config=config).result.text == "red and low"
    assert chat.send("And now?", images=[own_data / "blue.png"], config=config).result.text == "blue"


def test_a_text_model_is_trained_from_nothing_and_says_what_it_learned(tmp_path: Path) -> None:
    (result,) = run_recipe(PARROT, tmp_path / "run")
    assert result.figures == {"talk exact": 1.0}
    bundle = export_bundle(tmp_path / "run/checkpoint", tmp_path / "bundle", bits=32)
    model = phirt.load(bundle)
    for prompt, answer in TALK:
        reply = model.chat().send(prompt, config=phirt.GenerationConfig(max_new_tokens=8)).result
        assert (reply.text, reply.finish_reason) == (answer, "stop")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "'messages' is [], expected a list of objects, 1 to 4096 of them"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no message has the role assistant"),
        ({"messages": [{"role": "bot", "content": "Hi"}]}, "'role' is 'bot', expected one of system, user"),
        (exchange("What?", "that", images=["none.png"]), "none.png is no file in"),
        (exchange("What?", "that", audio=["a.wav"]), "a.wav is of modality audio, which the recipe's model"),
        ([1], "must be a JSON object, got list"),
    ],
)
def test_a_wrong_record_is_one_line_with_its_place(tmp_path: Path, record: Any, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(FROM_NOTHING)
    write_lines(tmp_path / "talk.jsonl", [exchange(*TALK[0]), record])
    if "none.png" in message:
        message = "none.png is of modality image, which the recipe's model does not take"
    with pytest.raises(ConfigError) as refused:
        run_recipe(tmp_path, tmp_path / "run")
    assert message in str(refused.value) and "talk.jsonl line 2" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_media_that_are_not_there_are_named_before_training(own_data: Path) -> None:
    (own_data / "recipe.toml").write_text(TUNE)
    with (own_data / "mine.jsonl").open("a") as file:
        file.write(json.dumps(exchange("What?", "that", images=["pics/none.png"])) + "\n")
    with pytest.raises(ConfigError, match=r"mine\.jsonl line 6: pics/none\.png is no file in"):
        run_recipe(own_data, own_data / "run")


def test_parameters_that_the_data_do_not_reach_are_refused(own_data: Path) -> None:
    (own_data / "recipe.toml").write_text(TUNE)
    write_lines(own_data / "mine.jsonl", [exchange(*pair) for pair in TALK])
    with pytest.raises(ConfigError, match=r"trains \*lora_A, \*lora_B, which its data do not reach"):
        run_recipe(own_data, own_data / "run")


def test_changed_data_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(FROM_NOTHING.replace("steps = 80", "steps = 6"))
    write_lines(tmp_path / "talk.jsonl", [exchange(*pair) for pair in TALK])
    run_recipe(tmp_path, tmp_path / "run")
    write_lines(tmp_path / "talk.jsonl", [exchange("Say more words.", "yes")])
    run_recipe(tmp_path, tmp_path / "run2")
    assert len(list((tmp_path / "run2/cache").iterdir())) == 1
    (tmp_path / "run/words/result.json").unlink()
    run_recipe(tmp_path, tmp_path / "run")
    assert len(list((tmp_path / "run/cache").iterdir())) == 2
