"""Direct preference optimization: ln 2 at the start, gradients of a float64 loop, a reference that is
computed once, and answers that become what is wanted.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phirt.errors import ConfigError
from phirt_train.objective import Share
from phirt_train.objectives.direct_preference_optimization import DirectPreferenceOptimization
from phirt_train.runner import run_recipe

STAGE = """
name = "preferences"
objective = "direct_preference_optimization"
trains = ["model."]
steps = 8
batch = 4
schedule = { peak = 1e-3 }
[stage.data]
sources = { "pairs.jsonl" = 1.0 }
held_out = { pairs = "pairs.jsonl" }
"""


def asked(text: str, **media: Any) -> list[dict[str, Any]]:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello to you."}]
    return [*earlier, {"role": "user", "content": text, **media}]


PAIRS = [
    {"prompt": asked(f"What is {n} + 1?"), "chosen": f"{n + 1}", "rejected": "I do not know that" + "!" * n}
    for n in range(4)
]


def write_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def objective(workshop: Callable[..., Any], tmp_path: Path, in_float32: None) -> DirectPreferenceOptimization:
    write_lines(tmp_path / "pairs.jsonl", PAIRS)
    made: DirectPreferenceOptimization = workshop(STAGE)
    return made


def answer_log_probability(model: torch.nn.Module, encoder: Any, pair: dict[str, Any], answer: str) -> Any:
    """In float64, token by token: the answer and the token that ends it, and nothing before."""
    from phirt.fields import Fields, read_dataclass
    from phirt_train.data.records import Conversation

    turns = [*pair["prompt"], {"role": "assistant", "content": answer}]
    read = read_dataclass(Conversation, Fields({"messages": turns}, "x", ConfigError, ""))
    token_ids = list(encoder.encode(read).token_ids)
    begin = len(token_ids) - len(answer.encode()) - 1
    scores = model(torch.tensor([token_ids]))[0].log_softmax(-1)
    return sum(scores[at - 1, token_ids[at]] for at in range(begin, len(token_ids)))


def test_the_loss_begins_at_ln_2(objective: DirectPreferenceOptimization) -> None:
    batch = objective.prepare(0, Share())
    total, weight, units = objective.loss(batch)
    assert (weight, units) == (4, 4)
    assert total.item() / weight == pytest.approx(math.log(2), abs=2e-6)
    assert abs(objective.validate()["pairs preference margin"]) < 2e-6


def test_loss_and_gradient_are_those_of_a_loop_in_float64(objective: DirectPreferenceOptimization) -> None:
    reference = copy.deepcopy(objective.model).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    exact = copy.deepcopy(objective.model).double()
    encoder, total = objective.context.encoder, torch.zeros((), dtype=torch.float64)
    for pair in PAIRS:
        changes = []
        for answer in (pair["chosen"], pair["rejected"]):
            with torch.no_grad():
                before = answer_log_probability(reference, encoder, pair, answer)
            changes.append(answer_log_probability(exact, encoder, pair, answer) - before)
        total = total - torch.nn.functional.logsigmoid(0.1 * (changes[0] - changes[1]))
    total.backward()
    # The pairs of four steps are drawn together: each of the four comes four times.
    loss = sum(objective.loss(objective.prepare(step, Share())).total for step in range(4)) / 4
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    loss.backward()
    for (name, own), other in zip(objective.model.named_parameters(), exact.parameters(), strict=True):
        if other.grad is not None:
            assert own.grad is not None
            torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_parts_of_a_step_add_up_to_it(objective: DirectPreferenceOptimization) -> None:
    with torch.no_grad():
        objective.model.model.norm.weight.mul_(1.3)
    whole = objective.loss(objective.prepare(3, Share()))
    parts = [objective.loss(objective.prepare(3, Share(n, 3))) for n in range(3)]
    assert sum(part.units for part in parts) == 4
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-5)


def test_the_reference_is_computed_once_for_weights_and_data(
    objective: DirectPreferenceOptimization, workshop: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kept = sorted((tmp_path / "cache").glob("reference-*.npy"))
    assert len(kept) == 1  # the same pairs are learnt and measured
    expected = np.load(kept[0])
    scored: list[str] = []
    score = DirectPreferenceOptimization._score

    def noting(self: DirectPreferenceOptimization, source: Any) -> torch.Tensor:
        scored.append(source.name)
        return score(self, source)

    monkeypatch.setattr(DirectPreferenceOptimization, "_score", noting)
    again = workshop(STAGE)
    assert scored == []
    np.testing.assert_array_equal(again._references[0].numpy(), expected)
    workshop(STAGE, seed=4)
    assert scored == ["pairs.jsonl"]  # other weights
    write_lines(tmp_path / "pairs.jsonl", PAIRS[:3])
    workshop(STAGE)
    assert scored == ["pairs.jsonl"] * 2  # other data
    assert all(module.training for module in again.model.modules())


def test_a_stage_learns_what_is_preferred(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", PAIRS)
    recipe = Path(__file__).resolve().parents[2] / "export/recipes/parrot/recipe.toml"
    head = recipe.read_text().split("[[stage]]")[0]
    stage = STAGE.replace("steps = 8", "steps = 30").replace("1e-3", "1e-2, warmup_steps = 2, muon = true")
    (tmp_path / "recipe.toml").write_text(head + "[[stage]]" + stage)
    (result,) = run_recipe(tmp_path / "recipe.toml", tmp_path / "run", tmp_path)
    assert (result.unit, result.units) == ("pairs", 120)
    assert result.figures["pairs preference accuracy"] == 1.0
    assert result.figures["pairs preference margin"] > 1.0


def test_pairs_with_pictures_are_of_the_route_of_pictures(
    workshop: Callable[..., Any], tmp_path: Path, towers: str, in_float32: None
) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (80, 60), "red").save(tmp_path / f"{name}.png")
    pairs = [
        {"prompt": asked("?", images=[f"{name}.png"]), "chosen": name, "rejected": "c"} for name in ("a", "b")
    ]
    write_lines(tmp_path / "pairs.jsonl", [*pairs, *PAIRS[:2]])
    objective = workshop(STAGE, towers)
    objective.model.eval()  # as the trainer has what it does not train: its norms keep their statistics
    batches = [objective.prepare(step, Share()) for step in range(4)]
    counts = Counter(pick for batch in batches for group in batch for pick in group.picks)
    assert set(counts.values()) == {4} and len(counts) == 4
    (batch,) = [batch for batch in batches if [group.route for group in batch] == ["vision"]][:1]
    loss = objective.loss(batch)
    assert loss.total.item() / 4 == pytest.approx(math.log(2), abs=1e-5)
    loss.total.backward()
    lora = [p.grad for name, p in objective.model.named_parameters() if "lora_B.vision" in name]
    assert lora and all(grad is not None and grad.abs().sum() > 0 for grad in lora)


def test_pairs_that_cannot_be_learnt_are_named(workshop: Callable[..., Any], tmp_path: Path) -> None:
    long = {"prompt": asked("x" * 600), "chosen": "a", "rejected": "b"}
    write_lines(tmp_path / "pairs.jsonl", [*PAIRS, long])
    with pytest.raises(ConfigError, match=r"pairs\.jsonl: conversation 5 needs about 6\d\d tokens, and the"):
        workshop(STAGE)
    write_lines(tmp_path / "pairs.jsonl", PAIRS * 40 + [long])
    objective = workshop(STAGE)
    assert "left out: 1 of 161 rows of pairs.jsonl" in objective.context.rejects.notice()
    assert len(objective.sources[0]) == 160
