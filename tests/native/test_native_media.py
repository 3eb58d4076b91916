"""What the library for apps makes of pictures and recordings, beside phirt's encoders, Pillow and soxr."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest
import soxr
from native_host import run
from PIL import Image

from phirt.bundle.manifest import Limits
from phirt.encoders import fixed_image, phi4mm_audio, phi4mm_image, whisper_audio
from phirt.encoders.encoder import Prepared

LIMITS = Limits(image_pixels=10**8, audio_seconds=1000.0, media_bytes=10**9)
SIZES = [(1, 1), (5, 3), (64, 48), (300, 200), (200, 300), (97, 211), (448, 448), (17, 640), (1024, 31)]


# Its order of both directions is that of this version.
pytestmark = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 rounds in another order"
)


def picture(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Noise over a gradient, with extremes."""
    draw = np.random.default_rng(width * 1000 + height)
    noise = draw.integers(-120, 120, (height, width, 3))
    slope = np.linspace(0, 255, width)[None, :, None]
    return np.clip(slope + noise, 0, 255).astype(np.uint8)


def sound(count: int, rate: int, channels: int = 1) -> npt.NDArray[np.float32]:
    time = np.arange(count) / rate
    draw = np.random.default_rng(count)
    wave = 0.3 * np.sin(2 * np.pi * 220 * time) + 0.2 * np.sin(2 * np.pi * 1900 * time * (1 + 0.1 * time))
    wave = wave + 0.02 * draw.standard_normal(count)
    return np.stack([wave * (1 - 0.2 * channel) for channel in range(channels)], axis=1).astype(np.float32)


def arrays_of(output: bytes, dtypes: dict[str, str]) -> tuple[int, list[dict[str, npt.NDArray[Any]]]]:
    """The number of tokens, and the inputs of each run, as phirt_parts writes them."""
    head, rest = output.split(b"\n", 1)
    tokens, runs = map(int, head.split())
    found: list[dict[str, npt.NDArray[Any]]] = []
    while rest:
        line, rest = rest.split(b"\n", 1)
        name, *shape = line.decode().split()
        array = np.frombuffer(rest, dtypes[name], count=int(np.prod(list(map(int, shape)))))
        rest = rest[array.nbytes :]
        if not found or name in found[-1]:
            found.append({})
        found[-1][name] = array.reshape([int(size) for size in shape])
    assert len(found) == runs
    return tokens, found


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillows_to_the_last_bit(programs: Path, filter_name: str) -> None:
    for width, height in SIZES:
        for to in ((1, 1), (64, 64), (33, 77), (width, 50), (288, height)):
            pixels = picture(width, height)
            wanted = Image.fromarray(pixels).resize(to, Image.Resampling[filter_name.upper()])
            words = ("resize", width, height, *to, filter_name)
            found = run(programs / "phirt_parts", *words, data=pixels.tobytes())
            assert found == wanted.tobytes(), words


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
def test_crops_of_phi4mm(programs: Path, detail: Any) -> None:
    constants = {"crop_size": 64, "patch_size": 8, "pool": 2, "max_crops": 16, "min_side": 3}
    spec = phi4mm_image.cap_crops(phi4mm_image.ImageConstants(**constants), detail)
    dtypes = {
        "pixel_values": "f4", "patch_mask": "?", "position_ids": "i8", "crop_grid": "i8", "feature_grid": "i8"
    }  # fmt: skip
    for width, height in [*SIZES[1:7], (65, 64), (129, 640), (40, 90)]:
        pixels = picture(width, height)
        wanted = phi4mm_image.prepare_image(pixels, spec, LIMITS)
        number = {"low": 0, "auto": 1, "high": 2}[detail]
        words = ("image", "phi4mm_image", json.dumps(constants), width, height, number)
        tokens, (found,) = arrays_of(run(programs / "phirt_parts", *words, data=pixels.tobytes()), dtypes)
        assert tokens == wanted.num_tokens
        for name, array in wanted.make_inputs().items():
            if name == "pixel_values":
                np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6)
            else:
                np.testing.assert_array_equal(found[name], array, err_msg=f"{name} of {width} x {height}")


@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_pictures_of_one_size(programs: Path, fit: Any, resample: Any) -> None:
    constants: dict[str, Any] = {
        "size": 96, "tokens": 9, "mean": [0.48, 0.45, 0.4], "std": [0.26, 0.27, 0.28], "resample": resample,
        "fit": fit,
    }  # fmt: skip
    as_read = {**constants, "mean": tuple(constants["mean"]), "std": tuple(constants["std"])}
    spec = fixed_image.FixedImageConstants(**as_read)
    for width, height in SIZES[1:8]:
        pixels = picture(width, height)
        words = ("image", "fixed_image", json.dumps(constants), width, height, 1)
        tokens, (found,) = arrays_of(
            run(programs / "phirt_parts", *words, data=pixels.tobytes()), {"pixel_values": "f4"}
        )
        assert tokens == 9
        np.testing.assert_array_equal(
            found["pixel_values"][0], fixed_image.process(Image.fromarray(pixels), spec)
        )


def prepared_audio(
    kind: str, constants: dict[str, Any], samples: npt.NDArray[np.float32], rate: int
) -> Prepared:
    if kind == "phi4mm_audio":
        return phi4mm_audio.prepare_audio((samples, rate), phi4mm_audio.AudioConstants(**constants), LIMITS)
    # A graph is only looked at when an encoder opens; the constants are all that matters here.
    encoder = whisper_audio.Encoder.__new__(whisper_audio.Encoder)
    encoder.constants = whisper_audio.WhisperConstants(**constants)
    return encoder.prepare((samples, rate), LIMITS, "auto")


@pytest.mark.parametrize(
    ("kind", "constants"),
    [
        ("phi4mm_audio", {"sample_rate": 16000, "num_mels": 80, "subsampling": 8, "window_tokens": 500}),
        ("whisper_audio", {"num_mels": 80, "frames_per_token": 8, "padding": "none"}),
        ("whisper_audio", {"num_mels": 128, "frames_per_token": 2, "padding": "kept"}),
        ("whisper_audio", {"num_mels": 40, "frames_per_token": 7, "padding": "dropped"}),
    ],
)
def test_spectra(programs: Path, kind: str, constants: dict[str, Any]) -> None:
    dtypes = {"audio_embeds": "f4", "input_features": "f4"}
    for count, rate, channels in [
        (401, 16000, 1), (16000, 16000, 1), (30001, 16000, 2), (9000, 8000, 1), (480000, 16000, 1),
        (500123, 16000, 1),
    ]:  # fmt: skip
        if kind == "whisper_audio" and rate == 8000:
            continue  # it is resampled there, which has a test of its own
        samples = sound(count, rate, channels)
        wanted = prepared_audio(kind, constants, samples, rate)
        words = ("audio", kind, json.dumps(constants), channels, rate)
        tokens, runs = arrays_of(run(programs / "phirt_parts", *words, data=samples.tobytes()), dtypes)
        assert tokens == wanted.num_tokens
        inputs = wanted.make_inputs()
        if kind == "phi4mm_audio":
            np.testing.assert_allclose(runs[0]["audio_embeds"], inputs["audio_embeds"], atol=2e-5)
            continue
        graph = types.SimpleNamespace(fed=[])
        graph.run = lambda given, graph=graph: (
            graph.fed.append(given["input_features"])
            or [np.zeros((given["input_features"].shape[2], 4), np.float32)]
        )
        encoder = whisper_audio.Encoder.__new__(whisper_audio.Encoder)
        encoder.constants, encoder._has_choice = whisper_audio.WhisperConstants(**constants), False
        encoder.run(graph, inputs, 0)
        assert [one["input_features"].shape for one in runs] == [one.shape for one in graph.fed]
        for one, array in zip(runs, graph.fed, strict=True):
            np.testing.assert_allclose(one["input_features"], array, atol=1e-5)


def test_channels_that_cancel_each_other(programs: Path) -> None:
    left = sound(16000, 16000)
    samples = np.concatenate([left, -left], axis=1)
    constants = {"sample_rate": 16000, "num_mels": 80, "subsampling": 8, "window_tokens": 500}
    wanted = prepared_audio("phi4mm_audio", constants, samples, 16000).make_inputs()["audio_embeds"]
    words = ("audio", "phi4mm_audio", json.dumps(constants), 2, 16000)
    _, (found,) = arrays_of(
        run(programs / "phirt_parts", *words, data=samples.tobytes()), {"audio_embeds": "f4"}
    )
    np.testing.assert_allclose(found["audio_embeds"], wanted, atol=2e-5)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000, 12347])
def test_other_rates(programs: Path, rate: int) -> None:
    """As soxr's HQ within -60 dB, where both let through the same: up to 85 % of the lower band."""
    time = np.arange(2 * rate) / rate
    limit = 0.85 * min(rate, 16000) / 2
    samples = sum(
        0.1 * np.sin(2 * np.pi * frequency * time + frequency) for frequency in np.linspace(60, limit, 7)
    )
    samples = (samples * np.hanning(len(samples))).astype(np.float32)
    found = np.frombuffer(
        run(programs / "phirt_parts", "resample", rate, 16000, data=samples.tobytes()), "f4"
    )
    wanted = soxr.resample(samples, rate, 16000, quality="HQ")
    assert len(found) == len(wanted)
    error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
    assert error < 1e-3


def test_what_lies_above_the_lower_band_does_not_fold(programs: Path) -> None:
    time = np.arange(96000) / 48000
    samples = np.sin(2 * np.pi * 9000 * time).astype(np.float32)
    found = np.frombuffer(
        run(programs / "phirt_parts", "resample", 48000, 16000, data=samples.tobytes()), "f4"
    )
    assert np.abs(found[2000:-2000]).max() < 1e-4
