"""Folders as PEFT writes them, written by hand: what is read from them, and what is refused and how."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.bundle.lora import NO_LORA, projections
from phirt.bundle.peft import read_lora
from phirt.errors import AdapterError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """3 layers, 4 heads of 8 over 2 of keys, 24 wide, 40 inside."""

    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 8
    hidden_size: int = 24
    intermediate_size: int = 40


SIZES = Sizes()
# (outputs, inputs) of every module that can be adapted.
SHAPES = {
    "self_attn.qkv_proj": (64, 24),
    "self_attn.q_proj": (32, 24),
    "self_attn.k_proj": (16, 24),
    "self_attn.v_proj": (16, 24),
    "self_attn.o_proj": (24, 32),
    "mlp.gate_up_proj": (80, 24),
    "mlp.gate_proj": (40, 24),
    "mlp.up_proj": (40, 24),
    "mlp.down_proj": (24, 40),
}
Tensors = dict[str, np.ndarray]


def pair(module: str, layer: int = 0, rank: int = 2, seed: int = 0, prefix: str = "model.") -> Tensors:
    """Random A and B of one module."""
    outputs, inputs = SHAPES[module]
    rng = np.random.default_rng([seed, layer, *module.encode()])
    name = f"base_model.model.{prefix}layers.{layer}.{module}"
    return {
        f"{name}.lora_A.weight": rng.standard_normal((rank, inputs)).astype(np.float32),
        f"{name}.lora_B.weight": rng.standard_normal((outputs, rank)).astype(np.float32),
    }


def config(**changes: Any) -> dict[str, Any]:
    """A usual adapter_config.json, with what PEFT writes beside what counts."""
    usual = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "somebody/model", "r": 2,
        "lora_alpha": 4, "lora_dropout": 0.05, "bias": "none", "target_modules": ["q_proj"],
        "use_rslora": False, "use_dora": False, "modules_to_save": None, "rank_pattern": {},
        "alpha_pattern": {}, "init_lora_weights": True, "fan_in_fan_out": False, "inference_mode": True,
        "layers_to_transform": None, "layers_pattern": None, "loftq_config": {}, "eva_config": None,
        "megatron_core": "megatron.core", "qalora_group_size": 16, "runtime_config": {"a": 1},
    }  # fmt: skip
    return {**usual, **changes}


def safetensors(tensors: Tensors, dtype: str = "F32") -> bytes:
    """The bytes of a file that holds them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = {
            "F32": lambda a: a.astype("<f4").tobytes(),
            "F16": lambda a: a.astype("<f2").tobytes(),
            "F64": lambda a: a.astype("<f8").tobytes(),
            "BF16": lambda a: (a.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(),
            "I8": lambda a: a.astype("i1").tobytes(),
        }[dtype](array)
        header[name] = {
            "dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write(folder: Path, tensors: Tensors, settings: dict[str, Any], dtype: str = "F32") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors, dtype))
    return folder


def delta(tensors: Tensors, module: str, layer: int, scale: float, prefix: str = "model.") -> np.ndarray:
    """PEFT's published formula: what is added to the weight [outputs, inputs], in float64."""
    name = f"base_model.model.{prefix}layers.{layer}.{module}"
    a, b = (tensors[f"{name}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    return scale * (b @ a)


def added(lora: Any, layer: int, name: str) -> np.ndarray:
    """What a branch adds to the fused weight [outputs, inputs]."""
    branch = lora.branches[layer, name]
    assert branch.a.dtype == branch.b.dtype == np.float32
    return (branch.a.astype(np.float64) @ branch.b).T


def test_a_fused_projection_takes_both_matrices_scaled_by_alpha_over_rank(tmp_path):
    tensors = pair("self_attn.qkv_proj") | pair("mlp.down_proj", layer=2)
    lora = read_lora(write(tmp_path, tensors, config(target_modules=["qkv_proj", "down_proj"])), SIZES)
    assert set(lora.branches) == {(0, "qkv_proj"), (2, "down_proj")}
    np.testing.assert_allclose(
        added(lora, 0, "qkv_proj"), delta(tensors, "self_attn.qkv_proj", 0, 2.0), rtol=1e-5
    )
    np.testing.assert_allclose(
        added(lora, 2, "down_proj"), delta(tensors, "mlp.down_proj", 2, 2.0), rtol=1e-5
    )


@given(
    st.sets(
        st.sampled_from([m for m in SHAPES if m not in ("self_attn.qkv_proj", "mlp.gate_up_proj")]),
        min_size=1,
    ),
    st.integers(0, 2),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_separate_projections_stand_in_their_rows_of_the_fused_one(tmp_path_factory, modules, seed, rslora):
    ranks = {module: 1 + (seed + i) % 4 for i, module in enumerate(sorted(modules))}
    tensors = {k: v for module, rank in ranks.items() for k, v in pair(module, 1, rank, seed).items()}
    settings = config(
        target_modules=[module.split(".")[-1] for module in modules],
        rank_pattern={module.split(".")[-1]: rank for module, rank in ranks.items()},
        use_rslora=rslora,
    )
    lora = read_lora(write(tmp_path_factory.mktemp("split"), tensors, settings), SIZES)
    for projection in projections(SIZES):
        if not any(f".{part}" in module for part in projection.parts for module in modules):
            assert (1, projection.name) not in lora.branches
            continue
        expected, first = np.zeros((projection.outputs, projection.inputs)), 0
        for part, rows in projection.parts.items():
            module = f"{projection.module.split('.')[0]}.{part}"
            if module in modules:
                scale = 4 / (math.sqrt(ranks[module]) if rslora else ranks[module])
                expected[first : first + rows] = delta(tensors, module, 1, scale)
            first += rows
        np.testing.assert_allclose(added(lora, 1, projection.name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / math.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 10}}, 5.0),
        ({"alpha_pattern": {"k_proj": 10}}, 2.0),
        ({"alpha_pattern": {"o_proj": 1, "layers.1.self_attn.q_proj": 7, "q_proj": 10}}, 3.5),  # the first
        ({"alpha_pattern": {r"^model\.layers\.(0|1)\..*q_proj": 7.5}}, 3.75),
        ({"alpha_pattern": {"_proj": 10}}, 2.0),  # no whole name
        ({"lora_alpha": 3, "r": 9, "rank_pattern": {"self_attn.q_proj": 2}}, 1.5),
        ({"lora_alpha": -0.5}, -0.25),
        ({"target_modules": ["model.layers.1.self_attn.q_proj"]}, 2.0),
        ({"target_modules": ["self_attn.q_proj", "o_proj", "layers.2.mlp.up_proj"]}, 2.0),
        ({"target_modules": "all-linear"}, 2.0),
        ({"target_modules": r".*layers\.[0-2]\.self_attn\.(q|v)_proj"}, 2.0),
        ({"target_modules": r"(?:.*?text.*?q_proj.*?)|(?:\bmodel\.layers\.[\d]{1,}\.self_attn\..*)"}, 2.0),
        ({"target_modules": r"layers.*((self_attn\.(q_proj|o_proj))|(mlp\.down_proj))"}, 2.0),
        ({"alpha_pattern": {r".*\.layers\.\d+\..*q_proj": 7.5}}, 3.75),
        ({"target_modules": None}, 2.0),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, 2.0),
        ({"layers_to_transform": [0, 1, 99]}, 2.0),
        ({"exclude_modules": ["k_proj"]}, 2.0),
        ({"init_lora_weights": "gaussian", "some_new_setting": None, "use_qalora": False}, 2.0),
    ],
)  # fmt: skip
def test_settings_decide_the_scale_as_in_peft(tmp_path, changes, scale):
    tensors = pair("self_attn.q_proj", layer=1)
    lora = read_lora(write(tmp_path, tensors, config(**changes)), SIZES)
    got = added(lora, 1, "qkv_proj")
    np.testing.assert_allclose(got[:32], delta(tensors, "self_attn.q_proj", 1, scale), rtol=1e-5)
    assert not got[32:].any()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_every_float_type_is_read_without_torch(tmp_path, dtype):
    exact = {name: np.round(array * 8) / 8 for name, array in pair("self_attn.o_proj").items()}  # in 8 bits
    exact = {name: np.clip(array, -4, 4) for name, array in exact.items()}
    lora = read_lora(write(tmp_path, exact, config(target_modules=["o_proj"]), dtype), SIZES)
    np.testing.assert_array_equal(added(lora, 0, "o_proj"), delta(exact, "self_attn.o_proj", 0, 2.0))


def test_a_base_model_without_a_head_has_shorter_names(tmp_path):
    tensors = pair("mlp.up_proj", prefix="")
    lora = read_lora(write(tmp_path, tensors, config(target_modules=["up_proj"])), SIZES)
    np.testing.assert_allclose(
        added(lora, 0, "gate_up_proj")[40:], delta(tensors, "mlp.up_proj", 0, 2.0, prefix=""), rtol=1e-5
    )


def test_an_adapter_is_known_by_what_it_computes(tmp_path):
    tensors = pair("self_attn.q_proj")
    one = read_lora(write(tmp_path / "1", tensors, config()), SIZES).digest()
    moved = read_lora(write(tmp_path / "2", dict(reversed(tensors.items())), config(lora_dropout=0)), SIZES)
    assert moved.digest() == one and len(one) == 64
    other = {name: array + (name.endswith("A.weight") and 1e-3) for name, array in tensors.items()}
    different = [
        read_lora(write(tmp_path / "3", other, config()), SIZES),
        read_lora(write(tmp_path / "4", tensors, config(lora_alpha=5)), SIZES),
        read_lora(write(tmp_path / "5", pair("self_attn.q_proj", layer=1), config()), SIZES),
        NO_LORA,
    ]
    assert len({one, *(lora.digest() for lora in different)}) == 5


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def without(ending: str) -> Tensors:
    return {name: array for name, array in pair("self_attn.q_proj").items() if not name.endswith(ending)}


def damaged(value: float) -> Tensors:
    tensors = pair("self_attn.q_proj")
    tensors[f"{Q}.lora_B.weight"][3, 1] = value
    return tensors


ENCODER = (
    "base_model.model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0.self_attn.q_proj"
)


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"use_dora": True}, {}, "(DoRA)"),
        ({}, {f"{Q}.lora_magnitude_vector": np.ones(32)}, "(DoRA)"),
        ({"bias": "lora_only"}, {}, "it changes biases"),
        ({"bias": "all"}, {}, "it changes biases"),
        ({}, {f"{Q}.bias": np.ones(32)}, "it changes biases"),
        ({"lora_bias": True}, {}, "biases (lora_bias)"),
        ({}, {f"{Q}.lora_B.bias": np.ones(32)}, "biases (lora_bias)"),
        ({"modules_to_save": ["lm_head"]}, {}, "whole modules (modules_to_save)"),
        ({}, {"base_model.model.lm_head.weight": np.ones((9, 24))}, "it changes the output head"),
        ({}, {"base_model.model.lm_head.lora_A.weight": np.ones((2, 24))}, "it changes the output head"),
        ({}, {"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 9))}, "changes embeddings"),
        ({}, {"base_model.model.model.embed_tokens.weight": np.ones((9, 24))}, "changes embeddings"),
        ({"trainable_token_indices": [5]}, {}, "embeddings of tokens"),
        ({}, {f"{ENCODER}.lora_A.weight": np.ones((2, 24))}, "encoders of images or audio"),
        ({}, {f"{Q.replace('q_proj', 'fc1')}.lora_A.weight": np.ones((2, 24))}, "not known here: base_model"),
        ({}, {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": np.ones((2, 4))}, "not known"),
        ({"target_modules": ["q_proj", "fc1"]}, {}, "target_modules names 'fc1', accepted: qkv_proj"),
        ({"target_modules": ["self_attn.up_proj"]}, {}, "target_modules names 'self_attn.up_proj'"),
        ({"target_modules": ["k_proj"]}, {}, "which adapter_config.json leaves out"),
        ({"target_modules": "k_proj"}, {}, "which adapter_config.json leaves out"),
        ({"exclude_modules": "model.*q_proj"}, {}, "which adapter_config.json leaves out"),
        ({"layers_to_transform": [1, 2]}, {}, "which adapter_config.json leaves out"),
        ({"target_modules": 5}, {}, "'target_modules' is 5"),
        ({"target_modules": "(q_proj"}, {}, "no regular expression"),
        ({"alpha_pattern": {"[q": 4}}, {}, "no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 4}}, {}, "no simple patterns"),
        ({"r": 3}, {}, "has rank 2 in adapter_model.safetensors and 3 in adapter_config.json"),
        ({"rank_pattern": {"q_proj": 4}}, {}, "and 4 in adapter_config.json"),
        ({"r": 0}, {}, "'r' is 0, expected a whole number from 1 to 16384"),
        ({"lora_alpha": "8"}, {}, "'lora_alpha' is '8', expected a number"),
        ({"peft_type": "IA3"}, {}, "peft_type is 'IA3', accepted: LORA"),
        ({"peft_type": None}, {}, "'peft_type' is None"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, {}, "path_initial_model_for_weight_conversion"),
        ({"layer_replication": [[0, 2], [1, 3]]}, {}, "it repeats layers"),
        ({"alora_invocation_tokens": [1]}, {}, "(aLoRA)"),
        ({"target_parameters": ["x"]}, {}, "(target_parameters)"),
        ({"use_something_new": True}, {}, "the setting 'use_something_new' is not known here"),
        ({"target_modules": ["q_proj", "qkv_proj"]}, pair("self_attn.qkv_proj"), "changed more than once"),
        ({}, pair("self_attn.q_proj", prefix=""), "changed more than once"),
        ({"target_modules": "all-linear"}, pair("mlp.up_proj", layer=3), "is layer 3, and the bundle has 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_in_one_line(tmp_path, changes, more, said):
    refuse(write(tmp_path, pair("self_attn.q_proj") | more, config(**changes)), said)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no LoRA weights"),
        (without("lora_A.weight"), "has no lora_A"),
        (without("lora_B.weight"), "has no lora_B"),
        (damaged(math.nan), "no finite numbers"),
        (damaged(math.inf), "no finite numbers"),
        (damaged(3e38), "no finite numbers"),  # times the scale
        (without("lora_B.weight") | {f"{Q}.lora_B.weight": np.ones((32, 3))}, "lora_B [32, 3]"),
        (without("lora_A.weight") | {f"{Q}.lora_A.weight": np.ones(24)}, "lora_A [24]"),
        (without("lora_A.weight") | {f"{Q}.lora_A.weight": np.ones((2, 48))}, "for 48 inputs and 32 outputs"),
        (without("lora_B.weight") | {f"{Q}.lora_B.weight": np.ones((64, 2))}, "adapter belongs to another"),
        ({f"{Q}.lora_A.weight": np.ones((0, 24)), f"{Q}.lora_B.weight": np.ones((32, 0))}, "a rank from 1"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(tmp_path, tensors, said):
    refuse(write(tmp_path, tensors, config()), said)


def refuse(folder: Path, said: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read_lora(folder, SIZES)
    message = str(caught.value)
    assert said in message and "\n" not in message and len(message) < 600 and str(folder) in message


def test_a_type_that_is_no_float_is_refused(tmp_path):
    refuse(write(tmp_path, pair("self_attn.q_proj"), config(), "I8"), "is of type I8, accepted: F64, F32")


def test_folders_that_are_none(tmp_path):
    refuse(tmp_path / "nowhere", "is no folder")
    refuse(tmp_path, "holds no adapter_config.json")
    (tmp_path / "adapter_config.json").write_text("[1")
    refuse(tmp_path, "is not valid JSON")
    (tmp_path / "adapter_config.json").write_text("[1]")
    refuse(tmp_path, "must be a JSON object")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config()))
    refuse(tmp_path, "holds no adapter_model.safetensors; save")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04")
    refuse(tmp_path, "a pickled one, which can run code")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config(x="y" * (5 << 20))))
    refuse(tmp_path, "is larger than")


def test_patterns_of_a_stranger_cannot_take_forever(tmp_path):
    hostile = "(" + "|".join(f"(a|aa|m|o|d|e|l|.)*{i}" for i in range(3)) + ")*$"
    tensors = pair("self_attn.q_proj")
    start = time.monotonic()
    read_lora(write(tmp_path / "1", tensors, config(target_modules=hostile)), SIZES)  # left to the weights
    refuse(write(tmp_path / "2", tensors, config(rank_pattern={hostile: 2})), "no simple patterns")
    refuse(
        write(tmp_path / "3", tensors, config(alpha_pattern={f".*{i}.*.*": 2 for i in range(20)})),
        "no simple",
    )
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("sizes", [1 << 62, 1 << 34, 4096])
def test_headers_that_lie_about_sizes_are_refused(tmp_path, sizes):
    folder = write(tmp_path, pair("self_attn.q_proj"), config())
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(struct.pack("<Q", sizes) + raw[8:])
    refuse(folder, "truncated")
    path.write_bytes(raw[:-1])
    refuse(folder, "outside the file")
    path.write_bytes(raw.replace(b"[2, 24]", b"[%d]" % sizes).replace(b"[2,24]", b"[%d]" % sizes))
    refuse(folder, "adapter_model.safetensors")


def test_matrices_beyond_every_memory_are_refused_before_they_are_read(tmp_path):
    big = dataclasses.replace(SIZES, hidden_size=1 << 17, intermediate_size=1 << 20, num_layers=3)
    names = [f"base_model.model.model.layers.0.mlp.gate_up_proj.lora_{part}.weight" for part in "AB"]
    shapes = [[1024, 1 << 17], [1 << 21, 1024]]
    ends = [2 * math.prod(shape) for shape in shapes]
    header = {
        names[0]: {"dtype": "BF16", "shape": shapes[0], "data_offsets": [0, ends[0]]},
        names[1]: {"dtype": "BF16", "shape": shapes[1], "data_offsets": [ends[0], sum(ends)]},
    }
    text = json.dumps(header).encode()
    write(tmp_path, {}, config(r=1024, target_modules=["gate_up_proj"]))
    with (tmp_path / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + sum(ends))  # holes: no disk
    with pytest.raises(AdapterError, match=r"its matrices take 9\.1 GB in float32, accepted: 8\.6 GB"):
        read_lora(tmp_path, big)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_end_in_one_error_or_in_an_adapter(tmp_path_factory, data):
    folder = write(tmp_path_factory.mktemp("damaged"), pair("self_attn.q_proj"), config())
    name = data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    raw = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw), 600) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(bytes(raw))
    try:
        read_lora(folder, SIZES)
    except AdapterError as error:
        assert "\n" not in str(error)
