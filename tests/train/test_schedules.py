"""Rates over the steps of stages and of chains, against hand computation; a chain of stages that resume ends
with the weights of one long stage.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt.fields import Fields, read_dataclass
from phirt_train.progress import ignore
from phirt_train.schedules import Course, check_chains, course_of, is_continued, lone_course
from phirt_train.stage import Schedule


def rates(course: Course, steps: int) -> list[float]:
    return [course.rate(step) for step in range(steps)]


def test_linear_rises_and_falls_in_straight_lines(toy: Any) -> None:
    stage = toy.toy_config(
        steps=7, schedule={"peak": 8.0, "kind": "linear", "warmup_steps": 2, "final_ratio": 0.5}
    )
    # 8·(1 − (s−2)/5·0.5)
    assert rates(lone_course(stage), 7) == pytest.approx([4.0, 8.0, 8.0, 7.2, 6.4, 5.6, 4.8])


def test_cosine_is_half_way_in_the_middle_of_its_fall(toy: Any) -> None:
    stage = toy.toy_config(steps=10, schedule={"peak": 2.0, "warmup_steps": 2, "final_ratio": 0.1})
    course = lone_course(stage)
    assert rates(course, 3) == pytest.approx([1.0, 2.0, 2.0])
    assert course.rate(6) == pytest.approx(2.0 * 0.55)
    assert course.rate(10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("decay", "shape"),
    [
        ("linear", lambda p: 1 - p),
        ("cosine", lambda p: 0.5 * (1 + math.cos(math.pi * p))),
        ("1-sqrt", lambda p: 1 - math.sqrt(p)),
    ],
)
def test_wsd_stays_at_its_peak_and_falls_at_the_end(toy: Any, decay: str, shape: Any) -> None:
    schedule = {
        "peak": 1.0, "kind": "wsd", "warmup_steps": 4, "decay": decay, "decay_share": 0.25, "final_ratio": 0.2
    }  # fmt: skip
    found = rates(lone_course(toy.toy_config(steps=20, schedule=schedule)), 20)
    assert found[:15] == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 12)
    assert found[15:] == pytest.approx([0.2 + 0.8 * shape(n / 5) for n in range(5)])


def test_wsd_is_the_schedule_that_transformers_has(toy: Any) -> None:
    from transformers import get_wsd_schedule

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = get_wsd_schedule(
        optimizer, num_warmup_steps=5, num_decay_steps=10, num_stable_steps=35, min_lr_ratio=0.1,
        decay_type="linear",
    )  # fmt: skip
    schedule = {"peak": 1.0, "kind": "wsd", "warmup_steps": 5, "decay_share": 0.2, "final_ratio": 0.1}
    ours = rates(lone_course(toy.toy_config(steps=50, schedule=schedule)), 50)
    for step in range(50):
        if step >= 5:  # theirs begins at 0, ours at one step's share
            assert ours[step] == pytest.approx(theirs.get_last_lr()[0]), step
        optimizer.step()
        theirs.step()


def chain(toy: Any) -> list[Any]:
    """As Kimi-VL's: text, then joint in the same schedule, then a cooldown that warms up again."""
    config = toy.toy_config
    return [
        config(name="text", steps=6, schedule={"peak": 1.0, "kind": "linear", "warmup_steps": 2}),
        config(name="joint", steps=4, starts_from=("text",), schedule={"continues": "text"}),
        config(
            name="cooldown", steps=5, starts_from=("joint",),
            schedule={
                "continues": "joint", "peak": 0.5, "kind": "linear", "warmup_steps": 2, "final_ratio": 0.0
            },
        ),
        config(name="long", steps=3, starts_from=("cooldown",), schedule={"continues": "cooldown"}),
    ]  # fmt: skip


def test_the_rates_of_a_chain_as_one_list(toy: Any) -> None:
    stages = chain(toy)
    check_chains(stages)
    found = [rate for stage in stages for rate in rates(course_of(stages, stage.name), stage.steps)]
    first = [0.5, 1.0] + [1 - n / 8 * 0.95 for n in range(8)]
    last = first[-1]
    second = [last + (0.5 - last) / 2, 0.5] + [0.5 * (1 - n / 6) for n in range(6)]
    assert found == pytest.approx(first + second)
    assert [is_continued(stages, stage.name) for stage in stages] == [True, True, True, False]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from(["cosine", "linear", "wsd"]),
    st.integers(0, 30),
)
def test_any_chain_has_the_rates_of_one_stage(toy: Any, lengths: list[int], kind: str, warmup: int) -> None:
    schedule = {"peak": 1.0, "kind": kind, "warmup_steps": warmup}
    stages = [toy.toy_config(name="s0", steps=lengths[0], schedule=schedule)]
    for n, steps in enumerate(lengths[1:], 1):
        resumed = {"continues": f"s{n - 1}"}
        stages.append(toy.toy_config(name=f"s{n}", steps=steps, starts_from=(f"s{n - 1}",), schedule=resumed))
    whole = toy.toy_config(steps=sum(lengths), schedule=schedule)
    found = [rate for stage in stages for rate in rates(course_of(stages, stage.name), stage.steps)]
    assert found == rates(lone_course(whole), whole.steps)


@pytest.mark.parametrize("muon", [False, True])
def test_a_chain_that_resumes_is_one_long_stage_step_by_step(toy: Any, tmp_path: Path, muon: bool) -> None:
    schedule = {"peak": 0.02, "kind": "linear", "warmup_steps": 3, "muon": muon}
    whole = toy.toy_config(steps=14, schedule=schedule)
    seen: dict[str, list[Any]] = {"whole": [], "parts": []}
    run = toy.toy_run(tmp_path / "whole", whole, record=seen["whole"].append)
    run.run(ignore)
    stages = [
        toy.toy_config(name="one", steps=5, schedule=schedule),
        toy.toy_config(
            name="two", steps=6, starts_from=("one",), schedule={"continues": "one", "muon": muon}
        ),
        toy.toy_config(
            name="three", steps=3, starts_from=("two",), schedule={"continues": "two", "muon": muon}
        ),
    ]
    model, moments, begin = toy.ToyModel(), None, 0
    for stage in stages:
        part = toy.toy_run(
            tmp_path / stage.name, stage, model, begin, course=course_of(stages, stage.name),
            moments=moments, record=seen["parts"].append,
        )  # fmt: skip
        part.run(ignore)
        moments, begin = tmp_path / stage.name / "moments.safetensors", begin + stage.steps
        part.save_moments(moments)
    facts = {
        name: [(one.loss, one.gradient_norm, one.rate) for one in records] for name, records in seen.items()
    }
    assert facts["whole"] == facts["parts"]
    for name, parameter in run.parameters.items():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_parameters_that_the_earlier_stage_did_not_train_begin_without_moments(
    toy: Any, tmp_path: Path
) -> None:
    first = toy.toy_run(tmp_path / "a", toy.toy_config(trains=("first.",)))
    first.run(ignore)
    first.save_moments(tmp_path / "moments.safetensors")
    second = toy.toy_run(tmp_path / "b", toy.toy_config(), moments=tmp_path / "moments.safetensors")
    (optimizer,) = second.optimizers
    held = {second.names[parameter] for parameter in optimizer.state}
    assert held == {"first.weight", "first.bias"}


def test_another_rate_for_a_part(toy: Any, tmp_path: Path) -> None:
    """With AdamW the first update is the rate itself, in each element's direction."""
    stage = toy.toy_config(
        steps=1,
        rates={"first.bias": 0.0, "first.": 0.5, "*bias": 0.25},
        schedule={"peak": 0.01, "warmup_steps": 0, "weight_decay": 0.0},
    )
    before, run = toy.ToyModel(), toy.toy_run(tmp_path, stage)
    run.run(ignore)
    moved = {
        name: (parameter - before.get_parameter(name)).abs().max().item()
        for name, parameter in run.parameters.items()
    }
    expected = {"first.weight": 0.005, "first.bias": 0.0, "second.weight": 0.01, "second.bias": 0.0025}
    assert moved == pytest.approx(expected, abs=1e-6)


def test_another_rate_for_a_part_with_muon(toy: Any, tmp_path: Path) -> None:
    moved = {}
    for rate in (1.0, 0.5):
        stage = toy.toy_config(
            steps=1,
            rates={"first.": rate},
            schedule={"peak": 0.01, "warmup_steps": 0, "weight_decay": 0.0, "muon": True},
        )
        run = toy.toy_run(tmp_path / str(rate), stage)
        run.run(ignore)
        moved[rate] = run.parameters["first.weight"] - toy.ToyModel().first.weight
    torch.testing.assert_close(moved[0.5], 0.5 * moved[1.0], atol=1e-7, rtol=1e-4)


def test_a_rate_for_parameters_that_are_not_there_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no parameter fits third\.; names are like first\.weight"):
        toy.toy_run(tmp_path, toy.toy_config(rates={"third.": 2.0}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'peak' is missing"),
        ({"continues": "a", "kind": "linear"}, "kind is given, and stage a, whose schedule goes on"),
        ({"continues": "a", "final_ratio": 0.5}, "final_ratio is given"),
        ({"peak": 1.0, "kind": "step"}, "'kind' is 'step', expected one of cosine, linear, wsd"),
        ({"peak": 1.0, "decay": "sqrt"}, "'decay' is 'sqrt', expected one of linear, cosine, 1-sqrt"),
    ],
)
def test_a_wrong_schedule_is_refused_in_a_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_dataclass(Schedule, Fields(values, "schedule", ConfigError, "correct the recipe", closed=True))


def test_chains_that_cannot_be_are_refused(toy: Any) -> None:
    config = toy.toy_config
    first = config(name="a")
    apart = config(name="b", schedule={"continues": "a"})
    with pytest.raises(ConfigError, match="continues 'a', which the stage does not start from"):
        check_chains([first, apart])
    two = [config(name=n, starts_from=("a",), schedule={"continues": "a"}) for n in ("b", "c")]
    with pytest.raises(ConfigError, match="stages b and c both continue that of a"):
        check_chains([first, *two])
    muon = config(name="b", starts_from=("a",), schedule={"continues": "a", "muon": True})
    with pytest.raises(ConfigError, match="share their moments, and one of them has muon"):
        check_chains([first, muon])
