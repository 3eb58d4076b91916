"""Sessions: providers, damaged graphs, lazily opened encoders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_manifest

import phirt
from phirt.bundle.files import load_manifest
from phirt.errors import BundleError, ConfigError, ProviderError
from phirt.runtime.device import Device
from phirt.runtime.session import LazySession, SessionConfig

ONE_THREAD = SessionConfig(Device.cpu(1))


def rewrite(folder, edit=lambda document: None) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    edit(document)
    write_manifest(folder, document)


def test_devices_lists_the_cpu():
    assert "CPUExecutionProvider" in phirt.devices()


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", " cpu "])
def test_providers_are_found_by_short_names(name):
    assert Device.named([name]) == Device.named(name) == Device.cpu()


def test_repeated_providers_count_once():
    assert Device.named(["cpu", "CPUExecutionProvider"]).providers == (("CPUExecutionProvider", {}),)


def test_a_named_provider_that_is_absent_is_an_error_with_the_list(bundle):
    with pytest.raises(
        ProviderError, match=r"frobnicator is not available here; available: .*CPUExecutionProvider"
    ):
        phirt.load(bundle, providers=["frobnicator"])
    with pytest.raises(ProviderError, match="no provider was named"):
        phirt.load(bundle, providers=[])


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, 5000, "2"])
def test_refuses_senseless_threads(bundle, threads):
    with pytest.raises(ConfigError, match="threads is"):
        phirt.load(bundle, threads=threads)


def test_a_damaged_graph_is_a_bundle_error(own_bundle):
    path = own_bundle / "decoder.onnx"
    path.write_bytes(b"\x0f" * path.stat().st_size)
    with pytest.raises(BundleError, match=r"decoder\.onnx is no graph that can be read: wire type 7"):
        phirt.load(own_bundle)


def test_weights_that_are_too_short_are_a_bundle_error(own_bundle):
    path = own_bundle / "decoder.data"
    path.write_bytes(path.read_bytes()[:-64])
    rewrite(own_bundle)  # a manifest that agrees with the short file: only the graph can tell
    with pytest.raises(BundleError, match=r"reaches past the end of decoder\.data; run 'phirt verify'"):
        phirt.load(own_bundle)


def test_altered_weights_are_found_by_verify(own_bundle):
    path = own_bundle / "decoder.data"
    data = bytearray(path.read_bytes())
    data[7] ^= 0x40
    path.write_bytes(data)
    phirt.load(own_bundle, threads=1)
    with pytest.raises(BundleError, match=r"damaged: decoder\.data: sha256"):
        phirt.load(own_bundle, threads=1, verify=True)


def test_the_graph_must_have_the_promised_inputs(own_bundle):
    def halve(document):
        for tensor in document["graphs"]["decoder"]["inputs"]:
            if tensor["name"].startswith("past_key_values."):
                tensor["dtype"] = "int8"

    rewrite(own_bundle, halve)
    with pytest.raises(BundleError, match=r"inputs differ from the manifest.*past_key_values\."):
        phirt.load(own_bundle)


def test_the_graph_must_have_the_promised_outputs(own_bundle):
    chances = {"name": "chances", "dtype": "float32", "shape": [1]}
    rewrite(own_bundle, lambda d: d["graphs"]["decoder"]["outputs"].append(chances))
    with pytest.raises(BundleError, match="outputs \\['chances'\\] are missing"):
        phirt.load(own_bundle)


def test_encoders_open_on_first_use_and_can_be_released(bundle):
    session = LazySession(load_manifest(bundle), "speech", ONE_THREAD)
    feed = {"audio_embeds": np.ones((1, 9, 80), np.float32), "projector": np.zeros(1, np.int64)}
    assert not session.is_open
    first = session.run(feed)[0]
    assert first.shape == (2, 32)
    assert session.is_open
    session.release()
    assert not session.is_open
    np.testing.assert_array_equal(session.run(feed)[0], first)


def test_a_run_that_fails_is_a_bundle_error(bundle):
    session = LazySession(load_manifest(bundle), "speech", ONE_THREAD)
    with pytest.raises(BundleError, match="the speech graph failed while running"):
        session.run({"audio_embeds": np.ones((1, 9, 7), np.float32), "projector": np.zeros(1, np.int64)})


@pytest.mark.skipif(os.name != "posix", reason="hard links")
def test_weights_that_are_hard_links_are_named_and_not_called_damaged(nano, tmp_path):
    """As uv installs packages; onnxruntime refuses such weights in the branches of a graph."""
    folder = Path(shutil.copytree(nano, tmp_path / "linked"))
    (folder / "decoder.data").unlink()
    shutil.copyfile(nano / "decoder.data", tmp_path / "elsewhere.data")
    os.link(tmp_path / "elsewhere.data", folder / "decoder.data")
    with pytest.raises(BundleError, match=r"its weights are hard links.*--link-mode copy"):
        phirt.load(folder)
    (tmp_path / "elsewhere.data").unlink()
    phirt.load(folder).close()


def test_without_an_embedded_bundle_load_says_so(tmp_path, monkeypatch):
    import importlib.resources

    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(BundleError, match="has no embedded bundle"):
        phirt.load()


def test_no_remote_provider_is_offered():
    assert "AzureExecutionProvider" not in phirt.devices()
    with pytest.raises(ProviderError, match="not available here"):
        phirt.load(providers=["AzureExecutionProvider"])
