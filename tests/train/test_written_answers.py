"""What a model writes by itself in the end of a stage: greedy as one prompt at a time has it, measured by
hand, asked for in a recipe, and a gate's figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_export.model_scorer import ModelScorer, evaluating
from phirt_train.chunked_loss import IGNORED
from phirt_train.conversation_rows import Rows
from phirt_train.recipe import load_recipe
from phirt_train.runner import run_recipe
from phirt_train.written_answers import Asked, answers, asked, measured

STAGE = """
name = "talks"
objective = "supervised_finetuning"
trains = ["model."]
steps = 4
batch = 4
schedule = { peak = 1e-3, warmup_steps = 1 }
[stage.data]
sources = { "talks.jsonl" = 1.0 }
[stage.data.written.told]
file = "talks.jsonl"
measures = ["rouge_l", "bleu", "wer"]
most = 3
"""


def talk(prompt: str, answer: str, **media: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt, **media}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def write_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_the_last_answer_is_asked_for() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, 0, 0, 0]])
    targets = torch.tensor([[IGNORED, 7, 8, IGNORED, 10, 11], [IGNORED, 7, 9] + [IGNORED] * 3])
    assert asked(Rows(ids, targets)) == [
        Asked((5, 6, 7, 8, 9), (10,)),  # and 11 ends it
        Asked((5, 6), (7,)),
    ]


def test_answers_are_greedy_whatever_else_is_asked(toy: Any) -> None:
    model = toy.toy_decoder()
    prompts = [(3, 4, 5), (7,), (9, 8, 7, 6, 5, 4), (11, 12)]
    questions = [Asked(prompt, (1,) * length) for prompt, length in zip(prompts, (9, 4, 20, 40), strict=True)]
    scorer = ModelScorer(model, model.config.tokens.eos, model.config.decoder.rope.context)
    with evaluating(model):
        said = answers(questions, model, model.hidden_states, torch.device("cpu"))
        for one, ids in zip(questions, said, strict=True):
            most = 2 * len(one.answer) + 8
            assert ids == list(scorer.answer(one.prompt))[:most]
    assert len(said[3]) == 64 - 2  # the context's end


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("rouge_l", (2 * 3 / 7 + 1) / 2),  # three words of three and four, and all
        # Together 6 tokens of 7, 3 pairs of 5, 1 three of 3, and a four of which none is wanted.
        ("bleu", (6 / 7 * 3 / 5 * 1 / 3 * (1 / 2) / 1) ** 0.25),
        ("wer", 1 / 7),
    ],
)
def test_measures_of_pairs_by_hand(measure: Any, value: float) -> None:
    pairs = [("the cat sat down", "the cat sat"), ("it rains today", "it rains today")]
    if measure == "bleu":
        pairs = [("the cat sat down", "the cat ran down"), ("it rains today", "it rains today")]
    assert measured(measure, pairs) == pytest.approx(value)


def test_what_is_learnt_by_heart_is_written(tmp_path: Path) -> None:
    rows = [talk("Say a.", "the sea is wide"), talk("Say b.", "a wave is long and cold")]
    write_lines(tmp_path / "talks.jsonl", rows)
    table = STAGE.replace("steps = 4", "steps = 150").replace("1e-3", "1e-2")
    gate = 'gate = { "told rouge_l" = { least = 0.99 } }\n[stage.data]'
    (tmp_path / "recipe.toml").write_text(
        'name = "small"\n' + SMALL_MODEL + "[[stage]]" + table.replace("[stage.data]", gate)
    )
    (result,) = run_recipe(tmp_path, tmp_path / "run", tmp_path)
    assert result.figures == {"told rouge_l": 1.0, "told bleu": pytest.approx(1.0), "told wer": 0.0}


def test_answers_about_pictures_are_written(
    workshop: Callable[..., Any], towers: str, tmp_path: Path
) -> None:
    for name, size in (("a", (64, 64)), ("b", (128, 64))):
        Image.new("RGB", size, (200, 10, 10)).save(tmp_path / f"{name}.png")
    rows = [talk("What?", "red", images=["a.png"]), talk("And?", "blue", images=["b.png", "a.png"])]
    write_lines(tmp_path / "talks.jsonl", [*rows, talk("No picture?", "none")])
    objective = workshop(STAGE, towers)
    pairs = objective._texts(objective._written[0][1], 3)
    assert sorted(wanted for wanted, _ in pairs) == ["blue", "none", "red"]
    assert len(objective._texts(objective._written[0][1], 2)) == 2
    figures = objective.validate()
    assert set(figures) == {"told rouge_l", "told bleu", "told wer"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"wer"]', '"cider"]', "cider"),
        ('["rouge_l", "bleu", "wer"]', "[]", "'measures'"),
        ("most = 3", "most = 0", "'most' is 0"),
    ],
)
def test_other_measures_are_refused(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in STAGE
    (tmp_path / "recipe.toml").write_text(
        'name = "small"\n' + SMALL_MODEL + "[[stage]]" + STAGE.replace(before, after)
    )
    with pytest.raises(ConfigError) as refused:
        load_recipe(tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
