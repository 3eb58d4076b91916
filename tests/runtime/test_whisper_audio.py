"""Recordings as Whisper hears them: the numbers are those of transformers' extractor."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor

from phirt.bundle.manifest import GraphSpec, Limits, TensorSpec
from phirt.encoders.whisper_audio import Encoder, WhisperConstants, log_mel, mel_filters
from phirt.errors import BundleError
from phirt.fields import Fields, write_dataclass

LIMITS = Limits(image_pixels=1, audio_seconds=120.0, media_bytes=1 << 28)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16000)) / 16000
    voice = sum(np.sin(2 * np.pi * f * time + f) / f for f in (110.0, 220.0, 900.0, 3100.0)) * 40
    return (0.3 * voice * np.sin(2 * np.pi * 3 * time) + 0.01 * rng.standard_normal(len(time))).astype(
        np.float32
    )


@pytest.mark.parametrize("num_mels", [80, 128])
def test_filters_equal_slaney_s(num_mels):
    reference = WhisperFeatureExtractor(feature_size=num_mels)
    np.testing.assert_allclose(mel_filters(num_mels), reference.mel_filters, atol=1e-9)


@pytest.mark.parametrize("seconds", [30.0, 29.99, 12.3, 1.0, 0.02, 1 / 16000])
@pytest.mark.parametrize("num_mels", [80, 128])
def test_features_equal_whisper_s(seconds, num_mels):
    samples = sound(seconds)
    reference = WhisperFeatureExtractor(feature_size=num_mels)
    padded = np.pad(samples, (0, 480000 - len(samples)))
    exact = reference._np_extract_fbank_features(padded[None], "cpu")[0]
    usual = reference(samples, sampling_rate=16000, return_tensors="np")["input_features"][0]
    found = log_mel(samples, num_mels)
    assert (found.dtype, found.shape) == (np.float32, (num_mels, 3000))
    np.testing.assert_allclose(found, exact, atol=2e-6)
    np.testing.assert_allclose(found, usual, atol=1e-4)  # the extractor itself computes in float32


def graph(num_mels: int = 80, tokens: int = 750, hidden: int = 32, **more) -> GraphSpec:
    inputs = [TensorSpec("input_features", "float32", (1, num_mels, 3000)), *more.get("inputs", ())]
    return GraphSpec(
        "a.onnx", (), "cpu", tuple(inputs), (TensorSpec("audio_features", "float32", (tokens, hidden)),)
    )


def encoder(padding: str = "kept", frames_per_token: int = 4) -> Encoder:
    constants = WhisperConstants(80, frames_per_token, padding)
    fields = Fields(write_dataclass(constants), "constants", BundleError, "")
    return Encoder(fields, graph(tokens=constants.tokens_per_window), 32)


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()


class Frames:
    """A graph whose rows say which window and which frames they stand for."""

    def __init__(self, frames_per_token: int) -> None:
        self.runs, self.stride = 0, frames_per_token

    def run(self, inputs):
        assert inputs["input_features"].shape == (1, 80, 3000)
        self.runs += 1
        rows = -(-3000 // self.stride)
        return [np.repeat(np.arange(rows, dtype=np.float32)[:, None] + 10000 * self.runs, 32, axis=1)]


@pytest.mark.parametrize(
    ("seconds", "padding", "windows", "tokens"),
    [
        (30.0, "kept", 1, 750),
        (30.0, "dropped", 1, 750),
        (1.0, "kept", 1, 750),
        (1.0, "dropped", 1, 25),
        (1.005, "dropped", 1, 26),
        (60.0, "dropped", 2, 1500),
        (60.0001, "kept", 3, 2250),
        (60.0001, "dropped", 3, 1501),
        (75.0, "dropped", 3, 1875),
    ],
)
def test_long_recordings_are_windows_and_rows_count_what_is_heard(seconds, padding, windows, tokens):
    samples = sound(seconds)
    one = encoder(padding)
    prepared = one.prepare(wav(samples), LIMITS, "auto")
    inputs = prepared.make_inputs()
    assert (prepared.num_tokens, inputs["input_features"].shape) == (tokens, (windows, 80, 3000))
    last = samples[(windows - 1) * 480000 :]
    np.testing.assert_allclose(inputs["input_features"][-1], log_mel(last, 80), atol=1e-6)
    runner = Frames(4)
    features = one.run(runner, inputs, 0)
    assert (runner.runs, features.shape, one.count(inputs)) == (windows, (tokens, 32), tokens)
    assert features[-1, 0] == 10000 * windows + (tokens - 1) % 750


def test_other_rates_are_resampled(clip):
    prepared = encoder().prepare(wav(sound(2.0)[::2].copy(), 8000), LIMITS, "auto")
    assert prepared.make_inputs()["input_features"].shape == (1, 80, 3000)


def test_sizes_that_do_not_divide_are_rounded_up():
    assert WhisperConstants(80, 16).tokens_per_window == 188
    assert encoder("dropped", 16).prepare(wav(sound(30.0)), LIMITS, "auto").num_tokens == 188


@pytest.mark.parametrize(("windows", "tokens"), [(0, 0), (1, 751), (2, 750), (1, 0), (1, -1)])
def test_inputs_that_no_recording_makes_are_refused(windows, tokens):
    inputs = {
        "input_features": np.zeros((windows, 80, 3000), np.float32),
        "num_tokens": np.array([tokens], np.int64),
    }
    with pytest.raises(ValueError, match=f"{windows} windows do not make {tokens} tokens"):
        encoder("dropped").count(inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mels": 128}, "'input_features' has the shape [1, 80, 3000], expected [1, 128, 3000]"),
        ({"frames_per_token": 2}, "'audio_features' has the shape [750, 32], expected [1500, 32]"),
        ({"frames_per_token": 0}, "'frames_per_token' is 0"),
        ({"padding": "cut"}, "'padding' is 'cut', expected one of kept, dropped"),
    ],
)
def test_constants_must_fit_the_graph(changes, message):
    fields = Fields({"num_mels": 80, "frames_per_token": 4} | changes, "constants", BundleError, "")
    with pytest.raises(BundleError) as refused:
        Encoder(fields, graph(), 32)
    assert message in str(refused.value)
