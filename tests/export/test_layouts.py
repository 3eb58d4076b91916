"""Published layouts: names, fusions, special ids and templates, and every way in which one can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints.write import TEMPLATE, write_checkpoint
from safetensors.numpy import load_file, save_file

from phirt.bundle import tensor_file
from phirt.errors import ConfigError
from phirt_export.chat_files import read_template
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_export.families import known_families


@pytest.fixture(scope="module")
def written(tmp_path_factory, ranks):
    """One folder a family, in shards where it has many tensors."""
    folder = tmp_path_factory.mktemp("written")
    families = {"phi4mm": 1_000_000, "phi4_multimodal": 1_000_000, "llama-biased": 60_000, "qwen3": 1 << 30}
    return {name: write_checkpoint(folder / name, name, ranks, shard_bytes=s) for name, s in families.items()}


@pytest.fixture
def copied(written, tmp_path):
    """A function that copies a family's folder and changes its config.json."""

    def copy(family, **changes):
        folder = tmp_path / family
        shutil.copytree(written[family], folder)
        edit(folder / "config.json", lambda config: config.update(changes))
        return folder

    return copy


def edit(path, change) -> None:
    """Apply `change` to a JSON file."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def stored(folder) -> dict[str, np.ndarray]:
    """Every tensor of a folder, read by another library; bfloat16 as its upper half of a float32."""
    import torch
    from safetensors import safe_open

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name).to(torch.float32).numpy() for name in file.keys()}  # noqa: SIM118
    return tensors


def test_original_names_are_the_published_ones(written):
    index = json.loads((written["phi4mm"] / "model.safetensors.index.json").read_text())["weight_map"]
    extend = "model.embed_tokens_extend"
    assert {
        "model.layers.1.self_attn.qkv_proj.base_layer.weight",
        "model.layers.1.self_attn.o_proj.lora_A.vision.weight",
        "model.layers.0.mlp.gate_up_proj.lora_B.speech.weight",
        f"{extend}.audio_embed.encoder.encoders.1.feed_forward_in.net.0.linear.weight",
        f"{extend}.audio_embed.encoder.encoders.1.self_attn.linear_out.bias",
        f"{extend}.audio_embed.audio_projection.vision.2.weight",
        f"{extend}.image_embed.img_projection.0.weight",
        f"{extend}.image_embed.glb_GN",
        f"{extend}.image_embed.sub_GN",
    } <= set(index)
    assert "lm_head.weight" not in index and len(set(index.values())) > 1


def test_tensors_are_those_that_another_library_reads(written):
    tensors, opened = stored(written["phi4mm"]), Checkpoint(written["phi4mm"])
    name = "model.layers.1.mlp.down_proj.base_layer.weight"
    np.testing.assert_array_equal(opened.tensor(name), tensors[name])


def test_separate_projections_are_stacked_and_read_in_slabs(written):
    tensors, opened = stored(written["llama-biased"]), Checkpoint(written["llama-biased"])
    layer = "model.layers.1.self_attn"
    for kind in ("weight", "bias"):
        expected = np.concatenate([tensors[f"{layer}.{p}_proj.{kind}"] for p in "qkv"])
        name = f"{layer}.qkv_proj.base_layer.{kind}"
        assert opened.shape(name) == expected.shape
        np.testing.assert_array_equal(opened.tensor(name), expected)
        for start, stop in ((0, 5), (60, 70), (64, 128), (1, 191), (127, 129)):
            np.testing.assert_array_equal(opened.rows(name, start, stop), expected[start:stop])


def test_only_the_asked_rows_are_read(written, monkeypatch):
    opened = Checkpoint(written["llama-biased"])
    read = []
    original = tensor_file.StoredTensor._read
    monkeypatch.setattr(
        tensor_file.StoredTensor, "_read", lambda self, a, b: read.append(b - a) or original(self, a, b)
    )
    opened.rows("model.layers.0.self_attn.qkv_proj.base_layer.weight", 62, 66)
    assert read == [2 * 64 * 2, 2 * 64 * 2]  # two rows of queries and two of keys, 64 bfloat16 each


def test_special_ids_come_from_generation_config_then_config(copied):
    folder = copied("qwen3", eos_token_id=7)
    assert Checkpoint(folder).config.tokens.eos == (356, 335)
    (folder / "generation_config.json").unlink()
    tokens = Checkpoint(folder).config.tokens
    assert (tokens.eos, tokens.pad, tokens.image) == ((7,), 7, None)


def test_a_head_that_the_configuration_does_not_mention_is_told_by_the_tensors(copied):
    assert Checkpoint(copied("qwen3", tie_word_embeddings=None)).config.decoder.tied
    assert not Checkpoint(copied("llama-biased", tie_word_embeddings=None)).config.decoder.tied


def test_templates_are_found_wherever_a_checkpoint_keeps_them(copied):
    folder = copied("qwen3")
    assert read_template(folder) == TEMPLATE
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    edit(folder / "tokenizer_config.json", lambda config: config.update(chat_template=named))
    assert read_template(folder) == "d"
    (folder / "chat_template.jinja").write_text("j")
    assert read_template(folder) == "j"
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"chat_template\.jinja"):
        read_template(folder)


def test_differences_across_shards_and_fusions_are_named_at_once(copied):
    folder = copied("llama-biased")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    lost, bent = "model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"
    for name in (lost, bent):
        path = folder / index[name]
        state = load_file_as_float32(path)
        if name == lost:
            del state[lost]
            state["model.layers.1.self_attn.k_norm.weight"] = np.zeros(16, np.float32)
        else:
            state[bent] = np.zeros((95, 64), np.float32)
        save_file(state, path)
    edit(folder / "model.safetensors.index.json", lambda document: document["weight_map"].pop(lost))
    with pytest.raises(ConfigError) as caught:
        Checkpoint(folder)
    assert f"1 missing: {lost}" in str(caught.value)
    assert "1 unknown: model.layers.1.self_attn.k_norm.weight" in str(caught.value)
    assert f"{bent} is [95, 64], not [96, 64]" in str(caught.value)


def load_file_as_float32(path) -> dict[str, np.ndarray]:
    """A shard's tensors, widened."""
    return {name: array.astype(np.float32) for name, array in load_file(path).items()}


def test_an_unknown_family_is_answered_with_the_known_ones_and_the_remedy(copied):
    with pytest.raises(ConfigError) as caught:
        Checkpoint(copied("qwen3", model_type="gpt_neox"))
    assert all(family in str(caught.value) for family in known_families())
    assert 'pip install "phirt[optimum]" in an environment of its own' in str(caught.value)


@pytest.mark.parametrize("changes", [{"model_type": "gpt_neox"}, {}], ids=["a family", "an embedding model"])
def test_without_optimum_an_export_names_the_extra_in_one_line(copied, tmp_path, monkeypatch, changes):
    folder = copied("qwen3", **changes)
    if not changes:
        (folder / "modules.json").write_text("[]")
    monkeypatch.setattr("phirt_export.optimum_graphs.exporter.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r'pip install "phirt\[optimum\]"') as caught:
        export_bundle(folder, tmp_path / "bundle")
    assert "\n" not in str(caught.value) and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("qwen3", {"num_key_value_heads": None}, r"k_proj\.weight is \[64, 64\], not \[128, 64\]"),
        ("qwen3", {"num_attention_heads": 0}, "num_attention_heads"),
        ("qwen3", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("qwen3", {"hidden_size": "64"}, "hidden_size"),
        ("qwen3", {"rms_norm_eps": None}, "rms_norm_eps"),
        ("qwen3", {"max_position_embeddings": 1 << 41}, "max_position_embeddings"),
        ("qwen3", {"hidden_act": "gelu"}, "'silu'"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"attention_bias": "yes"}, "true or false"),
        ("qwen3", {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "default, dynamic, linear, llama3"),
        ("qwen3", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("qwen3", {"rope_scaling": "yarn"}, "rope_scaling"),
        ("qwen3", {"model_type": 7}, "model_type"),
        (
            "qwen3",
            {"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "no model that can be built",
        ),
        ("phi4mm", {"original_max_position_embeddings": 1}, "original"),
        (
            "phi4mm",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "24 short",
        ),
        ("phi4mm", {"vision_lora": None}, "vision_lora"),
        ("phi4mm", {"sliding_window": -1}, "sliding_window"),
        ("phi4mm", {"vocab_size": 300}, "placeholders"),
        (
            "phi4_multimodal",
            {"audio_config": {"hidden_size": 32, "nemo_conv_channels": 64}},
            "nemo_conv_channels",
        ),
        ("phi4_multimodal", {"vision_config": {"feature_layer": -1}}, "feature_layer"),
        ("phi4_multimodal", {"vision_config": {"image_token_id": 347}}, "two ids"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_configuration_that_cannot_be_built_is_refused_by_name(copied, family, changes, named):
    with pytest.raises(ConfigError, match=named):
        Checkpoint(copied(family, **changes))


@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id", "pad_token_id"])
def test_an_empty_list_of_ids_is_refused(copied, key):
    folder = copied("qwen3")
    edit(folder / "generation_config.json", lambda document: document.update({key: []}))
    with pytest.raises(ConfigError, match=key):
        Checkpoint(folder)


def test_a_layout_default_that_is_left_out_meets_the_tensors(copied):
    # transformers' class says 1000 where the published weights have 500: the table's shape decides.
    folder = copied("phi4_multimodal")
    edit(folder / "config.json", lambda config: config["audio_config"].pop("bias_max_distance"))
    with pytest.raises(ConfigError, match=r"bias_values\.weight is \[40, 2\], not \[2000, 2\]"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("use_rslora", True), ("use_dora", True), ("r", 0), ("rank_pattern", {"o_proj": 4})]
)
def test_adapters_of_another_kind_are_refused(copied, key, value):
    folder = copied("phi4_multimodal")
    edit(folder / "vision-lora" / "adapter_config.json", lambda config: config.update({key: value}))
    with pytest.raises(ConfigError, match=f"'{key}'"):
        Checkpoint(folder)


def test_lost_adapters_and_lost_shards_are_named(copied):
    folder = copied("phi4_multimodal")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.rename(folder / "elsewhere")
    with pytest.raises(ConfigError, match=shard.name):
        Checkpoint(folder)
    (folder / "elsewhere").rename(shard)
    shutil.rmtree(folder / "speech-lora")
    with pytest.raises(ConfigError, match="lacks speech-lora"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../model-00001-of-00002.safetensors"},
        {"a": "/etc/passwd.safetensors"},
        {"a": "model.bin"},
        {"a": "c:model.safetensors"},
        {"a": 7},
        ["a"],
        {str(i): f"{i}.safetensors" for i in range(2000)},
        {"no such tensor": None},
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_index_is_refused(copied, weight_map):
    folder = copied("llama-biased")
    path = folder / "model.safetensors.index.json"
    if weight_map == {"no such tensor": None}:
        weight_map = {"no such tensor": sorted(folder.glob("model-*"))[0].name}
    edit(path, lambda document: document.update(weight_map=weight_map))
    with pytest.raises(ConfigError):
        Checkpoint(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "7", "{", '{"a": NaN}', ""], ids=lambda value: value[:9])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "generation_config.json"])
def test_broken_json_is_refused(copied, name, text):
    folder = copied("llama-biased")
    (folder / name).write_text(text)
    with pytest.raises(ConfigError):
        Checkpoint(folder)


def test_a_deeply_nested_header_is_refused(copied):
    path = copied("qwen3") / "model.safetensors"
    bomb = b"[" * 100_000
    path.write_bytes(len(bomb).to_bytes(8, "little") + bomb)
    with pytest.raises(ConfigError):
        Checkpoint(path.parent)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is measured as Linux tells it")
def test_reading_a_file_once_does_not_keep_it_in_memory(tmp_path):
    rows, columns = 1 << 12, 1 << 14
    header = {"w": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2 * rows * columns)  # 128 MiB without taking them on the disk

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssFile")))

    tensor, before = tensor_file.open_file(path)["w"], resident()
    for start in range(0, rows, 128):
        assert tensor.rows(start, start + 128).shape == (128, columns)
    assert resident() - before < 16 << 10  # kB
