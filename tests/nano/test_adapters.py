"""A user's adapter on nano: its graph, made from the bundle's own, computes the same without."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import phirt
from phirt.errors import ConversationError
from phirt.transcription import TRANSCRIBE_PROMPT

EXAMPLES = Path(__file__).resolve().parents[2] / "apps" / "examples"
SHAPES = {"self_attn.qkv_proj": (512, 256), "mlp.down_proj": (256, 768)}


@pytest.fixture(scope="module")
def lora_graph():
    """The module beside this one; tests are collected without packages."""
    spec = importlib.util.spec_from_file_location("lora_graph", Path(__file__).with_name("lora_graph.py"))
    module = sys.modules["lora_graph"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_adapter(folder: Path, gain: float) -> Path:
    """Random matrices; `gain` 0 makes an adapter that changes nothing."""
    rng, tensors = np.random.default_rng(0), {}
    for layer in range(6):
        for module, (outputs, inputs) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            a = rng.standard_normal((4, inputs)) / inputs**0.5
            tensors[f"{name}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = (gain * rng.standard_normal((outputs, 4))).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["qkv_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_both_graphs_are_what_the_exporter_builds_over_the_data_that_is_there(lora_graph, nano):
    for name, (raw, _) in lora_graph.build(nano).items():
        assert (nano / f"{name}.onnx").read_bytes() == raw


def test_answers_change_with_an_adapter_that_changes_something_and_with_no_other(nano, tmp_path):
    folders = {"idle": save_adapter(tmp_path / "idle", 0.0), "mine": save_adapter(tmp_path / "mine", 1.0)}
    requests = [
        ("What is this?", {"images": [EXAMPLES / "shapes.png"]}, "vision"),
        (TRANSCRIBE_PROMPT, {"audio": [EXAMPLES / "seven.flac"]}, "speech"),
        ("Tell me about the sea.", {}, "none"),
    ]
    with phirt.load(nano) as plain, phirt.load(nano, adapters=folders) as model:
        for text, media, adapter in requests:
            expected = plain.chat().send(text, max_new_tokens=16, **media).result
            for name in (None, "idle"):
                result = model.chat(adapter=name).send(text, max_new_tokens=16, **media).result
                assert (result.token_ids, result.adapter) == (expected.token_ids, adapter)
            other = model.chat(adapter="mine").send(text, max_new_tokens=16, **media).result
            assert (other.adapter, other.user_adapter) == (adapter, "mine")
            assert other.token_ids != expected.token_ids


def test_a_bundle_goes_on_with_conversations_of_those_that_it_names(nano, tmp_path):
    renamed = shutil.copytree(nano, tmp_path / "renamed")
    manifest = json.loads((renamed / "manifest.json").read_text())
    (renamed / "manifest.json").write_text(json.dumps(manifest | {"name": "renamed", "continues": []}))
    with phirt.load(renamed) as model:
        chat = model.chat()
        chat.send("Hello.", max_new_tokens=4).text()
        chat.save(tmp_path / "talk")
        fingerprint = model.manifest.fingerprint
    with phirt.load(nano) as model, pytest.raises(ConversationError, match="held with another bundle"):
        model.load_chat(tmp_path / "talk")
    (renamed / "manifest.json").write_text(json.dumps(manifest | {"continues": [fingerprint]}))
    with phirt.load(renamed) as model:
        following = model.load_chat(tmp_path / "talk").send("And?", max_new_tokens=4).result
        assert following.usage.cached_tokens > 0
