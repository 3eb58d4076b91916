"""An adapter's folder is its base with the adapter in it: weights as PEFT merges them, text as trained."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from phirt.errors import AdapterError
from phirt_export.adapted import AdaptedCheckpoint, is_adapter, named_base
from phirt_export.hub import HubId

transformers = pytest.importorskip("transformers", reason="transformers has the published models")
peft = pytest.importorskip("peft", reason="PEFT makes the adapters and merges them")

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80, "max_position_embeddings": 64, "bos_token_id": 0,
    "eos_token_id": 1, "initializer_range": 0.2,
}  # fmt: skip


def make_base(folder: Path, tied: bool = False, bias: bool = False) -> Any:
    """A small random Llama, saved with a tokenizer's files."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied, attention_bias=bias)
    model = transformers.LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.normal_(std=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"of": "the base"}')
    (folder / "tokenizer_config.json").write_text("{}")
    return model


def make_adapter(base: Any, folder: Path, **settings: Any) -> Any:
    """An adapter with every trained tensor drawn at random; returns the PEFT model."""
    usual = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": PROJECTIONS}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**{**usual, **settings}))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn(tensor.shape) * (0.5 if "magnitude" in name else 0.3))
    model.save_pretrained(str(folder), save_embedding_layers=settings.get("save_embedding_layers", "auto"))
    return model


def weights(model: Any) -> dict[str, np.ndarray]:
    """Its tensors, by published names."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_merged(adapter: Path, base: Path, expected: dict[str, np.ndarray]) -> AdaptedCheckpoint:
    """All tensors are the expected ones, as a whole and by rows."""
    opened = AdaptedCheckpoint(adapter, base)
    for name, tensor in opened.tensors.items():
        np.testing.assert_allclose(tensor.tensor(), expected[name], atol=2e-6, err_msg=name)
        np.testing.assert_array_equal(tensor.rows(1, 3), tensor.tensor()[1:3])
        assert tensor.dtype == "F32" and tensor.shape == expected[name].shape
    return opened


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 11}},
        {"target_modules": "all-linear"},
        {"target_modules": [*PROJECTIONS, "lm_head"]},
        {"target_modules": [*PROJECTIONS, "embed_tokens"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["norm"]},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_weights_are_those_that_peft_merges(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base")
    model = make_adapter(base, tmp_path / "adapter", **settings)
    assert_merged(tmp_path / "adapter", tmp_path / "base", weights(model.merge_and_unload()))


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}], ids=str)
def test_biases(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base", bias=True)
    modules = ["q_proj", "o_proj"]
    model = make_adapter(base, tmp_path / "adapter", target_modules=modules, **settings)
    assert_merged(tmp_path / "adapter", tmp_path / "base", weights(model.merge_and_unload()))


@pytest.mark.parametrize("changed", ["lm_head", "embed_tokens"])
def test_one_of_two_tied_tables_is_changed_alone(tmp_path: Path, changed: str) -> None:
    base = make_base(tmp_path / "base", tied=True)
    model = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", changed])
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
    opened = AdaptedCheckpoint(tmp_path / "adapter", tmp_path / "base")
    config = json.loads((opened.folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    untied = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=False)
    ).eval()
    untied.load_state_dict({name: torch.from_numpy(t.tensor()) for name, t in opened.tensors.items()})
    with torch.no_grad():
        torch.testing.assert_close(untied(ids).logits, expected, atol=1e-4, rtol=0)


def test_tables_that_are_tied_on_purpose_stay_so(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    make_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    opened = AdaptedCheckpoint(tmp_path / "adapter", tmp_path / "base")
    assert "lm_head.weight" not in opened.tensors
    assert json.loads((opened.folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_larger_vocabulary_and_its_tokenizer(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    base.resize_token_embeddings(96)
    modules = ["embed_tokens", "lm_head"]
    model = make_adapter(base, tmp_path / "adapter", modules_to_save=modules)
    (tmp_path / "adapter" / "tokenizer.json").write_text('{"of": "the adapter"}')
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages }}")
    opened = assert_merged(tmp_path / "adapter", tmp_path / "base", weights(model.merge_and_unload()))
    assert json.loads((opened.folder / "config.json").read_text())["vocab_size"] == 96
    assert (opened.folder / "tokenizer.json").read_text() == '{"of": "the adapter"}'
    assert (opened.folder / "chat_template.jinja").is_file()
    assert not (opened.folder / "tokenizer_config.json").exists()


def test_the_bases_text_where_the_adapter_has_none(tmp_path: Path) -> None:
    make_adapter(make_base(tmp_path / "base"), tmp_path / "adapter")
    opened = AdaptedCheckpoint(tmp_path / "adapter", tmp_path / "base")
    assert (opened.folder / "tokenizer.json").read_text() == '{"of": "the base"}'
    assert (opened.folder / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()
    assert opened.folder.name == "adapter"


def test_where_the_base_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_adapter(make_base(tmp_path / "base"), tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"

    def named(name: str | None) -> Path:
        place.write_text(json.dumps(json.loads(place.read_text()) | {"base_model_name_or_path": name}))
        return tmp_path / "adapter"

    assert is_adapter(tmp_path / "adapter") and not is_adapter(tmp_path / "base")
    AdaptedCheckpoint(named(str(tmp_path / "base")))
    AdaptedCheckpoint(named("../base"))
    monkeypatch.chdir(tmp_path)
    AdaptedCheckpoint(named("base"))
    assert named_base(named("some/model")) == HubId("some/model")
    for name, message in (
        (None, "does not say which model it belongs to; name it with --base"),
        ("./gone", "the base of .*, './gone', is no folder here; name it with --base"),
        ("some/model", "some/model is no folder, and no whole copy of revision 'main' is kept"),
    ):
        with pytest.raises(Exception, match=message):
            AdaptedCheckpoint(named(name))


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    make_adapter(make_base(tmp_path / "base"), tmp_path / "adapter")
    good = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    other = name.replace("layers.0", "layers.7")
    for change, message in (
        ({name: good[name][:, :8]}, r"q_proj is for \[64, 8\] and the base's weight is \[64, 64\]"),
        ({name: good[name][:2]}, "another model; name its own with --base"),
        ({name: good[name] * np.nan}, "q_proj holds values that are no finite numbers"),
        ({other: good[name]}, "layers.7.self_attn.q_proj.weight, and its base has none"),
        ({"base_model.model.model.layers.0.self_attn.q_proj.lora_X": good[name]}, "is not known here"),
        ({name: None}, "q_proj has no lora_A; fetch the adapter again"),
        ({name: good[name].astype(np.int8)}, "is of type I8, accepted: F64, F32"),
    ):
        tensors = {key: value for key, value in {**good, **change}.items() if value is not None}
        save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=message) as error:
            AdaptedCheckpoint(tmp_path / "adapter", tmp_path / "base")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{"peft_type": "IA3"}, {"use_qalora": True}, {"trainable_token_indices": [1]}, {"new_setting": 3}],
    ids=str,
)
def test_what_cannot_be_merged_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    make_adapter(make_base(tmp_path / "base"), tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | settings))
    with pytest.raises(AdapterError, match="with PEFT's merge_and_unload"):
        AdaptedCheckpoint(tmp_path / "adapter", tmp_path / "base")


def test_the_documents_go_with_the_checkpoint(tmp_path: Path) -> None:
    make_adapter(make_base(tmp_path / "base"), tmp_path / "adapter")
    opened = AdaptedCheckpoint(tmp_path / "adapter", tmp_path / "base")
    folder = opened.folder
    state = opened.state
    del opened
    assert not folder.exists()
    shutil.copytree(tmp_path / "adapter", tmp_path / "other")
    path = tmp_path / "other" / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path)
    assert AdaptedCheckpoint(tmp_path / "other", tmp_path / "base").state != state


def test_a_merged_export_answers_as_the_merged_model(tmp_path: Path) -> None:
    """Through the bundle, with the base that the adapter names, and with another one."""
    from small_models import NO_TOKENS, DecoderRunner, session

    from phirt_export.checkpoint import Checkpoint
    from phirt_export.exporter import export_bundle

    model = make_adapter(make_base(tmp_path / "base"), tmp_path / "adapter", use_dora=True)
    for folder in (tmp_path / "base", tmp_path / "adapter"):
        (folder / "tokenizer.json").write_text(NO_TOKENS)
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    ids = list(range(2, 22))
    with torch.no_grad():
        expected = model.merge_and_unload()(torch.tensor([ids])).logits[0].numpy()
    place = tmp_path / "adapter" / "adapter_config.json"
    for base, named in ((None, "../base"), (tmp_path / "base", "gone")):
        place.write_text(json.dumps(json.loads(place.read_text()) | {"base_model_name_or_path": named}))
        bundle = export_bundle(tmp_path / "adapter", tmp_path / "bundle", base=base, bits=32)
        config = Checkpoint(tmp_path / "adapter", base).config.decoder
        logits = DecoderRunner(session(bundle / "decoder.onnx"), config).run(ids)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        assert json.loads((bundle / "manifest.json").read_text())["name"] == "adapter"
