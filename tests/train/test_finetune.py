"""`phirt train finetune`: an adapter from a person's own rows, which the runtime uses beside the bundle's
own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import phirt
from phirt.errors import ConfigError
from phirt_apps.cli import app
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_export.model_weights import load_model
from phirt_train.data.records import Conversation
from phirt_train.finetuning.branches import add_branches
from phirt_train.finetuning.finetune import FinetuneSettings, finetune, read_settings
from phirt_train.finetuning.rows import read_rows, split
from phirt_train.loop import Interrupted, StageRun
from phirt_train.run_marks import alone
from phirt_train.runner import run_recipe

finetune_module = importlib.import_module("phirt_train.finetuning.finetune")
WORKER = Path(__file__).with_name("worker_train.py")
PARROT = Path(__file__).resolve().parents[2] / "export/recipes/parrot"
WORDS = ["sea", "hill", "no"]
BY_HEART = FinetuneSettings(rank=8, epochs=60, held_out=0.0, peak=1e-2, dropout=0.0)


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that answers "Say hill." with "hill"."""
    folder = tmp_path_factory.mktemp("parrot")
    run_recipe(PARROT, folder)
    return folder / "checkpoint"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(bundle: Path, adapter: Path | None, prompts: list[str], **media: Any) -> list[str]:
    """What a bundle says to each prompt, with the adapter or without."""
    model = phirt.load(bundle, adapters=None if adapter is None else {"mine": adapter})
    name = None if adapter is None else "mine"
    config = phirt.GenerationConfig(max_new_tokens=12)
    return [model.chat(adapter=name).send(one, config=config, **media).result.text for one in prompts]


def test_an_adapter_answers_as_its_rows_do_and_the_model_as_before(parrot: Path, tmp_path: Path) -> None:
    swapped = dict(zip(WORDS, ["no", "sea", "hill"], strict=True))
    rows = write_lines(
        tmp_path / "my.jsonl", [{"prompt": f"Say {a}.", "answer": b} for a, b in swapped.items()]
    )
    result = finetune(rows, tmp_path / "mine", parrot, BY_HEART)
    assert (result.rows, result.held_out, result.steps, result.after) == (3, 0, 60, None)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "training.json"
    ]  # fmt: skip
    bundle = export_bundle(parrot, tmp_path / "bundle", bits=32)
    prompts = [f"Say {word}." for word in WORDS]
    assert answers(bundle, tmp_path / "mine", prompts) == list(swapped.values())
    assert answers(bundle, None, prompts) == WORDS


def test_the_folder_is_that_of_the_trained_branches_merged(parrot: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "my.jsonl", [{"prompt": "Say sea.", "answer": "hill"}])
    settings = read_settings({"rank": 4, "alpha": 12.0, "epochs": 5, "held_out": 0.0, "peak": 1e-2})
    finetune(rows, tmp_path / "mine", parrot, settings)
    merged = load_model(Checkpoint(tmp_path / "mine", parrot))
    beside = load_model(Checkpoint(parrot))
    add_branches(beside, settings.branch, 0)
    saved = load_file(tmp_path / "mine/adapter_model.safetensors")
    state = beside.state_dict()
    for name, tensor in saved.items():
        module, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        state[f"{module}.user_{part}.weight"].copy_(tensor)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(merged.eval()(ids), beside.eval()(ids), atol=1e-5)
        assert not torch.allclose(merged(ids), load_model(Checkpoint(parrot)).eval()(ids), atol=1e-3)


def test_what_does_not_help_others_ends_soon_and_is_left_out(parrot: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    letters = ["".join(generator.choice(list("abcdefgh"), 5)) for _ in range(40)]
    pairs = [{"prompt": f"Code {n}?", "answer": code} for n, code in enumerate(letters)]
    rows = write_lines(tmp_path / "my.jsonl", pairs)
    settings = FinetuneSettings(rank=8, epochs=40, peak=2e-2, held_out=0.25, batch=10)
    result = finetune(rows, tmp_path / "mine", parrot, settings)
    assert (result.rows, result.held_out) == (30, 10)
    assert result.steps == result.best_step + 3 * 3 < 40 * 3  # three steps an epoch, three epochs of patience
    assert result.before is not None and result.after is not None and result.after < result.before
    kept = json.loads((tmp_path / "mine/training.json").read_text())
    assert (kept["best_step"], kept["settings"]["peak"]) == (result.best_step, 2e-2)


def test_a_training_that_is_stopped_ends_with_the_same_adapter(
    parrot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"prompt": f"Say {n}.", "answer": f"{n % 3}"} for n in range(20)]
    rows = write_lines(tmp_path / "my.jsonl", pairs)
    settings = FinetuneSettings(rank=4, epochs=6, peak=5e-3, batch=4)
    whole = finetune(rows, tmp_path / "whole", parrot, settings)
    one_step, left = StageRun._one_step, 0

    def stopped(self: StageRun) -> None:
        nonlocal left
        one_step(self)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StageRun, "_one_step", stopped)
    starts = 0
    while not (tmp_path / "pieces").is_dir():
        starts, left = starts + 1, 7
        with contextlib.suppress(Interrupted):
            pieces = finetune(rows, tmp_path / "pieces", parrot, settings)
    assert starts > 2 and (pieces.steps, pieces.best_step) == (whole.steps, whole.best_step)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "pieces"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_training_that_is_killed_twenty_times_ends_with_the_same_adapter(
    parrot: Path, tmp_path: Path
) -> None:
    rows = write_lines(
        tmp_path / "my.jsonl", [{"prompt": f"Say {n}.", "answer": f"{n % 3}"} for n in range(20)]
    )
    settings = FinetuneSettings(rank=4, epochs=10, peak=5e-3, batch=4, patience=10)
    (tmp_path / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
    whole = finetune(rows, tmp_path / "whole", parrot, settings)
    subprocess.run(
        [sys.executable, str(WORKER), "finetune", str(tmp_path), str(parrot)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300,
    )  # fmt: skip
    assert json.loads((tmp_path / "killed.json").read_text()) == [signal.SIGKILL] * 20
    assert not (tmp_path / "killed.training").exists()
    kept = json.loads((tmp_path / "killed/training.json").read_text())
    assert (kept["steps"], kept["best_step"], kept["after"]) == (whole.steps, whole.best_step, whole.after)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_one_process_trains_an_adapter(parrot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that were started at once wrote into each other's folder."""
    rows = write_lines(tmp_path / "my.jsonl", [{"prompt": "Say sea.", "answer": "hill"}])
    settings = FinetuneSettings(rank=2, epochs=2)
    work = tmp_path / "mine.training"
    work.mkdir()
    with alone(work), pytest.raises(ConfigError) as refused:
        finetune(rows, tmp_path / "mine", parrot, settings)
    assert str(refused.value).startswith(f"another process trains in {work}; wait until it has ended")
    finetune(rows, tmp_path / "mine", parrot, settings)
    assert not work.exists()
    done = (tmp_path / "mine/training.json").read_bytes()
    (tmp_path / "mine").rename(tmp_path / "away")

    def read_while_the_other_ends(path: Path) -> list[Conversation]:
        (tmp_path / "away").rename(tmp_path / "mine")
        return read_rows(path)

    monkeypatch.setattr(finetune_module, "read_rows", read_while_the_other_ends)
    with pytest.raises(ConfigError, match="mine is there already"):
        finetune(rows, tmp_path / "mine", parrot, settings)
    assert (tmp_path / "mine/training.json").read_bytes() == done


def test_pictures_are_learnt_beside_the_bundles_own_adapter(finished: Path, tmp_path: Path) -> None:
    colours = {"red": "aaa", "blue": "bbb"}
    rows = []
    for colour, answer in colours.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
        rows.append({"prompt": "What?", "images": [f"{colour}.png"], "answer": answer})
    settings = FinetuneSettings(rank=8, epochs=80, held_out=0.0, peak=1e-2, dropout=0.0)
    finetune(write_lines(tmp_path / "my.jsonl", rows), tmp_path / "mine", finished / "checkpoint", settings)
    bundle = export_bundle(finished / "checkpoint", tmp_path / "bundle", bits=32)
    for colour, answer in colours.items():
        picture = Image.open(tmp_path / f"{colour}.png")
        assert answers(bundle, tmp_path / "mine", ["What?"], images=[picture]) == [answer]


def test_recordings_are_learnt(finished: Path, tmp_path: Path) -> None:
    tones = {440.0: "aaa", 1760.0: "bbb"}
    time = np.arange(16000) / 16000
    rows = []
    for pitch, answer in tones.items():
        soundfile.write(tmp_path / f"{pitch:.0f}.wav", 0.3 * np.sin(2 * np.pi * pitch * time), 16000)
        rows.append({"prompt": "Which?", "audio": [f"{pitch:.0f}.wav"], "answer": answer})
    settings = FinetuneSettings(rank=8, epochs=120, held_out=0.0, peak=1e-2, dropout=0.0)
    finetune(write_lines(tmp_path / "my.jsonl", rows), tmp_path / "mine", finished / "checkpoint", settings)
    bundle = export_bundle(finished / "checkpoint", tmp_path / "bundle", bits=32)
    for pitch, answer in tones.items():
        clip = [str(tmp_path / f"{pitch:.0f}.wav")]
        assert answers(bundle, tmp_path / "mine", ["Which?"], audio=clip) == [answer]


def test_peft_reads_an_adapter_of_a_published_family(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where queries, keys and values lie apart, each has its rows of what was learnt for all."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    ranks = shared_data / "tokenizer" / "o200k_base.tiktoken"
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    write_checkpoint = importlib.import_module("checkpoints.write").write_checkpoint
    folder = write_checkpoint(tmp_path / "checkpoint", "llama", ranks)
    rows = write_lines(tmp_path / "my.jsonl", [{"prompt": "Say sea.", "answer": "hill"}])
    settings = read_settings({"rank": 4, "epochs": 3, "held_out": 0.0, "peak": 5e-2})
    finetune(rows, tmp_path / "mine", folder, settings)
    config = json.loads((tmp_path / "mine/adapter_config.json").read_text())
    assert set(config["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    published = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        plain = published(ids).logits
        theirs = peft.PeftModel.from_pretrained(published, tmp_path / "mine").eval()(ids).logits
        ours = load_model(Checkpoint(tmp_path / "mine", folder)).eval()(ids)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(plain, theirs, atol=1e-2)


def test_rows_are_conversations_or_pairs(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi", "images": ["a.png"]},
        {"role": "assistant", "content": "Hello"},
    ]
    rows = read_rows(
        write_lines(
            tmp_path / "my.jsonl",
            [
                {"messages": turns},
                {"prompt": "Q", "answer": "A", "system": "S", "image": "b.png", "audio": "c.wav"},
            ],
        )
    )
    assert [message.images for message in rows[0].messages] == [(str(tmp_path / "a.png"),), ()]
    system, user, assistant = rows[1].messages
    assert (system.content, user.content, assistant.content) == ("S", "Q", "A")
    assert (user.images, user.audio) == ((str(tmp_path / "b.png"),), (str(tmp_path / "c.wav"),))


def test_the_same_question_is_never_on_both_sides(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Q{n % 8}", "answer": f"{n}"} for n in range(40)]
    rows = read_rows(write_lines(tmp_path / "my.jsonl", pairs))
    train, held_out = split(rows, 0.2, 3)
    asked = [{row.messages[0].content for row in side} for side in (train, held_out)]
    assert len(train) + len(held_out) == 40 and 8 <= len(held_out) <= 12 and not asked[0] & asked[1]
    assert split(rows, 0.2, 3) == (train, held_out)
    assert split(rows[:4], 0.5, 3)[1] == [] and split(rows, 0.0, 3)[1] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", 'my.jsonl line 1: has neither "messages" nor "prompt" and "answer"; correct the line'),
        ("[1]", "my.jsonl line 1: must be a JSON object"),
        ("{", "my.jsonl line 1 is no JSON"),
        ("", "holds no rows; write a conversation a line"),
        ('{"prompt": "a", "answer": 3}', "'answer' is 3, expected a string"),
        ('{"prompt": "a", "answer": "b", "image": "no.png"}', "no.png"),
        ('{"prompt": "a", "answer": "b", "audio": ["no.wav"]}', "no.wav"),
    ],
)
def test_rows_that_cannot_be_learnt_are_one_line(
    parrot: Path, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "my.jsonl").write_text(f"{line}\n")
    with pytest.raises(ConfigError) as refused:
        finetune(tmp_path / "my.jsonl", tmp_path / "mine", parrot)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_in_the_way_is_one_line(parrot: Path, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "my.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(ConfigError, match=r"none\.jsonl is no file"):
        finetune(tmp_path / "none.jsonl", tmp_path / "mine", parrot)
    with pytest.raises(ConfigError, match="is not a folder; a checkpoint is a folder"):
        finetune(rows, tmp_path / "mine", tmp_path / "no")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="mine is there already; name another folder with --adapter"):
        finetune(rows, tmp_path / "mine", parrot)
    (tmp_path / "other.training").mkdir()
    (tmp_path / "other.training/digest").write_text("of other rows")
    with pytest.raises(ConfigError, match="an unfinished training on other rows or media, or with other"):
        finetune(rows, tmp_path / "other", parrot)
    with pytest.raises(ConfigError, match="'rank' is 0, expected a whole number"):
        read_settings({"rank": 0})


def test_the_command_writes_an_adapter_for_the_model_that_was_exported_here(
    parrot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "my.jsonl", [{"prompt": "Say sea.", "answer": "hill"}])
    run = CliRunner().invoke
    words = ["train", "finetune", "--data", "my.jsonl", "--adapter", "mine", "--epochs", "2", "-m", "bundle"]
    export_bundle(parrot, tmp_path / "bundle", bits=32)
    unknown = run(app, words)
    assert unknown.exit_code == 1
    assert "it is not known from which checkpoint the model checkpoint was exported" in unknown.stderr
    assert run(app, ["export", str(parrot), "-o", "bundle", "--bits", "32"]).exit_code == 0
    done = run(app, words)
    assert (done.exit_code, done.stdout) == (0, "mine\n"), done.stderr
    assert "no rows were held out" in done.stderr
    settings = json.loads((tmp_path / "mine/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(parrot)
    assert run(app, ["chat", "-m", "bundle", "--adapter", "mine", "Say sea."]).exit_code == 0


def test_a_recipe_may_be_called_finetune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", "./finetune", "--plan"])
    assert done.exit_code == 1 and "cannot read the recipe finetune" in done.stderr
    text = CliRunner().invoke(app, ["train", "finetune", "--help"]).stdout
    assert text.startswith("Usage: phirt train finetune ")
