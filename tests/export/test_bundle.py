"""Bundles on disk: the manifest, the declared inputs, atomic replacement, refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from small_models import DecoderRunner, config, random_model, save_checkpoint, session

from phirt.bundle.files import load_manifest, verify_bundle
from phirt.bundle.manifest import Rule
from phirt.errors import BundleError, ConfigError
from phirt_export import encoders
from phirt_export.bundle import copy_documents
from phirt_export.checkpoint import expected_shapes
from phirt_export.exporter import export_bundle

DTYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def test_the_runtime_accepts_the_manifest_and_every_checksum(exported):
    manifest = load_manifest(exported.bundle)
    assert {detail for _, detail in verify_bundle(exported.bundle)} == {"ok"}
    assert {p.name for p in exported.bundle.iterdir()} == {*manifest.files, "manifest.json"}
    decoder, rope = exported.model.config.decoder, exported.model.config.decoder.rope
    assert manifest.geometry.num_layers == decoder.num_layers
    assert manifest.geometry.context == rope.context
    assert manifest.geometry.rope.long_factor == rope.long_factor
    assert manifest.geometry.has_long_regime == rope.has_long_regime
    assert manifest.name == "checkpoint"
    assert {name: adapter.id for name, adapter in manifest.adapters.items()} == {"vision": 1, "speech": 2}
    assert manifest.rules == (
        Rule(("image",), "vision", {"speech": "vision"}),
        Rule(("audio",), "speech", {"speech": "speech"}),
        Rule((), None, {}),
    )


@pytest.mark.parametrize("part", ["decoder", "vision", "speech"])
def test_the_manifest_lists_what_the_graphs_take_and_give(exported, part):
    spec = load_manifest(exported.bundle).graphs[part]
    graph = session(exported.bundle / spec.file)
    for listed, actual in ((spec.inputs, graph.get_inputs()), (spec.outputs, graph.get_outputs())):
        assert [(t.name, t.dtype, list(t.shape)) for t in listed] == [
            (t.name, DTYPES[t.type], t.shape) for t in actual
        ]


def test_decoder_inputs_are_those_of_the_contract(plain):
    names = [t.name for t in load_manifest(plain.bundle).graphs["decoder"].inputs]
    fixed = ["input_ids", "media_features", "route", "num_logits", "seqlens_k", "total_sequence_length"]
    caches = [f"past_key_values.{i}.{part}" for i in range(3) for part in ("key", "value")]
    assert names == fixed + caches


def test_every_tensor_of_the_checkpoint_is_exported_and_reported(plain, tmp_path):
    seen = []
    export_bundle(plain.checkpoint, tmp_path / "b", progress=seen.append, bits=4, method="rtn")
    shapes = expected_shapes(plain.model.config)
    first = seen[0]
    assert (first.tensor, first.tensors) == ("opening the checkpoint", 0)
    seen = [step for step in seen if step.tensors]  # the others announce what is not counted in weights
    assert {step.tensor for step in seen} == set(shapes)
    assert sorted({step.begun for step in seen}) == list(range(1, len(shapes) + 1))
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    weights = sum(np.prod(shape) for shape in shapes.values())
    last = seen[-1]
    assert (last.tensors, last.done, last.weights, last.kept) == (len(shapes), weights, weights, 0)


def test_exports_are_reproducible(plain, tmp_path):
    bundles = [export_bundle(plain.checkpoint, tmp_path / name, bits=4, method="rtn") for name in ("a", "b")]
    first, second = ((bundle / "manifest.json").read_bytes() for bundle in bundles)
    assert first == second


def test_a_text_only_model_becomes_a_bundle_without_encoders(tmp_path):
    model = random_model(dataclasses.replace(config(adapters=()), vision=None, audio=None))
    bundle = export_bundle(
        save_checkpoint(model, tmp_path / "c"),
        tmp_path / "b",
        name="text",
        description="d",
        bits=4,
        method="rtn",
    )
    manifest = load_manifest(bundle)
    assert (set(manifest.graphs), manifest.rules) == ({"decoder", "decoder_lora"}, (Rule((), None, {}),))
    assert (manifest.name, manifest.description, manifest.encoders) == ("text", "d", {})
    graph = session(bundle / "decoder.onnx")
    assert {"route", "num_logits"} <= {i.name for i in graph.get_inputs()}
    runner = DecoderRunner(graph, model.config.decoder)
    assert np.isfinite(runner.run([5, 6, 7], num_logits=1)).all()


def test_an_existing_bundle_is_replaced_and_nothing_is_left_beside_it(plain, tmp_path):
    output = tmp_path / "b"
    export_bundle(plain.checkpoint, output, bits=4, method="rtn")
    (plain.checkpoint / "MODEL_CARD.md").write_text("card")
    try:
        export_bundle(plain.checkpoint, output, bits=8, method="rtn")
    finally:
        (plain.checkpoint / "MODEL_CARD.md").unlink()
    assert load_manifest(output).quantization["bits"] == 8
    assert "MODEL_CARD.md" in load_manifest(output).files
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_card_and_the_terms_of_a_checkpoint_go_along(tmp_path):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "bundle"
    taken = {"MODEL_CARD.md", "LICENSE", "License.txt", "LICENCE-data", "NOTICE", "notice.md", "COPYING"}
    other = {"README.md", "LICENSES.tar.gz ", "licensee.py", "NOTICED", "model.safetensors"}
    (checkpoint / "NOTICE.d").mkdir(parents=True)
    folder.mkdir()
    for name in taken | other:
        (checkpoint / name).write_text(name)
    (checkpoint / "LICENSE.big").write_bytes(bytes((1 << 20) + 1))
    copy_documents(checkpoint, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: name for name in taken}
    copy_documents(checkpoint / "LICENSE", folder)  # a checkpoint that is a file


def test_a_failed_export_leaves_the_former_bundle(plain, tmp_path, monkeypatch):
    output = export_bundle(plain.checkpoint, tmp_path / "b", bits=4, method="rtn")
    before = (output / "manifest.json").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encoders, "build_speech", full)
        with pytest.raises(BundleError, match="No space left"):
            export_bundle(plain.checkpoint, output, bits=8, method="rtn")
    assert (output / "manifest.json").read_bytes() == before
    export_bundle(plain.checkpoint, output, bits=4, method="rtn")
    assert (output / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_is_no_bundle_is_not_overwritten(plain, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not a bundle"):
        export_bundle(plain.checkpoint, tmp_path, bits=4, method="rtn")
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "a web app"}))
    with pytest.raises(ConfigError, match="not a bundle"):
        export_bundle(plain.checkpoint, tmp_path, bits=4, method="rtn")
    with pytest.raises(ConfigError, match="not a folder"):
        export_bundle(plain.checkpoint, tmp_path / "thesis.txt", bits=4, method="rtn")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 16}, "4, 6, 8, 32"),
        ({"bits": 3}, "4, 6, 8, 32"),
        ({"adapter_bits": 5}, "4, 6, 8, 32"),
        ({"block_size": 48}, "power of two"),
        ({"block_size": 0}, "power of two"),
        ({"method": "awq"}, "rtn, mse, gptq"),
        ({"method": "gptq"}, "two tokens"),
        ({"targets": ("toaster",)}, "cpu"),
        ({"targets": ()}, "cpu"),
    ],
)
def test_unsupported_settings_name_what_is_accepted(plain, tmp_path, options, named):
    with pytest.raises(ConfigError, match=named):
        export_bundle(plain.checkpoint, tmp_path / "b", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_a_tokenizer_is_refused_before_any_work(plain, tmp_path):
    model = plain.model
    checkpoint = save_checkpoint(model, tmp_path / "c")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        export_bundle(checkpoint, tmp_path / "b", bits=4, method="rtn")
    assert not (tmp_path / "b").exists()


def test_a_tokenizer_that_no_bundle_opens_with_is_refused_before_any_work(plain, tmp_path):
    checkpoint = save_checkpoint(plain.model, tmp_path / "c")
    (checkpoint / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}', "utf-8")
    with pytest.raises(BundleError, match="accepted are BPE models"):
        export_bundle(checkpoint, tmp_path / "b", bits=4, method="rtn")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_rotary_width_that_the_operator_refuses_is_named(tmp_path):
    model_config = config()
    rope = dataclasses.replace(
        model_config.decoder.rope, rotary_dim=24, short_factor=(1.0,) * 12, long_factor=(1.0,) * 12
    )
    decoder = dataclasses.replace(model_config.decoder, rope=rope)
    model = random_model(dataclasses.replace(model_config, decoder=decoder))
    with pytest.raises(ConfigError, match="multiple of 16"):
        export_bundle(save_checkpoint(model, tmp_path / "c"), tmp_path / "b", bits=4, method="rtn")
