"""The reference model against formulas of the specification, worked out here with numpy or by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_export.reference import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    Model,
    ModelConfig,
    RopeConfig,
    TokenConfig,
    VisionConfig,
    initialize,
)
from phirt_export.reference.audio import DepthwiseSeparable, GatedLinear, RelativeBias
from phirt_export.reference.decoder import rope_tables, rotate
from phirt_export.reference.vision import position_buckets

ROPE = RopeConfig(1e4, 12, 64, 64, (1.0,) * 6, (1.0,) * 6)
CONFIG = ModelConfig(
    decoder=DecoderConfig(2, 32, 4, 2, 16, 48, 90, 1e-5, ROPE),
    tokens=TokenConfig(bos=0, pad=0, eos=(0, 4), image=1, audio=2),
    vision=VisionConfig(
        crop_size=32,
        patch_size=8,
        hidden_size=24,
        intermediate_size=40,
        num_layers=2,
        num_heads=2,
        norm_eps=1e-6,
        max_crops=6,
    ),
    audio=AudioConfig(
        num_mels=80,
        hidden_size=24,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        kernel_size=3,
        bias_max_distance=5,
        window_tokens=6,
    ),
    adapters={"vision": AdapterConfig(3, 6.0), "speech": AdapterConfig(4, 2.0)},
)


@pytest.fixture(scope="module")
def model() -> Model:
    built = Model(CONFIG)
    initialize(built, 1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return built.eval()


def test_configuration_survives_json() -> None:
    assert ModelConfig.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize("text", ["{}", "[]", '{"decoder": {}}', "no json"])
def test_broken_configuration_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize("value", [10**9, -1, 2.5, "2", None, True, [2], {}], ids=str)
def test_numbers_that_are_none_are_a_config_error(value: object) -> None:
    raw = json.loads(CONFIG.to_json())
    raw["decoder"]["num_layers"] = value
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    "change", [{"num_kv_heads": 3}, {"head_dim": 8}, {"rope": {"rotary_dim": 11}}], ids=str
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        if "rope" in change:
            dataclasses.replace(ROPE, rotary_dim=11)
        dataclasses.replace(CONFIG.decoder, **change)


def test_magnitude_factor_of_the_published_context() -> None:
    rope = RopeConfig(1e4, 4, 4096, 131072, (1.0, 1.0), (2.0, 4.0))
    cos, _ = rope_tables(rope, 8)
    assert cos[0, 0].item() == pytest.approx(1.1902380714, abs=1e-7)


def test_long_factors_apply_to_every_position_past_the_original_context() -> None:
    rope = RopeConfig(1e4, 4, 16, 64, (1.0, 1.0), (2.0, 4.0))
    magnitude = math.sqrt(1 + math.log(4) / math.log(16))
    for length, factors in ((16, (1.0, 1.0)), (17, (2.0, 4.0))):
        _, sin = rope_tables(rope, length)
        angles = 3 / (np.array(factors) * np.array([1.0, 100.0]))
        np.testing.assert_allclose(sin[3], np.sin(angles) * magnitude, rtol=1e-6)


def test_rotation_is_complex_multiplication_of_half_split_pairs() -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 5, 16)).astype(np.float32)
    cos, sin = rope_tables(ROPE, 5)
    turned = (x[..., :6] + 1j * x[..., 6:12]) * (cos.numpy() + 1j * sin.numpy())
    expected = np.concatenate([turned.real, turned.imag, x[..., 12:]], axis=-1)
    np.testing.assert_allclose(rotate(torch.from_numpy(x), cos, sin), expected, atol=1e-6)


def test_decoder_and_audio_gates_take_opposite_halves(model: Model) -> None:
    layer = model.model.layers[0]
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    gate, up = (x @ layer.mlp.gate_up_proj.base_layer.weight.T).split(48, dim=-1)
    expected = (F.silu(gate) * up) @ layer.mlp.down_proj.base_layer.weight.T
    assert torch.allclose(layer.mlp(x, None), expected, atol=1e-6)
    gated = GatedLinear(4, 2)
    value = torch.randn(5, 4)
    first, second = gated.linear(value).split(2, dim=-1)
    assert torch.allclose(gated(value), first * torch.sigmoid(second) * second)


def test_a_route_adds_its_scaled_branch_and_nothing_else(model: Model) -> None:
    projection = model.model.layers[1].self_attn.qkv_proj
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    base = x @ projection.base_layer.weight.T
    assert torch.allclose(projection(x, None), base, atol=1e-6)
    for name, scale in (("vision", 2.0), ("speech", 0.5)):
        a, b = projection.lora_A[name].weight, projection.lora_B[name].weight
        assert torch.allclose(projection(x, name), base + scale * (x @ a.T) @ b.T, atol=1e-5)


def test_routes_differ_at_every_position(model: Model) -> None:
    ids = torch.tensor([[5, 9, 17, 33, 60, 61]])
    with torch.no_grad():
        logits = [model(ids, route=route) for route in ("none", "vision", "speech")]
    for i in range(3):
        for j in range(i):
            assert ((logits[i] - logits[j]).abs().amax(-1) > 1e-4).all()


def test_later_tokens_do_not_change_earlier_logits(model: Model) -> None:
    ids = torch.tensor([[5, 9, 17, 33, 60, 61]])
    with torch.no_grad():
        assert torch.allclose(model(ids)[:, :4], model(ids[:, :4]), atol=1e-6)


def test_media_rows_replace_placeholders_in_order(model: Model) -> None:
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    table = model.model.embed_tokens.weight
    ids = torch.tensor([[5, 1, 1, 7, 2, 8]])
    plain = torch.stack([table[5], rows[0], rows[1], table[7], rows[2], table[8]])[None]
    captured: list[torch.Tensor] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    with torch.no_grad():
        model(ids, rows, "vision")
    hook.remove()
    assert torch.equal(captured[0], plain)


def test_position_buckets_by_hand() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :3, :2] = True  # i / 3 -> buckets 0, 1, 2 of 4; j / 2 -> 0, 2
    expected = torch.tensor([[[0, 2, 0, 0], [4, 6, 0, 0], [8, 10, 0, 0], [0, 0, 0, 0]]])
    assert torch.equal(position_buckets(mask, 4), expected)
    full = torch.ones(1, 4, 4, dtype=torch.bool)
    assert torch.equal(position_buckets(full, 4)[0].flatten(), torch.arange(16))


@given(h=st.integers(1, 3), w=st.integers(1, 3), u=st.integers(1, 6), v=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_image_rows_follow_the_formula_and_the_published_order(
    model: Model, h: int, w: int, u: int, v: int
) -> None:
    g = 2
    u, v = min(u, h * g), min(v, w * g)
    embed = model.image_embed
    numbered = torch.arange((1 + h * w) * g * g, dtype=torch.float32).view(1 + h * w, g, g, 1)
    pooled = numbered.expand(-1, -1, -1, 24)
    with torch.no_grad():
        rows = embed.assemble(pooled, (h, w), (u, v))
    assert rows.shape == (u * v + u + 1 + g * g + g, 24)
    sub, glb = embed.sub_GN[0, 0, 0], embed.glb_GN[0, 0]
    assert torch.equal(rows[v], sub) and torch.equal(rows[u * (v + 1)], glb)
    row, column = u - 1, v - 1
    crop = 1 + (row // g) * w + column // g
    assert rows[row * (v + 1) + column, 0] == pooled[crop, row % g, column % g, 0]
    assert torch.equal(rows[u * (v + 1) + 1], pooled[0, 0, 0])
    assert torch.equal(rows[-1], sub)


def test_masked_patches_are_no_keys_and_a_wholly_masked_crop_stays_finite(model: Model) -> None:
    tower = model.image_embed.img_processor
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, 2:] = False
    changed = pixels.clone()
    changed[:, :, 16:] = 7.0
    with torch.no_grad():
        first, second = tower(pixels, mask), tower(changed, mask)
        assert torch.allclose(first[:, 0], second[:, 0], atol=1e-6)
        assert torch.isfinite(tower(pixels, torch.zeros_like(mask))).all()


def test_depthwise_convolution_is_causal() -> None:
    block = DepthwiseSeparable(3, 3)
    x = torch.randn(1, 3, 8)
    later = x.clone()
    later[:, :, 5:] += 1
    with torch.no_grad():
        same = torch.isclose(block(x), block(later), atol=1e-6).all(1)[0]
    assert same.tolist() == [True] * 5 + [False] * 3


def test_relative_bias_clamps_key_minus_query() -> None:
    bias = RelativeBias(2, 1)
    with torch.no_grad():
        bias.bias_values.weight.copy_(torch.arange(4.0)[:, None])
        table = bias(5)[0, 0]
    expected = [[min(max(j - i, -2), 1) + 2 for j in range(5)] for i in range(5)]
    assert table.tolist() == expected


def test_audio_rows_are_frames_over_eight_rounded_up(model: Model) -> None:
    with torch.no_grad():
        for frames in (1, 7, 8, 9, 48):
            assert model.audio_embed(torch.randn(1, frames, 80), "speech").shape == (1, -(-frames // 8), 32)


def test_windows_do_not_see_each_other(model: Model) -> None:
    frames = torch.randn(1, 8 * 12, 80, generator=torch.Generator().manual_seed(7))
    changed = frames.clone()
    changed[:, 8 * 8 :] += 1.0  # well inside the second window of six tokens
    with torch.no_grad():
        first, second = (model.audio_embed.encoder(x) for x in (frames, changed))
    assert torch.allclose(first[:, :6], second[:, :6], atol=1e-6)
    assert not torch.allclose(first[:, 6:], second[:, 6:], atol=1e-2)


def test_a_padded_batch_gives_each_clip_what_it_gets_alone(model: Model) -> None:
    generator = torch.Generator().manual_seed(8)
    long, short = torch.randn(1, 40, 80, generator=generator), torch.randn(1, 24, 80, generator=generator)
    norm = model.audio_embed.encoder.encoder_embedding
    padded = F.pad(short, (0, 0, 0, 16)) + 0.0
    padded[:, 24:] = norm.global_mean  # normalises to zero, as a convolution's own padding
    with torch.no_grad():
        both = model.audio_embed.encoder(torch.cat((long, padded)), torch.tensor([40, 24]))
        assert torch.allclose(both[0], model.audio_embed.encoder(long)[0], atol=1e-5)
        assert torch.allclose(both[1, :3], model.audio_embed.encoder(short)[0], atol=1e-5)


def test_projectors_differ(model: Model) -> None:
    clip = torch.randn(1, 16, 80)
    with torch.no_grad():
        assert not torch.allclose(model.audio_embed(clip, "speech"), model.audio_embed(clip, "vision"))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("decoder", {"num_kv_heads": 0}),
        ("decoder", {"hidden_size": -64}),
        ("decoder", {"biases": ["lm_head"]}),
        ("vision", {"num_heads": 5}),
        ("audio", {"num_heads": 5}),
        ("audio", {"kernel_size": 0}),
    ],
)
def test_sizes_out_of_range_or_at_odds_are_one_config_error(part: str, changes: dict[str, object]) -> None:
    raw = json.loads(CONFIG.to_json())
    raw[part] |= changes
    with pytest.raises(ConfigError, match=rf"config\.json: {part}"):
        ModelConfig.from_json(json.dumps(raw))
