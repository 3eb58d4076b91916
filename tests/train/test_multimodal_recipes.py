"""The recipes of the multimodal reports: each runs from its first to its last stage at its smallest scale, in
one call. What a stage says that it trains has changed, everything else is bit-identical; schedules go on
where the stages before them stopped; shares grow as they should; published sizes are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from phirt_export.checkpoint import Checkpoint
from phirt_train.objectives.language_modeling import LanguageModelingData
from phirt_train.objectives.mixture import MixtureData
from phirt_train.plan import parameter_sizes
from phirt_train.recipe import Recipe, load_recipe
from phirt_train.runner import run_recipe
from phirt_train.schedules import Course, course_of
from phirt_train.selection import trained_names

REPORTS = Path(__file__).resolve().parents[2] / "export/recipes/reports"
_LANGUAGE = ("embed_tokens.weight", "base_layer", "layernorm", "model.norm.")


def _weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model.safetensors")


def _ran(name: str, data: Path, run: Path) -> tuple[Recipe, Path]:
    run_recipe(REPORTS / f"{name}.toml", run, data, scale="tiny")
    return load_recipe(REPORTS / f"{name}.toml", "tiny"), run


@pytest.fixture(scope="module")
def phi4mm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    return _ran("phi-4-multimodal", data, tmp_path_factory.mktemp("phi-4-multimodal"))


@pytest.fixture(scope="module")
def kimi(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    return _ran("kimi-vl", data, tmp_path_factory.mktemp("kimi-vl"))


def _check_frozen(recipe: Recipe, run: Path) -> None:
    """Every stage left what it does not train as the stages before it had it, and changed what it trains."""
    sizes = parameter_sizes(recipe)
    for stage in recipe.stages:
        trained, after = set(trained_names(sizes, stage)), _weights(run, stage.name)
        before = {name: one for start in stage.starts_from for name, one in _weights(run, start).items()}
        copied = tuple(stage.copies)
        for name, tensor in before.items():
            if name not in trained and not (copied and name.startswith(copied)):
                assert torch.equal(tensor, after[name]), (stage.name, name)
        known = [name for name in trained if name in before and name in after]
        same = [name for name in known if torch.equal(before[name], after[name])]
        # LoRA's A of a branch that begins with B = 0 has no gradient in a first step.
        assert [name for name in same if "lora_A" not in name] == [], stage.name


def test_every_stage_of_phi_4_multimodal_trains_what_it_names(phi4mm: tuple[Recipe, Path]) -> None:
    recipe, run = phi4mm
    table = (run / "results.md").read_text()
    assert all(f"| {part.name} |" in table for part in recipe.in_order())
    _check_frozen(recipe, run)


def test_vision_and_speech_leave_the_language_model_alone(phi4mm: tuple[Recipe, Path]) -> None:
    _, run = phi4mm
    language = {
        name: one for name, one in _weights(run, "posttraining").items() if any(p in name for p in _LANGUAGE)
    }
    joint, checkpoint = _weights(run, "joint"), load_file(run / "checkpoint/model.safetensors")
    for name, tensor in language.items():
        assert torch.equal(tensor, joint[name]) and torch.equal(tensor, checkpoint[name]), name
    reasoning = _weights(run, "preferences")
    assert any(not torch.equal(tensor, reasoning[name]) for name, tensor in language.items())


def test_the_encoder_is_frozen_where_several_frames_are_learnt(phi4mm: tuple[Recipe, Path]) -> None:
    _, run = phi4mm
    one, several = _weights(run, "v3_single_frame"), _weights(run, "v4_multi_frame")
    encoder = [name for name in one if "img_processor" in name]
    assert encoder and all(torch.equal(one[name], several[name]) for name in encoder)
    assert any(not torch.equal(one[name], several[name]) for name in one if "img_projection" in name)


def test_what_is_drawn_from_the_model_is_learnt_next(phi4mm: tuple[Recipe, Path]) -> None:
    _, run = phi4mm
    accepted = [json.loads(line) for line in (run / "made/drawn/accepted.jsonl").open()]
    pairs = [json.loads(line) for line in (run / "made/rollouts/pairs.jsonl").open()]
    assert accepted and all("####" in one["messages"][-1]["content"] for one in accepted)
    assert pairs and all("####" in pair["chosen"] for pair in pairs)
    assert json.loads((run / "preferences/result.json").read_text())["loss"] == pytest.approx(
        0.6931, abs=2e-3
    )


@pytest.mark.parametrize(
    ("name", "decoder", "vision", "audio"),
    [("phi-4-multimodal", 3_836_021_760, 398_090_304, 441_240_000)],
)
def test_published_sizes_count_what_is_published(name: str, decoder: int, vision: int, audio: int) -> None:
    sizes = parameter_sizes(load_recipe(REPORTS / f"{name}.toml", "full"))

    def count(fits: Callable[[str], bool]) -> int:
        return sum(size for one, size in sizes.items() if fits(one))

    assert count(lambda one: "extend" not in one and "lora" not in one) == decoder
    assert count(lambda one: "img_processor" in one) == pytest.approx(vision, rel=1e-3)
    assert count(lambda one: "audio_embed.encoder" in one) == pytest.approx(audio, rel=1e-3)


def test_tasks_of_speech_weigh_as_published() -> None:
    recipe = load_recipe(REPORTS / "phi-4-multimodal.toml", "full")
    by_name = {stage.name: stage for stage in recipe.stages}
    assert dict(by_name["s2_tasks"].data.tasks) == {  # type: ignore[attr-defined]
        "asr": 28, "ast": 28, "sqa and sqqa": 26, "au": 17, "ssum": 1,
    }  # fmt: skip
    for name, rate in (("s1_transcription", 4e-5), ("s2_tasks", 1e-4)):
        assert (by_name[name].steps, by_name[name].schedule.peak) == (50000, rate)
    assert by_name["v4_multi_frame"].rope is not None and by_name["v4_multi_frame"].rope.context == 65536
    v1, v2, v3, v4 = (by_name[one].tokens for one in by_name if one.startswith("v") and one[1].isdigit())
    assert v1 is not None and v2 is not None and v3 is not None and v4 is not None
    assert (v1 + v2, v3 + v4) == pytest.approx((0.5e12, 0.3e12))


def test_every_stage_of_kimi_vl_trains_what_it_names(kimi: tuple[Recipe, Path]) -> None:
    recipe, run = kimi
    table = (run / "results.md").read_text()
    assert all(f"| {part.name} |" in table for part in recipe.in_order())
    _check_frozen(recipe, run)
    # Nothing stays as it was where everything is trained.
    alignment, joint = _weights(run, "vit_alignment"), _weights(run, "joint")
    assert {name for name in alignment if "img_processor" in name} < joint.keys()
    assert not any("lora" in name or "audio" in name for name in joint)


def test_alignment_leaves_the_language_model_and_changes_the_tower(kimi: tuple[Recipe, Path]) -> None:
    _, run = kimi
    text, captions, aligned = (_weights(run, name) for name in ("text", "vit_captions", "vit_alignment"))
    assert all(torch.equal(tensor, aligned[name]) for name, tensor in text.items())
    assert not any("head" in name for name in captions if "lm_head" not in name)
    assert all(not torch.equal(tensor, aligned[name]) for name, tensor in captions.items())


def test_the_schedule_of_the_text_goes_on_and_warms_up_again_in_the_cooldown() -> None:
    stages = load_recipe(REPORTS / "kimi-vl.toml", "full").stages
    text, joint, cooldown = (course_of(stages, name) for name in ("text", "joint", "cooldown"))
    lengths = {stage.name: stage.steps for stage in stages}
    alone = Course(text.schedule, 0, lengths["text"] + lengths["joint"])
    for step in (0, 1999, 2000, 100_000, lengths["text"] - 1):
        assert text.rate(step) == alone.rate(step)
    for step in (0, 1, lengths["joint"] // 2, lengths["joint"] - 1):
        assert joint.rate(step) == alone.rate(lengths["text"] + step)
    stood = joint.rate(lengths["joint"] - 1)
    warm_up = [cooldown.rate(step) for step in range(500)]
    assert stood == pytest.approx(4.2e-5, rel=1e-3) and stood < warm_up[0]
    assert warm_up == sorted(warm_up) and warm_up[-1] == pytest.approx(2e-4)
    assert cooldown.rate(lengths["cooldown"] - 1) == pytest.approx(0.05 * 2e-4, rel=1e-2)


@pytest.mark.parametrize("scale", ["full", "small", "tiny"])
def test_the_share_of_media_grows_to_two_fifths_of_the_tokens(scale: str) -> None:
    (joint,) = (one for one in load_recipe(REPORTS / "kimi-vl.toml", scale).stages if one.name == "joint")
    assert isinstance(joint.data, MixtureData)
    names = list(joint.data.parts)
    shares = joint.data.shares(np.linspace(0, 1, 101))[:, names.index("media")]
    assert shares[0] == 0 and (np.diff(shares) >= 0).all()
    assert shares[25] == pytest.approx(0.2) and (shares[50:] == pytest.approx(0.4))


@pytest.mark.parametrize("scale", ["full", "small", "tiny"])
def test_budgets_of_kimi_vl_keep_the_reports_ratios(scale: str) -> None:
    stages = load_recipe(REPORTS / "kimi-vl.toml", scale).stages
    tokens = {stage.name: stage.tokens or 0.0 for stage in stages}
    tokens["long"] = tokens.pop("long_32k") + tokens.pop("long_128k")
    unit = tokens["text"] / 5.2
    assert [round(value / unit, 9) for value in tokens.values()] == [5.2, 2.0, 0.1, 1.4, 0.6, 0.3]
    for stage in stages:  # whole steps come to the budget
        length, step = stage.steps * stage.batch * stage.tokens_of_item, stage.batch * stage.tokens_of_item
        assert abs(length - (stage.tokens or 0.0)) <= max(step / 2, step - (stage.tokens or 0.0)), stage.name


@pytest.mark.parametrize("scale", ["full", "small", "tiny"])
def test_groups_of_text_have_the_tokens_that_an_item_counts_as(scale: str) -> None:
    for stage in load_recipe(REPORTS / "kimi-vl.toml", scale).stages:
        for part in stage.data.parts.values() if isinstance(stage.data, MixtureData) else ():
            if isinstance(part.read, LanguageModelingData):
                assert part.rows * part.read.row_tokens == stage.tokens_of_item, stage.name


def test_positions_turn_slower_where_texts_are_long(kimi: tuple[Recipe, Path]) -> None:
    recipe, run = kimi
    ropes = {stage.name: recipe.model_after(stage.name).decoder.rope for stage in recipe.stages}
    assert {ropes[name].theta for name in ("text", "joint", "cooldown")} == {50000.0}
    assert {ropes[name].theta for name in ("long_32k", "long_128k")} == {800000.0}
    full = load_recipe(REPORTS / "kimi-vl.toml", "full")
    contexts = [full.model_after(stage.name).decoder.rope.context for stage in full.stages]
    assert contexts == [8192] * 5 + [32768, 131072]
    rope = Checkpoint(run / "checkpoint").config.decoder.rope
    assert (rope.theta, rope.context) == (800000.0, 1024)


def test_a_run_reports_gates_and_what_moved_of_every_stage(kimi: tuple[Recipe, Path]) -> None:
    _, run = kimi
    report = (run / "report.md").read_text()
    assert "vision encoder" in report and "| long_128k |" in report
    assert "CHANGED" not in report
    gated = load_recipe(REPORTS / "kimi-vl.toml", "small").stages
    assert [stage.name for stage in gated if not stage.gate] == ["vit_alignment"]


def test_kimi_vl_in_full_has_as_many_weights_as_compute_a_token() -> None:
    sizes = parameter_sizes(load_recipe(REPORTS / "kimi-vl.toml", "full"))
    decoder = sum(size for name, size in sizes.items() if "extend" not in name)
    tower = sum(size for name, size in sizes.items() if "img_processor" in name)
    assert (round(decoder / 1e9, 1), round(tower / 1e6)) == (3.0, 413)
