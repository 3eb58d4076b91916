"""Checkpoint folders: element types, and every way in which one can be wrong."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import config, random_model, save_checkpoint

from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint, expected_shapes


@pytest.fixture(scope="module")
def model():
    return random_model(config())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_come_as_float32_of_the_stored_values(model, tmp_path, dtype):
    opened = Checkpoint(save_checkpoint(model, tmp_path, dtype))
    for name, shape in expected_shapes(model.config).items():
        stored = model.state_dict()[name].to(dtype).float().numpy()
        tensor = opened.tensor(name)
        assert tensor.dtype == np.float32 and opened.shape(name) == shape
        np.testing.assert_array_equal(tensor, stored)
        if len(shape) > 1 and shape[0] > 2:
            np.testing.assert_array_equal(opened.rows(name, 1, 3), stored[1:3])


def test_shapes_are_those_of_the_configuration_that_is_asked_for():
    """However many were asked for before, and whatever was done with the answers."""
    first = config()
    expected_shapes(first).clear()
    for size in range(320, 340):
        other = dataclasses.replace(first, decoder=dataclasses.replace(first.decoder, vocab_size=size))
        assert expected_shapes(other)["model.embed_tokens.weight"] == (size, first.decoder.hidden_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in random_model(first).named_parameters()}
    assert shapes.items() <= expected_shapes(first).items()


def test_all_differences_from_the_configuration_are_named_at_once(model, tmp_path):
    save_checkpoint(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.weight"]
    state["model.layers.1.self_attn.o_proj.base_layer.weight"] = torch.zeros(3, 5)
    state["model.layers.9.extra.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError) as caught:
        Checkpoint(tmp_path)
    message = str(caught.value)
    assert "1 missing: model.norm.weight" in message
    assert "1 unknown: model.layers.9.extra.weight" in message
    assert "o_proj.base_layer.weight is [3, 5], not [64, 128]" in message


def test_a_long_list_of_differences_is_shortened(model, tmp_path):
    save_checkpoint(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "lora" not in name}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"48 missing: .* and 40 more"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(model, tmp_path, name):
    save_checkpoint(model, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(ConfigError, match="can run code"):
        Checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path, model):
    with pytest.raises(ConfigError, match="is not a folder"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(model.config.to_json())
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused(model, tmp_path, keep):
    path = save_checkpoint(model, tmp_path) / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if keep < 1 else int(keep)])
    with pytest.raises(ConfigError, match="truncated"):
        Checkpoint(tmp_path)


def rewrite_header(path, change) -> None:
    """Apply `change` to the parsed table of contents."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_offsets", [0, 1 << 40]),
        ("data_offsets", [-400, -144]),
        ("data_offsets", [256, 0]),
        ("data_offsets", "all"),
        ("shape", [-64]),
        ("shape", [1 << 40]),
        ("dtype", "I8"),
    ],
)
def test_a_lying_header_is_refused(model, tmp_path, field, value):
    path = save_checkpoint(model, tmp_path) / "model.safetensors"
    rewrite_header(path, lambda header: header["model.norm.weight"].update({field: value}))
    with pytest.raises(ConfigError):
        Checkpoint(tmp_path).tensor("model.norm.weight")


@pytest.mark.parametrize("raw", [b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60, (2).to_bytes(8, "little") + b"[]"])
def test_files_of_another_kind_are_refused(model, tmp_path, raw):
    path = save_checkpoint(model, tmp_path) / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ConfigError):
        Checkpoint(tmp_path)
