"""What could compute on this machine: every provider that phirt knows, whether it is installed and finds a
device, and else what is to be installed.

Knows packages, platforms and what plug-ins say of their devices. Knows nothing of bundles. Another provider
is another row of _KNOWN.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from phirt.errors import ProviderError
from phirt.runtime import plugins
from phirt.runtime.device import CPU_PROVIDER

# Packages that hold onnxruntime itself: their files would lie over each other.
_IN_PLACE = "pip uninstall -y onnxruntime && pip install {0}"
_BESIDE = "pip install {0}"


@dataclasses.dataclass(frozen=True)
class _Known:
    """A provider, what it is for, where it is to be had and by which package. `platforms` are those of
    `sys.platform`.
    """

    provider: str
    purpose: str
    package: str
    platforms: tuple[str, ...] = ("linux", "win32", "darwin")
    takes_the_place: bool = False

    @property
    def install(self) -> str:
        """The line that installs it."""
        return (_IN_PLACE if self.takes_the_place else _BESIDE).format(self.package)


_KNOWN = (
    _Known("QNNExecutionProvider", "Qualcomm NPUs", "onnxruntime-qnn", ("linux", "win32")),
    _Known(
        "OpenVINOExecutionProvider",
        "Intel NPUs, GPUs and CPUs",
        "onnxruntime-ep-openvino",
        ("linux", "win32"),
    ),
    _Known("CUDAExecutionProvider", "NVIDIA GPUs", "onnxruntime-gpu", ("linux", "win32"), True),
    _Known("DmlExecutionProvider", "Windows GPUs", "onnxruntime-directml", ("win32",), True),
    _Known("WebGpuExecutionProvider", "GPUs with Vulkan, Direct3D 12 or Metal", "onnxruntime-ep-webgpu"),
    _Known("CoreMLExecutionProvider", "Apple's GPU and neural engine", "onnxruntime", ("darwin",)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Offer:
    """One provider: whether it can be named here, with which devices, and why or why not.

    `install` is the line that would install it; None where it is installed, or not for this system.
    """

    provider: str
    purpose: str
    usable: bool
    state: str
    devices: tuple[str, ...] = ()
    install: str | None = None


def offers(platform: str = sys.platform) -> tuple[Offer, ...]:
    """Every provider that phirt knows, the CPU last. Libraries of installed plug-ins are loaded for it."""
    built_in, beside = plugins.built_in(), {one.provider: one for one in plugins.installed()}
    found = []
    for known in _KNOWN:
        if known.provider in beside:
            found.append(_plugged_in(known, beside[known.provider]))
        elif known.provider in built_in:
            found.append(_offer(known, True, "built into this onnxruntime; its driver shows when it is used"))
        elif platform not in known.platforms:
            found.append(_offer(known, False, f"not for this system ({platform})"))
        else:
            found.append(_offer(known, False, "not installed", install=known.install))
    return (*found, Offer(CPU_PROVIDER, "any CPU", True, "always there", ("CPU",)))


def _plugged_in(known: _Known, plugin: plugins.Plugin) -> Offer:
    """What an installed plug-in says of this machine."""
    try:
        devices = plugins.devices_of(plugin)
    except ProviderError as error:
        return _offer(known, False, str(error))
    if not devices:
        return _offer(known, False, "installed, and finds no device here")
    names = tuple(dict.fromkeys(_DESCRIBED.get(known.provider, _described)(one) for one in devices))
    return _offer(known, True, "installed", names)


def _offer(
    known: _Known, usable: bool, state: str, devices: tuple[str, ...] = (), install: str | None = None
) -> Offer:
    return Offer(known.provider, known.purpose, usable, state, devices, install)


def _described(device: plugins.PluginDevice) -> str:
    return f"{device.kind} ({device.vendor})"


def _qnn(device: plugins.PluginDevice) -> str:
    return "emulator of the NPU, on the CPU" if device.kind == "CPU" else _described(device)


_DESCRIBED: dict[str, Callable[[plugins.PluginDevice], str]] = {"QNNExecutionProvider": _qnn}
