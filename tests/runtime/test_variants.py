"""Bundles with graphs for several kinds of machines: which of them a provider runs, and what is refused."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from tiny_bundle import write_bundle

import phirt
from phirt.bundle.files import load_manifest
from phirt.bundle.variants import for_provider, variant_for
from phirt.errors import BundleError, ProviderError
from phirt.runtime import plugins
from phirt.runtime.device import Device, devices
from phirt.runtime.plugins import Plugin

QNN, CUDA, CPU = "QNNExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"


def changed(folder: Path, **fields) -> Path:
    """The bundle with other fields in its manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """A bundle whose own graphs serve as variants, too: for CUDA, and for QNN with and without options."""
    folder = write_bundle(tmp_path)
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]

    def of(provider: str, **more) -> dict:
        return {"providers": [provider], "graphs": graphs, **more}

    variants = {
        "cuda": of(CUDA),
        "qnn_v75": of(QNN, options={"soc_model": "57"}),
        "qnn": of(QNN),
    }
    return changed(folder, variants=variants)


@pytest.mark.parametrize(
    ("provider", "options", "expected"),
    [
        (CPU, {}, None),
        (CUDA, {"device_id": "0"}, "cuda"),
        (QNN, {}, "qnn"),
        (QNN, {"soc_model": "57", "htp_arch": "75"}, "qnn_v75"),
        (QNN, {"soc_model": "60"}, "qnn"),
        ("DmlExecutionProvider", {}, None),
    ],
)
def test_a_provider_gets_the_variant_that_was_made_for_it(varied: Path, provider, options, expected) -> None:
    manifest = load_manifest(varied)
    assert variant_for(manifest, provider, options) == expected
    chosen = for_provider(manifest, provider, options)
    assert chosen.variant == expected
    assert chosen.graphs == manifest.graphs and chosen.fingerprint == manifest.fingerprint


def test_a_bundle_without_graphs_for_a_provider_is_refused_with_the_remedy(varied: Path) -> None:
    alone = load_manifest(changed(varied, variants={}))
    with pytest.raises(
        BundleError, match=r"no graphs for QNNExecutionProvider, only for: cpu; .*--target qnn"
    ):
        for_provider(alone, QNN)


def test_a_bundle_may_have_variants_only(varied: Path) -> None:
    variants = json.loads((varied / "manifest.json").read_text())["variants"]
    manifest = load_manifest(changed(varied, graphs={}, variants={"cuda": variants["cuda"]}))
    assert for_provider(manifest, CUDA).graphs
    with pytest.raises(
        BundleError,
        match=r"CPUExecutionProvider, only for: cuda; .*phirt export CHECKPOINT -o FOLDER --target cpu",
    ):
        phirt.load(varied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda graphs: {"graphs": {}}, "expected"),
        (lambda graphs: {"graphs": {"vision": graphs["vision"]}}, r"\['cuda'\]: 'graphs' has no 'decoder'"),
        (
            lambda graphs: {"graphs": graphs, "static": {"prefill": 8, "window": 64}},
            r"variants\['cuda'\]: 'graphs' has no 'embed'",
        ),
        (
            lambda graphs: {"graphs": graphs, "encoders": {"smell": None}},
            "'encoders'",
        ),
        (
            lambda graphs: {"graphs": graphs | {"decoder": graphs["decoder"] | {"file": "other.onnx"}}},
            "'other.onnx' is used but not listed",
        ),
    ],
)  # fmt: skip
def test_variants_are_checked_as_graphs_are(varied: Path, change, said) -> None:
    document = json.loads((varied / "manifest.json").read_text())
    variant = {"providers": [CUDA], **change(document["graphs"])}
    with pytest.raises(BundleError, match=said):
        load_manifest(changed(varied, variants={"cuda": variant}))


def test_manifests_keep_their_variants_when_they_are_written(varied: Path) -> None:
    from phirt.bundle.document import manifest_bytes, parse_manifest

    manifest = load_manifest(varied)
    again = parse_manifest(manifest_bytes(manifest), varied)
    assert again.variants == manifest.variants and list(again.variants) == ["cuda", "qnn_v75", "qnn"]


@pytest.fixture
def plugged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A package that brings a provider, with a library that is none."""
    library = tmp_path / "libnone.so"
    library.write_bytes(b"no library")
    module = types.ModuleType("made_up_plugin")
    module.__spec__ = types.SimpleNamespace(name="made_up_plugin")  # type: ignore[assignment]  # find_spec wants one
    module.get_library_path = lambda: str(library)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_plugin", module)
    row = Plugin("MadeUpExecutionProvider", "made_up_plugin", "onnxruntime-made-up", ("NPU",))
    monkeypatch.setattr(plugins, "PLUGINS", (row,))
    return row


def test_an_installed_plugin_is_a_provider_that_can_be_named(plugged_in) -> None:
    assert devices()[0] == plugged_in.provider
    assert Device.named("madeup").provider == plugged_in.provider


def test_a_plugin_whose_library_does_not_load_is_an_error_and_no_fall_back(
    plugged_in, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with pytest.raises(
        ProviderError, match=r"onnxruntime-made-up cannot be used with onnxruntime .*pip install -U"
    ):
        phirt.load(write_bundle(bundle), providers="madeup")


def test_without_a_device_of_its_kind_a_plugin_is_an_error(plugged_in, monkeypatch) -> None:
    monkeypatch.setattr(plugins, "_register", lambda plugin, name: [])
    with pytest.raises(ProviderError, match="finds no device here"):
        plugins.require_devices(plugged_in, {})


def test_a_plugin_is_opened_on_its_best_device_unless_another_is_named(plugged_in, monkeypatch) -> None:
    found = [plugins.PluginDevice(kind, "somebody", {}, None) for kind in ("CPU", "NPU", "CPU")]
    monkeypatch.setattr(plugins, "_register", lambda plugin, name: found)
    row = Plugin("MadeUpExecutionProvider", "made_up_plugin", "onnxruntime-made-up", ("NPU", "CPU"))
    assert [one.kind for one in plugins.require_devices(row, {})] == ["NPU"]
    assert [one.kind for one in plugins.require_devices(row, {"device": "cpu"})] == ["CPU", "CPU"]
    with pytest.raises(ProviderError, match="offers no GPU here, only: CPU, NPU"):
        plugins.require_devices(row, {"device": "gpu"})
    assert plugins.provider_options(row, {"device": "cpu", "a": "b"}, "CPU") == {"a": "b"}


def test_a_conversation_goes_on_with_another_variant_but_its_cache_does_not(
    varied: Path, tmp_path: Path
) -> None:
    """What was cached by other graphs is no cache of these."""
    path = tmp_path / "held.phirt"
    with phirt.load(varied) as model:
        chat = model.chat()
        chat.send("Hello.", max_new_tokens=2).text()
        chat.save(path)
        assert model.load_chat(path).generator.pool.engines()
    with phirt.load(varied) as model:
        object.__setattr__(model.manifest, "variant", "cuda")
        again = model.load_chat(path)
        assert [message.role for message in again.messages][:1] == ["user"]
        assert not model.generator.pool.engines()
