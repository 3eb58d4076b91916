"""Several objectives in one stage: shares of tokens that change, exact resume, losses that add up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phirt.errors import ConfigError
from phirt_train.loop import Interrupted, StageRun
from phirt_train.objective import Share
from phirt_train.runner import run_recipe

STAGE = """
name = "joint"
objective = "mixture"
trains = ["model."]
steps = 200
batch = 6
schedule = { peak = 1e-3, warmup_steps = 2 }
[stage.data.parts.text]
objective = "language_modeling"
rows = 2
data = { row_tokens = 16, documents = { "sea.jsonl" = { share = 1.0, kind = "web" } } }
[stage.data.parts.pictures]
objective = "supervised_finetuning"
share = 0.4
ramp = 0.5
[stage.data.parts.pictures.data]
sources = { "talks.jsonl" = 1.0 }
held_out = { talks = "talks.jsonl" }
"""


def write_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 48), "red").save(tmp_path / "red.png")
    ask = {"role": "user", "content": "Which?", "images": ["red.png"]}
    talk = {"messages": [ask, {"role": "assistant", "content": "red"}]}
    write_lines(tmp_path / "talks.jsonl", [talk] * 3)
    write_lines(tmp_path / "sea.jsonl", [{"text": f"The sea is wide, wave {n} is long."} for n in range(9)])
    return tmp_path


def test_the_share_of_tokens_grows_as_asked(workshop: Callable[..., Any], files: Path, towers: str) -> None:
    """share(s) = clip(s / (ρ S), 0, 1) · 0.4, within 1 % of the steps; and in the tokens that are trained."""
    objective = workshop(STAGE.replace("steps = 200", "steps = 2000"), towers)
    realised = objective.realised()
    assert len(realised) == 100
    for number, shares in enumerate(realised):
        middle = np.arange(number * 20, number * 20 + 20) / 2000
        wanted = (np.clip(middle / 0.5, 0, 1) * 0.4).mean()
        # A hundredth has 120 groups, and one group of pictures is that share of their tokens.
        assert abs(shares["pictures"] - wanted) < 0.02, number
    consumed = objective.consumed(2000)
    assert consumed["text/sea.jsonl"].kind == "web"
    tokens = {name: one.tokens for name, one in consumed.items()}
    share = tokens["pictures/talks.jsonl"] / sum(tokens.values())
    assert share == pytest.approx(0.3, abs=0.01)  # half of the stage at 0.4, half at 0.2 on average
    assert objective.consumed(0)["pictures/talks.jsonl"].tokens == 0


def test_a_part_may_be_called_as_something_of_a_module(
    workshop: Callable[..., Any], files: Path, towers: str
) -> None:
    names = STAGE.replace("parts.text", "parts.train").replace("parts.pictures", "parts.items")
    objective = workshop(names, towers)
    assert len(list(objective.head.children())) == 2


def test_a_part_goes_through_its_data_without_gaps(
    workshop: Callable[..., Any], files: Path, towers: str
) -> None:
    objective = workshop(STAGE, towers)
    seen: Counter[Any] = Counter()
    for step in range(200):
        parts = [group for n in range(2) for group in objective.prepare(step, Share(n, 2))]
        assert len(parts) == 6
        for part, batch in parts:
            if part == 1:
                seen.update(pick.item for group in batch for pick in group.picks)
    assert objective.consumed(200)["pictures/talks.jsonl"].items == sum(seen.values())
    assert max(seen.values()) - min(seen.values()) <= 4  # three conversations, pools of four


def test_the_loss_is_the_sum_of_the_parts_and_text_takes_no_adapter(
    workshop: Callable[..., Any], files: Path, towers: str
) -> None:
    objective = workshop(STAGE, towers)
    objective.model.eval()
    batch = objective.prepare(150, Share())
    assert {group.part for group in batch} == {0, 1}
    loss = objective.loss(batch)
    own = [objective.parts[group.part].loss(group.batch) for group in batch]
    assert loss.total.item() == pytest.approx(sum(one.total.item() for one in own), rel=1e-6)
    assert loss.weight == sum(one.weight for one in own)
    text = [group for group in batch if group.part == 0]
    objective.loss(text).total.backward()
    grads = {name: p.grad for name, p in objective.model.named_parameters()}
    assert grads["model.layers.0.mlp.down_proj.base_layer.weight"] is not None
    assert all(grad is None for name, grad in grads.items() if "lora" in name or "image_embed" in name)


def test_without_adapters_everything_is_trained_by_both(
    workshop: Callable[..., Any], files: Path, towers: str
) -> None:
    """Joint pre-training as Kimi-VL's: no LoRA, towers, projector and language model together."""
    objective = workshop(STAGE, towers.split("[model.adapters]")[0])
    loss = objective.loss(objective.prepare(150, Share()))
    loss.total.backward()
    missing = [
        name for name, p in objective.model.named_parameters() if p.grad is None and "audio_embed" not in name
    ]
    assert missing == []


def test_a_mixed_stage_that_is_interrupted_ends_with_the_same_weights(
    files: Path, towers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parrot = Path(__file__).resolve().parents[2] / "export/recipes/parrot/recipe.toml"
    head = parrot.read_text().split("[[stage]]")[0].replace("[tokenizer]", towers + "\n[tokenizer]")
    (tmp_path / "recipe.toml").write_text(head + "[[stage]]" + STAGE.replace("steps = 200", "steps = 12"))
    (whole,) = run_recipe(tmp_path, tmp_path / "whole")
    step, one_step = 0, StageRun._one_step

    def stopping(self: StageRun) -> None:
        nonlocal step
        one_step(self)
        step += 1
        self._stop = 2 if step == 7 else None

    monkeypatch.setattr(StageRun, "_one_step", stopping)
    with pytest.raises(Interrupted):
        run_recipe(tmp_path, tmp_path / "pieces")
    (pieces,) = run_recipe(tmp_path, tmp_path / "pieces")
    assert step == 12 and pieces.loss == whole.loss and pieces.figures == whole.figures
    files_of = [tmp_path / name / "joint/model.safetensors" for name in ("whole", "pieces")]
    assert files_of[0].read_bytes() == files_of[1].read_bytes()
    shares = [json.loads(line) for line in (tmp_path / "whole/joint/shares.jsonl").read_text().splitlines()]
    assert len(shares) == 12 and shares[0] == {"text": 1.0, "pictures": 0.0} and shares[-1]["pictures"] > 0
    assert whole.figures.keys() == {"talks exact"} and torch.isfinite(torch.tensor(whole.loss))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("share = 0.4\nramp = 0.5\n", "text and pictures have no share; one part may take what the others"),
        (("share = 0.4", "share = 1.4"), r"'share' is 1\.4, expected a number from 0 to 1"),
        (("share = 0.4", "share = [[0, 0.1], [1, 2]]"), "ramp' is given, and 'share' is no number"),
        (("row_tokens = 16", "row_tokens = 1"), "data: 'row_tokens' is 1, expected a whole number from 2"),
        (("row_tokens = 16", "rows_tokens = 16"), "'rows_tokens' is not known here"),
        (('"language_modeling"', '"mixture"'), "a part is a mixture; give its parts beside the others"),
        (('"language_modeling"', '"guess"'), "objective is 'guess'; accepted:"),
        (("row_tokens = 16", "row_tokens = 1024"), "part text: row_tokens is 1024, and the model's context"),
        (('rows = 2', 'rows = 2\nshare = 0.0'), "no part has a share at position 0 of the stage"),
        (("parts.pictures.data", "parts.pictures.datum"), "'datum' is not known here, accepted: objective"),
    ],
)  # fmt: skip
def test_a_wrong_part_is_one_line(
    workshop: Callable[..., Any], files: Path, towers: str, change: Any, message: str
) -> None:
    before, after = (change, "") if isinstance(change, str) else change
    assert before in STAGE
    with pytest.raises(ConfigError, match=message) as refused:
        workshop(STAGE.replace(before, after, 1), towers)
    assert "\n" not in str(refused.value)
