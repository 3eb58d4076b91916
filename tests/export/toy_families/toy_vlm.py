"""A family that the tests add: a Llama decoder with SigLIP-style eyes and Whisper-style ears of one layer.

This file, the torch modules in it and nothing else is what adding a family with encoders of known kinds
takes.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phirt.bundle.manifest import EncoderSpec
from phirt.encoders.fixed_image import FixedImageConstants
from phirt.encoders.whisper_audio import WhisperConstants
from phirt.fields import write_dataclass
from phirt_export.encoders import EncoderPlan
from phirt_export.families import llama
from phirt_export.graphs.encoder import EncoderParts
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.published.layout import Layout, Part, Published

SIZE, PATCH, WIDTH, MELS = 56, 14, 24, 80
PICTURE = FixedImageConstants(SIZE, (SIZE // PATCH) ** 2, (0.5,) * 3, (0.5,) * 3)
SOUND = WhisperConstants(MELS, 40, "dropped")


class Eyes(nn.Module):
    """A patch convolution and a projector."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.projector = nn.Linear(WIDTH, hidden)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[1, 3, size, size] to [tokens, hidden]."""
        return self.projector(F.gelu(self.patches(pixel_values)[0].flatten(1).T))


class Ears(nn.Module):
    """Two strided convolutions and a projector."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(MELS, WIDTH, 8, 8)
        self.second = nn.Conv1d(WIDTH, WIDTH, 5, 5)
        self.projector = nn.Linear(WIDTH, hidden)

    def forward(self, input_features: Tensor) -> Tensor:
        """[1, mels, 3000] to [75, hidden]."""
        return self.projector(F.gelu(self.second(F.gelu(self.first(input_features))))[0].T)


def read(published: Published) -> Layout:
    """A Llama checkpoint with the tensors of `eyes.` and `ears.` beside it."""
    text, config = llama.read(published), published.config
    image, audio = config.integer("image_token_id", 0), config.integer("audio_token_id", 0)
    tokens = dataclasses.replace(text.config.tokens, image=image, audio=audio)
    hidden = text.config.decoder.hidden_size
    picture = EncoderSpec("fixed_image", "image", "eyes", image, ("eyes",), write_dataclass(PICTURE))
    sound = EncoderSpec("whisper_audio", "audio", "ears", audio, ("ears",), write_dataclass(SOUND))
    return Layout(
        dataclasses.replace(text.config, tokens=tokens),
        lambda name: (Part(name),) if name.startswith(("eyes.", "ears.")) else text.parts(name),
        text.ignores,
        encoders=(
            EncoderPlan("eyes", picture, _build_eyes, _shapes("eyes", Eyes(hidden))),
            EncoderPlan("ears", sound, _build_ears, _shapes("ears", Ears(hidden))),
        ),
    )


def _shapes(prefix: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}": tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _build_eyes(store: WeightStore, hidden: int, form: WeightFormat) -> None:
    g = store.g
    pixels = g.input("pixel_values", "float32", [1, 3, SIZE, SIZE])
    maps = _conv(store, pixels, "eyes.patches", [PATCH, PATCH])
    rows = g.Transpose(g.Reshape(maps, g.constant([WIDTH, -1], "flat", "int64")), perm=[1, 0])
    features = EncoderParts(store, form, "eyes").linear(g.Gelu(rows), "projector", "projector")
    g.output(features, "image_features", "float32", [PICTURE.tokens, hidden])


def _build_ears(store: WeightStore, hidden: int, form: WeightFormat) -> None:
    g = store.g
    mels = g.input("input_features", "float32", [1, MELS, 3000])
    x = g.Gelu(_conv(store, g.Gelu(_conv(store, mels, "ears.first", [8])), "ears.second", [5]))
    rows = g.Transpose(g.Squeeze(x, g.constant([0], "batch", "int64")), perm=[1, 0])
    features = EncoderParts(store, form, "ears").linear(rows, "projector", "projector")
    g.output(features, "audio_features", "float32", [SOUND.tokens_per_window, hidden])


def _conv(store: WeightStore, x: ir.Value, name: str, size: list[int]) -> ir.Value:
    weight = store.g.constant(store.source.tensor(f"{name}.weight"), f"{name}.weight")
    bias = store.g.constant(store.source.tensor(f"{name}.bias"), f"{name}.bias")
    return store.g.Conv(x, weight, bias, kernel_shape=size, strides=size, name=name)


def random_modules(hidden: int) -> dict[str, nn.Module]:
    """Eyes and ears with random weights, the same every time."""
    torch.manual_seed(5)
    return {"eyes": Eyes(hidden).eval(), "ears": Ears(hidden).eval()}
