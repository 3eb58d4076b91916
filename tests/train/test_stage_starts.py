"""What a stage starts from, how its positions turn, how long it is, and what it must reach."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint
from phirt_export.reference import Model, RopeConfig, load_config
from phirt_train.plan import plan_table
from phirt_train.rate_fit import RateFit
from phirt_train.recipe import load_recipe
from phirt_train.runner import run_recipe
from phirt_train.schedules import course_of
from phirt_train.stage_fields import Bound, RopeChange, missed

MODEL = (
    """
name = "small"
"""
    + SMALL_MODEL
    + """sources = ["sea.jsonl"]
"""
)
VISION = """
[model.vision]
crop_size = 64
patch_size = 16
hidden_size = 32
intermediate_size = 64
num_layers = 1
num_heads = 4
norm_eps = 1e-6
max_crops = 1
[model.adapters]
vision = { rank = 4, alpha = 8.0 }
"""
TEXT = """
[[stage]]
name = "text"
objective = "language_modeling"
trains = ["model.layers.", "model.norm."]
steps = 2
batch = 2
schedule = { peak = 1e-3, warmup_steps = 0 }
data = { row_tokens = 16, documents = { "sea.jsonl" = 1.0 }, held_out = { sea = "sea.jsonl" } }
"""


def later(name: str, before: str, more: str) -> str:
    """A stage as TEXT is, which starts from another."""
    return TEXT.replace('name = "text"', f'name = "{name}"\nstarts_from = ["{before}"]\n{more}')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"The sea is wide, and wave {n} is long."}) for n in range(9)]
    (tmp_path / "sea.jsonl").write_text("\n".join(lines))
    (tmp_path / "hills.jsonl").write_text(json.dumps({"text": "The hills are high and green. " * 9}))
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "recipe.toml").write_text(text)
    return folder


def test_a_text_checkpoint_is_the_start_of_a_multimodal_model(folder: Path) -> None:
    run_recipe(write(folder, MODEL + TEXT), folder / "lm")
    tokenizer = '[tokenizer]\nvocab_size = 300\nfile = "lm/checkpoint"\n'
    model = MODEL.split("[tokenizer]")[0] + tokenizer + VISION
    from_lm = TEXT.replace('name = "text"', 'name = "more"\ncheckpoint = "lm/checkpoint"')
    run_recipe(write(folder, model + from_lm), folder / "two")
    old = load_file(folder / "lm/checkpoint/model.safetensors")
    new = load_file(folder / "two/checkpoint/model.safetensors")
    moved = [name for name, tensor in old.items() if not torch.equal(tensor, new[name])]
    assert moved and all(name.startswith(("model.layers.", "model.norm.")) for name in moved)
    assert any("img_processor" in name for name in new)
    assert Checkpoint(folder / "two/checkpoint").shape("model.embed_tokens.weight") == (300, 32)


def test_a_tower_alone_and_a_stage_of_another_run(folder: Path) -> None:
    tower = "model.embed_tokens_extend.image_embed.img_processor."
    shapes = {
        n: t.shape
        for n, t in Model(load_recipe(write(folder, MODEL + VISION + TEXT)).model).state_dict().items()
    }
    given = {name: torch.full(shape, 0.5) for name, shape in shapes.items() if name.startswith(tower)}
    (folder / "other").mkdir()
    save_file(given, folder / "other/model.safetensors")
    started = TEXT.replace('name = "text"', 'name = "text"\ncheckpoint = "other"')
    run_recipe(write(folder, MODEL + VISION + started), folder / "run")
    made = load_file(folder / "run/checkpoint/model.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ("hidden_size = 32", "hidden_size = 48", r"shape: model.embed_tokens.weight is \[300, 32\]"),
        ("num_layers = 1", "num_layers = 2", "num_layers is 1 there and 2 here"),
        ("norm_eps = 1e-5", "norm_eps = 1e-6", "norm_eps is 1e-05 there and 1e-06 here"),
        ("theta = 1e4", "theta = 2e4", r"its rope has theta 10000, the model 20000 \(a change on purpose"),
        ('checkpoint = "lm/checkpoint"', 'checkpoint = "lm/none"', "the checkpoint 'lm/none' is neither in"),
        ('checkpoint = "lm/checkpoint"', 'takes = ["model."]', "takes says what of a checkpoint is taken"),
        (
            'checkpoint = "lm/checkpoint"',
            'checkpoint = "lm/checkpoint"\ntakes = ["model.towers."]',
            "no tensor of the checkpoint fits model.towers.",
        ),
        ("vocab_size = 300\nfile", "vocab_size = 269\nfile", r"has \d+ tokens, and vocab_size is 269"),
        ('file = "lm/checkpoint"', 'sources = ["hills.jsonl"]', "another tokenizer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_line(folder: Path, change: str, more: str, message: str) -> None:
    run_recipe(write(folder, MODEL + TEXT), folder / "lm")
    recipe = MODEL.replace('sources = ["sea.jsonl"]', 'file = "lm/checkpoint"')
    recipe += TEXT.replace('name = "text"', 'name = "text"\ncheckpoint = "lm/checkpoint"')
    if "vocab_size = 269" in more:
        recipe = recipe.replace("vocab_size = 300\nnorm", "vocab_size = 269\nnorm")
    assert change in recipe
    write(folder, recipe.replace(change, more))
    with pytest.raises(ConfigError, match=message) as refused:
        run_recipe(folder, folder / "run")
    assert "\n" not in str(refused.value)


def test_other_weights_under_the_same_name_are_another_run(folder: Path) -> None:
    run_recipe(write(folder, MODEL + TEXT), folder / "lm")
    recipe = MODEL.replace('sources = ["sea.jsonl"]', 'file = "lm/checkpoint"')
    recipe += TEXT.replace('name = "text"', 'name = "text"\ncheckpoint = "lm/checkpoint"')
    run_recipe(write(folder, recipe), folder / "run")
    path = folder / "lm/checkpoint/model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ConfigError, match="was trained with another recipe"):
        run_recipe(folder, folder / "run")


def test_a_stages_rope_holds_for_it_and_what_starts_from_it(folder: Path) -> None:
    longer = later("long", "text", "rope = { theta = 2.5e5, context = 128 }").replace(
        "row_tokens = 16", "row_tokens = 100"
    )
    recipe = write(folder, MODEL + TEXT + longer + later("after", "long", ""))
    loaded = load_recipe(recipe)
    assert loaded.model_after("text").decoder.rope.context == 64
    for name in ("long", "after"):
        rope = loaded.model_after(name).decoder.rope
        assert (rope.theta, rope.context, rope.original_context) == (2.5e5, 128, 128)
    run_recipe(recipe, folder / "run")
    config = load_config(folder / "run/checkpoint")
    assert config.decoder.rope == loaded.model_after("after").decoder.rope
    assert Checkpoint(folder / "run/checkpoint").config.decoder.rope.theta == 2.5e5


def test_theta_changes_the_logits_and_the_tables_are_those_of_a_new_model(folder: Path) -> None:
    config = load_recipe(write(folder, MODEL + TEXT)).model
    model = Model(config).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = model(ids)
        rope = RopeChange(theta=2.5e5, context=128).apply(config.decoder.rope)
        model.set_rope(rope)
        after = model(ids)
    assert not torch.allclose(before, after)
    changed = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, rope=rope))
    fresh = Model(changed).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(ids), after)
    assert model.config == changed


def test_factors_keep_the_short_regime_and_a_plain_base_has_one() -> None:
    rope = RopeConfig(1e4, 4, 64, 64, (1.0, 1.0), (1.0, 1.0))
    scaled = RopeChange(context=256, long_factor=(1.0, 4.0)).apply(rope)
    assert (scaled.original_context, scaled.context, scaled.has_long_regime) == (64, 256, True)
    plain = RopeChange(theta=5e4, context=256).apply(rope)
    assert (plain.original_context, plain.has_long_regime) == (256, False)
    with pytest.raises(ConfigError, match="an original_context of 512, longer than the context of 256"):
        RopeChange(context=256, original_context=512).apply(rope)
    with pytest.raises(ConfigError, match="needs 2 short and long factors"):
        RopeChange(long_factor=(1.0,)).apply(rope)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (later("long", "text", "").replace("row_tokens = 16", "row_tokens = 65"), "row_tokens is 65"),
        (
            later("a", "text", "rope = { theta = 2e4 }") + later("b", "text", "rope = { theta = 3e4 }")
            + later("c", "a", "").replace('["a"]', '["a", "b"]'),
            "stage c starts from stages of different rotary embeddings",
        ),
        (later("a", "text", "tokens = 1e3"), "both steps and tokens are given"),
        (later("a", "text", "tokens = 0.0").replace("steps = 2\n", ""), "'tokens' is 0.0, expected a number"),
        (later("a", "text", "gate = { loss = {} }"), "neither 'most' nor 'least' is given"),
        (later("a", "text", "").replace("1e-3", "{ of = 'none' }"), "which is no earlier stage"),
        (later("a", "text", "").replace("1e-3", "{ fit = 'no.json' }"), "no.json cannot be read"),
        (later("a", "text", "").replace("1e-3", "{ times = 2.0 }"), "give either 'fit', a file"),
    ],
)  # fmt: skip
def test_wrong_fields_of_a_stage_are_one_line(folder: Path, stage: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_recipe(write(folder, MODEL + TEXT + stage))
    assert "\n" not in str(refused.value)


def test_budgets_of_tokens_keep_their_ratios_at_every_scale(folder: Path) -> None:
    def budget(name: str, tokens: str) -> str:
        return TEXT.replace('"text"', f'"{name}"').replace("steps = 2", f"tokens = {tokens}")

    scales = "[scale.small]\ntoken_scale = 1e-9\n[scale.smaller]\ntoken_scale = 1e-12\n"
    text = (
        MODEL + budget("text", "5.2e12") + budget("joint", "1.4e12") + budget("cooldown", "0.6e12") + scales
    )
    recipe = write(folder, text)
    # A step of two rows of 16 tokens: 5200 / 32 = 162.5, 1400 / 32 = 43.75, 600 / 32 = 18.75.
    assert [stage.steps for stage in load_recipe(recipe, "small").stages] == [162, 44, 19]
    assert [stage.steps for stage in load_recipe(recipe, "smaller").stages] == [1, 1, 1]
    assert [stage.steps for stage in load_recipe(recipe).stages] == [
        162_500_000_000,
        43_750_000_000,
        18_750_000_000,
    ]


def test_an_item_counts_as_many_tokens_as_the_stage_says(folder: Path) -> None:
    counted = TEXT.replace("steps = 2", "tokens = 1e4\nitem_tokens = 250")
    assert load_recipe(write(folder, MODEL + counted)).stages[0].steps == 20


def test_a_rate_comes_from_a_fit_or_from_an_earlier_stage(folder: Path) -> None:
    RateFit(0.5, -0.5, points=({"tokens": 64, "rate": 0.0625, "loss": 1.0},)).save(folder / "fit.json")  # type: ignore[arg-type]
    fitted = TEXT.replace("peak = 1e-3", "peak = { fit = 'fit.json' }")
    tenth = later("mid", "text", "").replace("peak = 1e-3", "peak = { of = 'text', times = 0.1 }")
    first, second = load_recipe(write(folder, MODEL + fitted + tenth)).stages
    assert first.schedule.peak == pytest.approx(0.5 * 64**-0.5)  # two steps of two rows of 16 tokens
    assert second.schedule.peak == pytest.approx(0.05 * 64**-0.5)


def test_a_derived_rate_keeps_the_limits_of_a_given_one(folder: Path) -> None:
    many = later("mid", "text", "").replace("peak = 1e-3", "peak = { of = 'text', times = 1e6 }")
    with pytest.raises(
        ConfigError, match=r"stage mid: .*peak.* is 1000.0, expected a number from"
    ) as refused:
        load_recipe(write(folder, MODEL + TEXT + many))
    assert "\n" not in str(refused.value)


def test_a_warm_up_is_scaled_with_its_stage_unless_the_scale_gives_one(folder: Path) -> None:
    stage = TEXT.replace("steps = 2\n", "steps = 2000\n").replace("warmup_steps = 0", "warmup_steps = 100")
    given = "[scale.given]\nstep_scale = 0.1\npart.text.schedule = { warmup_steps = 30 }\n"
    scales = (
        "[scale.tenth]\nstep_scale = 0.1\n[scale.tiny]\nstep_scale = 1e-3\n[scale.long]\nstep_scale = 4.0\n"
    )
    recipe = write(folder, MODEL + stage + scales + given)
    found = {name: load_recipe(recipe, name).stages[0] for name in (None, "tenth", "tiny", "long", "given")}
    steps = {name: (one.steps, one.schedule.warmup_steps) for name, one in found.items()}
    assert steps == {
        None: (2000, 100), "tenth": (200, 10), "tiny": (2, 0), "long": (8000, 400), "given": (200, 30)
    }  # fmt: skip


def test_a_warm_up_that_is_longer_than_its_schedule_is_refused(folder: Path) -> None:
    stage = TEXT.replace("warmup_steps = 0", "warmup_steps = 3")
    with pytest.raises(ConfigError) as refused:
        load_recipe(write(folder, MODEL + stage))
    assert str(refused.value) == (
        f"{folder}/recipe.toml: stage text warms up for 3 steps, and it has 2, so that the peak is never "
        "reached; give schedule.warmup_steps of 2 at most, or more steps"
    )
    more = later("mid", "text", "").replace("peak = 1e-3, warmup_steps = 0", "continues = 'text'")
    chained = load_recipe(write(folder, MODEL + stage + more))  # the schedule goes on in the second stage
    assert course_of(chained.stages, "mid").rate(0) == pytest.approx(chained.stages[0].schedule.peak)
    with pytest.raises(ConfigError, match="for 9 steps, and stages text and mid have 4"):
        load_recipe(write(folder, MODEL + stage.replace("warmup_steps = 3", "warmup_steps = 9") + more))


def test_the_usual_warm_up_is_a_tenth_of_a_short_stage(folder: Path) -> None:
    usual = TEXT.replace(", warmup_steps = 0", "")
    for steps, warmup in ((2, 0), (99, 9), (100, 100), (2000, 100)):
        (stage,) = load_recipe(
            write(folder, MODEL + usual.replace("steps = 2\n", f"steps = {steps}\n"))
        ).stages
        assert (stage.steps, stage.schedule.warmup_steps) == (steps, warmup)


def test_a_gate_that_is_missed_ends_the_run_and_keeps_the_weights(folder: Path) -> None:
    gated = TEXT + 'gate = { "sea bits per byte" = { most = 0.5 } }\n'
    recipe = write(folder, MODEL + gated + later("next", "text", ""))
    with pytest.raises(ConfigError, match=r"text misses its gate: sea bits per byte is .*at most 0.5; its"):
        run_recipe(recipe, folder / "run")
    weights = folder / "run/text/model.safetensors"
    before = weights.stat().st_mtime_ns
    assert not (folder / "run/next").exists()
    with pytest.raises(ConfigError, match="misses its gate"):  # and it is not trained again
        run_recipe(recipe, folder / "run")
    assert len(run_recipe(recipe, folder / "run", ignore_gates=True)) == 2
    write(folder, MODEL + gated.replace("most = 0.5", "most = 50.0") + later("next", "text", ""))
    assert len(run_recipe(recipe, folder / "run")) == 2
    assert weights.stat().st_mtime_ns == before


def test_a_scale_can_let_every_stage_pass(folder: Path) -> None:
    gated = TEXT + "gate = { loss = { most = 0.1 } }\n[scale.tiny]\ngates = false\n"
    assert run_recipe(write(folder, MODEL + gated), folder / "run", scale="tiny")


def test_gates_name_what_was_measured() -> None:
    gate = {"digits exact": Bound(least=0.8), "loss": Bound(most=2.0)}
    assert missed(gate, {"digits exact": 0.8, "loss": 2.0}) == []
    assert missed(gate, {"loss": 2.5}) == [
        "digits exact was not measured (figures: loss)",
        "loss is 2.5, wanted at most 2",
    ]


def test_a_plan_counts_published_sizes_without_making_them(folder: Path) -> None:
    sizes = {
        "num_layers": (1, 32), "hidden_size": (32, 3072), "num_heads": (2, 24), "num_kv_heads": (1, 8),
        "head_dim": (16, 128), "vocab_size": (300, 200064), "intermediate_size": (64, 8192),
        "rotary_dim": (16, 96),
    }  # fmt: skip
    text = MODEL
    for name, (before, after) in sizes.items():
        text = text.replace(f"{name} = {before}", f"{name} = {after}")
    table = plan_table(load_recipe(write(folder, text + TEXT.replace("steps = 2", "tokens = 5e12"))))
    # Phi-4-mini: a table of 200064 · 3072, and 32 layers of 5120 · 3072 + 3072² + 3 · 3072 · 8192 + 2 · 3072.
    assert "3.84B weights (3,836,021,760)" in table
    assert "| text | language_modeling | scratch | 3.22B | 615M | decoder |" in table
    assert "| 5T tokens |" in table
