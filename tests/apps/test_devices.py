"""`phirt devices`: what is there, what a bundle would use and why, what to install; and providers by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phirt.errors import ConfigError, ProviderError
from phirt.runtime import offers, plugins
from phirt.runtime.placement import Placement
from phirt.runtime.plugins import Plugin, PluginDevice
from phirt_apps import models
from phirt_apps.answer import _placed
from phirt_apps.cli import app

QNN, DML, CPU = "QNNExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed", lambda: ())
    monkeypatch.setattr(plugins, "built_in", lambda: (CPU,))


@pytest.fixture
def with_qnn(monkeypatch: pytest.MonkeyPatch) -> list[PluginDevice]:
    """Qualcomm's package is installed, and finds what a test puts into the list."""
    found: list[PluginDevice] = []
    row = Plugin(QNN, "onnxruntime_qnn", "onnxruntime-qnn", ("NPU", "CPU"))
    monkeypatch.setattr(plugins, "installed", lambda: (row,))
    monkeypatch.setattr(plugins, "built_in", lambda: (CPU,))
    monkeypatch.setattr(plugins, "devices_of", lambda plugin: tuple(found))
    return found


def by_provider(platform: str = "linux") -> dict[str, offers.Offer]:
    return {one.provider: one for one in offers.offers(platform)}


def test_what_is_missing_comes_with_the_line_that_installs_it(nothing_installed) -> None:
    found = by_provider()
    assert found[QNN].install == "pip install onnxruntime-qnn" and not found[QNN].usable
    assert found["WebGpuExecutionProvider"].install == "pip install onnxruntime-ep-webgpu"
    assert found["OpenVINOExecutionProvider"].install == "pip install onnxruntime-ep-openvino"
    taking = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    assert found["CUDAExecutionProvider"].install == taking
    assert (found[DML].state, found[DML].install) == ("not for this system (linux)", None)
    assert by_provider("win32")[DML].install is not None
    assert found[CPU].usable


@pytest.mark.parametrize(
    ("kind", "said"),
    [("NPU", "NPU (Qualcomm)"), ("CPU", "emulator of the NPU, on the CPU")],
)
def test_devices_of_a_plugin_are_named(with_qnn, kind: str, said: str) -> None:
    with_qnn.append(PluginDevice(kind, "Qualcomm", {}, None))
    assert by_provider()[QNN].devices == (said,)


def test_a_plugin_without_a_device_is_not_usable_and_says_so(with_qnn) -> None:
    assert by_provider()[QNN].state == "installed, and finds no device here"
    assert not by_provider()[QNN].usable


def test_a_plugin_that_does_not_load_says_why(with_qnn, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plugin: Plugin) -> None:
        raise ProviderError("onnxruntime-qnn cannot be used with onnxruntime 1.0: too old")

    monkeypatch.setattr(plugins, "devices_of", fails)
    assert by_provider()[QNN].state.endswith("too old") and not by_provider()[QNN].usable


def test_the_table_and_the_object_say_the_same(nothing_installed) -> None:
    shown = CliRunner().invoke(app, ["devices"]).stdout
    assert "used without --provider: CPUExecutionProvider" in shown
    assert "for QNNExecutionProvider: pip install onnxruntime-qnn" in shown or sys.platform == "darwin"
    told = json.loads(CliRunner().invoke(app, ["devices", "--json"]).stdout)
    assert told["used"] == [CPU] and told["bundle"]["name"] == "nano"
    graphs = {one["provider"]: one for one in told["bundle"]["graphs"]}
    assert graphs[CPU] == {"provider": CPU, "variant": "cpu", "runs": True, "reason": "made for it"}
    assert "no graphs for QNNExecutionProvider" in graphs[QNN]["reason"] and not graphs[QNN]["runs"]
    assert {one["provider"] for one in told["offers"]} == set(graphs)


def test_a_bundles_variant_is_named_with_its_window(with_qnn, tmp_path: Path) -> None:
    import dataclasses

    from phirt.bundle.files import load_manifest
    from phirt.bundle.manifest import StaticShapes, Variant
    from phirt.model import embedded_bundle
    from phirt_apps.commands.devices import _choice

    manifest = load_manifest(embedded_bundle())
    variant = Variant((QNN,), manifest.graphs, static=StaticShapes(32, 512))
    with_variant = dataclasses.replace(manifest, variants={"qnn": variant})
    offer = dataclasses.replace(by_provider()[QNN], usable=True)
    choice = _choice(with_variant, offer)
    assert (choice["variant"], choice["runs"]) == ("qnn", True)
    assert choice["reason"] == "made for it, a window of 512 positions"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qnn", "qnn"),
        ("qnn:soc_model=57", ("qnn", {"soc_model": "57"})),
        ("qnn:soc_model=57, htp_arch = 75", ("qnn", {"soc_model": "57", "htp_arch": "75"})),
        ("cuda:path=a=b", ("cuda", {"path": "a=b"})),
    ],
)
def test_a_provider_is_named_with_options_of_its_own(text: str, expected: object) -> None:
    assert models._provider(text) == expected


@pytest.mark.parametrize("text", ["qnn:", "qnn:soc", "qnn:=1"])
def test_an_option_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="accepted: NAME, or NAME:KEY=VALUE"):
        models._provider(text)


def test_stats_say_which_nodes_ran_where() -> None:
    assert _placed({}) == "all on the CPU"
    mixed = Placement({QNN: {"MatMul": 3, "Add": 2}, CPU: {"Gather": 1}})
    assert _placed({"decode": mixed}) == f"decode: 5 on {QNN}, 1 on {CPU} (Gather)"


def test_a_provider_that_is_not_there_is_an_error_and_no_fall_back() -> None:
    result = CliRunner().invoke(app, ["chat", "--provider", "rocm", "Hello."])
    assert result.exit_code == 1 and "rocm is not available here" in result.stderr
