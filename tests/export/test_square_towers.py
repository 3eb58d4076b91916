"""Towers of square photos and of Whisper's kind: the graphs give what the torch modules give, and the rows of
names are the names that the classifiers and the recogniser are sure of.
"""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from small_models import save_talking_checkpoint
from tokenizers import Tokenizer

import phirt
from phirt import GenerationConfig
from phirt.encoders.fixed_image import process
from phirt.encoders.whisper_audio import log_mel
from phirt.errors import ConfigError
from phirt_export.encoders import photo_constants
from phirt_export.exporter import export_bundle
from phirt_export.reference import (
    AdapterConfig,
    DecoderConfig,
    Model,
    ModelConfig,
    PhotoConfig,
    RopeConfig,
    TokenConfig,
    WhisperConfig,
    initialize,
)
from phirt_export.reference.config import CONFIG_NAME, PhotoBlock
from phirt_export.reference.efficientnet import padding

HIDDEN = 32
BLOCKS = (
    PhotoBlock(8, 8, 1, 3),
    PhotoBlock(8, 12, 6, 5, 2),
    PhotoBlock(12, 12, 2, 3),
    PhotoBlock(12, 20, 2, 5, 2),
)
PHOTO = PhotoConfig(
    size=96,
    blocks=BLOCKS,
    channels=24,
    classes=(("cat", "dog", ""), ("sea", "sky")),
    words=2,
    projector_size=16,
)
WHISPER = WhisperConfig(
    num_mels=20, hidden_size=24, num_layers=2, num_heads=2, pieces=("a", "b", " c"), projector_size=16
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A random checkpoint with both towers, in this project's own layout."""
    folder = tmp_path_factory.mktemp("square") / "checkpoint"
    save_talking_checkpoint(folder)
    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    ones = (1.0,) * 8
    decoder = DecoderConfig(2, HIDDEN, 2, 1, 16, 48, vocab, 1e-5, RopeConfig(1e4, 16, 512, 512, ones, ones))
    tokens = TokenConfig(bos=0, eos=(4,), pad=0, image=1, audio=2)
    adapter = AdapterConfig(4, 8.0)
    config = ModelConfig(
        decoder, tokens, None, None, {"vision": adapter, "speech": adapter}, photo=PHOTO, whisper=WHISPER
    )
    model = Model(config)
    initialize(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / CONFIG_NAME).write_text(config.to_json())
    return folder


@pytest.fixture(scope="module")
def torch_model(source) -> Model:
    """The same in torch."""
    from phirt_export.checkpoint import Checkpoint
    from phirt_export.model_weights import load_model

    return load_model(Checkpoint(source))


@pytest.fixture(scope="module", params=[32, 8])
def model(request, source, tmp_path_factory) -> tuple[phirt.Model, int]:
    """A bundle, loaded, and the bits of its encoders."""
    folder = tmp_path_factory.mktemp("bundle") / "b"
    bits = request.param
    bundle = export_bundle(source, folder, bits=32, block_size=16, encoder_bits=bits, adapter_bits=32)
    return phirt.load(bundle, threads=1), bits


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    y, x = np.mgrid[0:60, 0:90]
    return Image.fromarray(np.stack([x * 2, y * 4, x + y], axis=-1).astype(np.uint8))


def sound(seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * 16000)) / 16000
    return (0.4 * np.sin(2 * np.pi * 330 * time) * np.sin(2 * np.pi * time)).astype(np.float32)


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def wav(samples: np.ndarray) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16000, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def features_of(model: phirt.Model, source: bytes, modality: str) -> np.ndarray:
    encoder = model.generator.encoder
    return encoder.features(encoder.prepare(modality, source), model.manifest.rules[0])


def close(found: np.ndarray, expected: torch.Tensor, bits: int) -> None:
    assert found.shape == tuple(expected.shape)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(found, expected, atol=(1e-5 if bits == 32 else 0.05) * max(1.0, scale))


def test_a_photo_becomes_the_rows_of_the_torch_module(model, torch_model, picture):
    loaded, bits = model
    with torch.no_grad():
        pixels = process(picture, photo_constants(PHOTO))
        expected = torch_model.photo_embed(torch.from_numpy(pixels[None]))[0]
    assert PHOTO.grid == 12 and len(expected) == PHOTO.num_tokens == 2 * 2 + 25
    close(features_of(loaded, png(picture), "image"), expected, bits)


@pytest.mark.parametrize(("seconds", "rows"), [(0.05, 1), (1.0, 13), (2.33, 30), (30.5, 382)])
def test_a_recording_becomes_the_rows_of_the_torch_module_and_no_padding_is_computed(
    model, torch_model, seconds, rows
):
    loaded, bits = model
    samples, parts = sound(seconds), []
    for begin in range(0, len(samples), 480000):
        piece = samples[begin : begin + 480000]
        frames = math.ceil(math.ceil(len(piece) / 160) / 8) * 8
        mels = log_mel(piece, 20, frames)
        np.testing.assert_array_equal(mels, log_mel(piece, 20)[:, :frames])
        with torch.no_grad():
            parts.append(torch_model.sound_embed(torch.from_numpy(mels[None]))[0])
    expected = torch.cat(parts)
    assert len(expected) == rows
    if seconds <= 30:
        close(features_of(loaded, wav(samples), "audio"), expected, bits)


def test_a_batch_hears_each_recording_as_alone(torch_model):
    embed = torch_model.sound_embed
    with torch.no_grad():
        short, long = (
            embed.hear(torch.from_numpy(log_mel(sound(s), 20, n)[None])) for s, n in ((0.4, 40), (1, 104))
        )
        stacked = torch.zeros(2, 13, short.shape[2])
        stacked[0, :5], stacked[1] = short[0], long[0]
        inside = torch.arange(13) < torch.tensor([[5], [13]])
        rows = embed.project(stacked, inside)
        torch.testing.assert_close(rows[0, :5], embed.project(short)[0])
        torch.testing.assert_close(rows[1], embed.project(long)[0])


def test_what_the_classifier_is_sure_of_stands_as_its_words(torch_model):
    embed = torch_model.photo_embed
    seen = torch.zeros(1, 26, PHOTO.channels)
    saved = embed.classifiers[0].bias.detach().clone()
    with torch.no_grad():
        embed.classifiers[0].bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
        rows = embed.project(seen)[0]
        embed.classifiers[0].bias.copy_(saved)
        expected = embed.names[0].weight[:, 1].view(2, HIDDEN)
    torch.testing.assert_close(rows[:2], expected)


def test_routes_and_limits_follow_the_towers(model):
    loaded, _ = model
    manifest = loaded.manifest
    kinds = {name: (spec.kind, spec.modality) for name, spec in manifest.encoders.items()}
    assert kinds == {"photo": ("fixed_image", "image"), "sound": ("whisper_audio", "audio")}
    assert [(rule.modalities, rule.adapter) for rule in manifest.rules] == [
        (("image",), "vision"), (("audio",), "speech"), ((), None),
    ]  # fmt: skip
    assert manifest.limits.audio_seconds == 30.0
    short = GenerationConfig(max_new_tokens=3, temperature=0.0)
    chat = loaded.chat()
    assert chat.send("Hear", audio=[wav(sound(1.0))], config=short).result.adapter == "speech"


@pytest.mark.parametrize(
    ("size", "kernel", "step", "expected"),
    [(288, 3, 2, (0, 1)), (36, 5, 2, (1, 2)), (9, 5, 1, (2, 2)), (7, 3, 2, (1, 1))],
)
def test_padding_is_that_of_tensorflow(size, kernel, step, expected):
    assert padding(size, kernel, step) == expected


def test_towers_that_cannot_be_built_are_refused():
    with pytest.raises(ConfigError, match="stands before"):
        dataclasses.replace(PHOTO, blocks=(BLOCKS[0], BLOCKS[2]))
    with pytest.raises(ConfigError, match="less than a window"):
        dataclasses.replace(PHOTO, blocks=(*BLOCKS, *(PhotoBlock(20, 20, 1, 3, 2),) * 3))
