"""Execution providers that come as libraries of their own beside onnxruntime: which are installed, their
registration, and the devices that they offer.

Knows onnxruntime's interface for them and the Python packages that bring one. Knows nothing of graphs, or of
providers that are built into onnxruntime. Another plug-in is another row of PLUGINS.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from phirt.errors import ProviderError, first_line
from phirt.runtime.ort import ort


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A provider by onnxruntime's name, the module that brings its library, and the distribution of that.

    `kinds` are the kinds of devices that it is used on, the one to take first in front.
    """

    provider: str
    module: str
    distribution: str
    kinds: tuple[str, ...]


PLUGINS = (
    # Without the chip its library emulates it, and says then that its device is the CPU.
    Plugin("QNNExecutionProvider", "onnxruntime_qnn", "onnxruntime-qnn", ("NPU", "CPU")),
    Plugin(
        "OpenVINOExecutionProvider", "onnxruntime_ep_openvino", "onnxruntime-ep-openvino",
        ("NPU", "GPU", "CPU"),
    ),
    Plugin("WebGpuExecutionProvider", "onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu", ("GPU",)),
)  # fmt: skip

# Snapdragon 8 Gen 3.
_EMULATED = {"htp_arch": "75", "soc_model": "57"}
_LOCK = threading.Lock()
_registered: set[str] = set()


@dataclasses.dataclass(frozen=True)
class PluginDevice:
    """What a plug-in runs on: "NPU", "GPU" or "CPU", whose it is, what else the plug-in says of it."""

    kind: str
    vendor: str
    description: Mapping[str, str]
    handle: Any = dataclasses.field(compare=False, repr=False)


def installed() -> tuple[Plugin, ...]:
    """The plug-ins whose packages are there, but for providers that onnxruntime itself has built in."""
    there = built_in()
    return tuple(
        one
        for one in PLUGINS
        if one.provider not in there and importlib.util.find_spec(one.module) is not None
    )


def built_in() -> tuple[str, ...]:
    """The providers that onnxruntime has without plug-ins, in its order of preference."""
    # It lists those of registered libraries, too.
    return tuple(name for name in ort.get_available_providers() if name not in _registered)


def plugin_of(provider: str) -> Plugin | None:
    """The installed plug-in that brings a provider; None where there is none."""
    return next((one for one in installed() if one.provider == provider), None)


def devices_of(plugin: Plugin) -> tuple[PluginDevice, ...]:
    """The devices that a plug-in offers, those to be preferred first. Its library is loaded and stays.

    Raises:
        ProviderError: the library cannot be loaded, or does not fit this onnxruntime.
    """
    with _LOCK:
        found = _register(plugin, plugin.provider)
    return tuple(sorted(found, key=lambda one: plugin.kinds.index(one.kind)))


def require_devices(plugin: Plugin, options: Mapping[str, str]) -> tuple[PluginDevice, ...]:
    """Those devices that a session is opened on: the first kind there is, or, with the option `device`, that
    kind. Raises ProviderError.
    """
    wanted = options.get("device", "").upper()
    offered = devices_of(plugin)
    kinds = sorted({one.kind for one in offered})
    if wanted and wanted not in kinds:
        raise ProviderError(
            f"{plugin.provider} offers no {wanted} here, only: {', '.join(kinds) or 'nothing'}; "
            "leave its option 'device' out"
        )
    if not offered:
        raise ProviderError(
            f"{plugin.provider} finds no device here that it could use; 'phirt devices' lists what there is"
        )
    kind = wanted or offered[0].kind
    return tuple(one for one in offered if one.kind == kind)


def provider_options(plugin: Plugin, options: Mapping[str, str], kind: str) -> dict[str, str]:
    """A user's options as the library takes them, with those that it cannot do without on a device of this
    kind.
    """
    taken = {key: value for key, value in options.items() if key != "device"}
    if plugin.provider != "QNNExecutionProvider":
        return taken
    module = importlib.import_module(plugin.module)
    defaults = {
        "backend_path": str(module.get_qnn_htp_path()),
        # A graph is prepared once and run often.
        "htp_graph_finalization_optimization_mode": "3",
        # Else what a graph is given is put into whole numbers on the CPU.
        "offload_graph_io_quantization": "0",
    }
    if kind == "CPU":  # the emulator has the memory of the chip that it is told to be, or next to none
        defaults |= _EMULATED
    return defaults | taken


def _register(plugin: Plugin, name: str) -> Sequence[PluginDevice]:
    """The devices of a library that is registered under a name, which is done once a process."""
    if name not in _registered:
        try:
            library = importlib.import_module(plugin.module).get_library_path()
            ort.register_execution_provider_library(name, str(library))
        except Exception as error:  # onnxruntime's types derive from Exception alone
            raise ProviderError(
                f"{plugin.distribution} cannot be used with onnxruntime {ort.__version__}: "
                f"{first_line(error)}; update it with 'pip install -U {plugin.distribution}', or choose "
                f"another provider"
            ) from error
        _registered.add(name)
    return [
        PluginDevice(one.device.type.name, one.device.vendor, dict(one.ep_metadata), one)
        for one in ort.get_ep_devices()
        if one.ep_name == plugin.provider and one.device.type.name in plugin.kinds
    ]
