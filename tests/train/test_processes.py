"""Several processes that train together, by data alone or with weights dealt out: the curve of one
process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.torch import load_file
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_train.processes import ALONE, Processes, join_processes
from phirt_train.runner import run_recipe

RECIPES = Path(__file__).resolve().parents[2] / "export/recipes"
WORKER = Path(__file__).with_name("worker_train.py")
Trained = dict[str, Any]


def start_together(count: int, *words: str) -> None:
    """The worker in `count` processes that find each other."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *words],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * count, errors


def together(folder: Path, count: int, sharding: str = "none") -> dict[bool, Trained]:
    """What `count` processes come to, with and without Muon."""
    start_together(count, "together", str(folder), sharding)
    found = {}
    for muon in (False, True):
        place = folder / f"muon-{muon}"
        weights = load_file(place / "weights.safetensors")
        found[muon] = {**json.loads((place / "facts.json").read_text()), "weights": weights}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Trained]:
    return together(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_have_the_curve_of_one(
    alone: dict[bool, Trained], tmp_path: Path, sharding: str
) -> None:
    both = together(tmp_path, 2, sharding)
    for muon, one in alone.items():
        two = both[muon]
        assert len(one["losses"]) == 10 and one["losses"][-1] < one["losses"][0]
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-3)
        assert two["norms"] == pytest.approx(one["norms"], rel=1e-2)
        assert two["units"] == one["units"] and two["figures"] == pytest.approx(one["figures"], abs=1e-3)
        for name, weight in one["weights"].items():
            # Where a gradient is next to nothing, its sign decides AdamW's first updates: some elements
            # differ. One process alone rounds Muon's products to bfloat16, where it may.
            apart = (two["weights"][name] - weight).norm() / weight.norm()
            assert apart < (5e-2 if muon else 1e-2), name


def test_a_worker_that_finds_no_others_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "", "MASTER_PORT": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=r"process 1 of 2 did not find the others: .*; start all of them with"
    ):
        join_processes()


def test_one_process_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes() == ALONE == Processes()
    with ALONE.in_turn():
        assert ALONE.sum([1.5, 2.0]) == [1.5, 2.0] and ALONE.share({"a": [1]}) == {"a": [1]}
    ALONE.wait()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", None, "WORLD_SIZE is 2, and RANK is '', no number; start all of them with torchrun"),
        ("RANK", "x", "WORLD_SIZE is 2, and RANK is 'x', no number; start all of them with torchrun"),
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', accepted: a number of processes; start all"),
    ],
)
def test_what_torchrun_would_have_set_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    for known in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(known, "2")
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        join_processes()
    assert str(refused.value).startswith(message)


def test_dealing_out_without_torchrun_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE, RANK, .* not set; start all of them with torchrun"):
        run_recipe(RECIPES / "parrot", Path("unused"), sharding="fsdp")


ROUTES = """
[[stage]]
name = "adapters"
objective = "supervised_finetuning"
trains = ["*lora_", "model.embed_tokens_extend.", "model.norm."]
steps = 4
batch = 8
micro_batch = 2
checkpoint_activations = true
schedule = { peak = 3e-3, warmup_steps = 1 }
data = { sources = { "talks.jsonl" = 1.0 } }

[[stage]]
name = "joint"
objective = "mixture"
starts_from = ["adapters"]
trains = ["model."]
steps = 4
batch = 4
micro_batch = 2
schedule = { peak = 3e-3, warmup_steps = 1 }

[stage.data]
count = "items"

[stage.data.parts.pages]
objective = "language_modeling"
share = 0.5
data = { row_tokens = 24, documents = { "pages.jsonl" = 1.0 } }

[stage.data.parts.talks]
objective = "supervised_finetuning"
rows = 3
data = { sources = { "talks.jsonl" = 1.0 } }
"""


def write_talks(folder: Path) -> None:
    """Conversations of all routes, some with a picture and a recording."""
    rows = []
    for number, colour in enumerate(["red", "blue", "green", "black", "white", "grey"]):
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        tone = 0.3 * np.sin(2 * np.pi * (300 + 200 * number) * np.arange(8000) / 16000)
        soundfile.write(folder / f"{colour}.wav", tone, 16000)
        picture, sound = {"images": [f"{colour}.png"]}, {"audio": [f"{colour}.wav"]}
        for media in ({}, picture, sound, picture | sound)[: 4 if number % 2 else 3]:
            rows.append(
                [{"role": "user", "content": "Which?", **media}, {"role": "assistant", "content": colour}]
            )
    lines = [json.dumps({"messages": turns}) + "\n" for turns in rows]
    (folder / "talks.jsonl").write_text("".join(lines))
    pages = [json.dumps({"text": f"The sea is {n} deep, and the hill is high."}) + "\n" for n in range(20)]
    (folder / "pages.jsonl").write_text("".join(pages))


@pytest.mark.usefixtures("in_float32")
def test_processes_whose_passes_differ_have_the_curve_of_one(tmp_path: Path, towers: str) -> None:
    """Each waited for the other's layers for ever where one had a picture more than the other."""
    (tmp_path / "recipe.toml").write_text('name = "routes"\n' + SMALL_MODEL + towers + ROUTES)
    write_talks(tmp_path)
    run_recipe(tmp_path, tmp_path / "one")
    start_together(2, "recipe", str(tmp_path), str(tmp_path / "two"), "fsdp")
    for stage in ("adapters", "joint"):
        one, two = (
            [json.loads(line) for line in (tmp_path / run / stage / "metrics.jsonl").read_text().splitlines()]
            for run in ("one", "two")
        )
        assert len(one) == 4
        for name, near in {
            "loss": {"abs": 1e-3},
            "gradient_norm": {"rel": 1e-2},
            "units": {"abs": 0},
        }.items():
            found, wanted = ([step[name] for step in steps] for steps in (two, one))
            assert found == pytest.approx(wanted, **near), (stage, name)
