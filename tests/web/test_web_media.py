"""What the host for JavaScript makes of pictures and recordings, beside phirt's encoders, Pillow and soxr;
and which ids it draws.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest
import soxr
from PIL import Image
from web_host import Host, decoded, encoded, native_tests

from phirt.bundle.manifest import Limits
from phirt.encoders import fixed_image, phi4mm_audio, phi4mm_image, whisper_audio

native = native_tests("test_native_media")
LIMITS: Limits = native.LIMITS
SIZES = [(5, 3), (64, 48), (300, 200), (200, 300), (97, 211), (448, 448), (17, 640)]
_DTYPES = {
    "pixel_values": "f4", "patch_mask": "?", "position_ids": "i8", "crop_grid": "i8", "feature_grid": "i8",
    "audio_embeds": "f4", "input_features": "f4",
}  # fmt: skip

# Its order of both directions is that of this version.
pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 rounds in another order"
)


def arrays_of(prepared: Any) -> list[dict[str, npt.NDArray[Any]]]:
    """The inputs of each run."""
    return [
        {name: decoded(one["data"], _DTYPES[name]).reshape(one["shape"]) for name, one in run.items()}
        for run in prepared["runs"]
    ]


@pillow_13
def test_resizing_is_pillows_to_the_last_bit(host: Host) -> None:
    jobs, wanted = [], []
    for filter_name in ("bilinear", "bicubic", "lanczos"):
        for width, height in [(1, 1), *SIZES, (1024, 31)]:
            pixels = native.picture(width, height)
            for to in ((1, 1), (64, 64), (33, 77), (width, 50), (288, height)):
                jobs.append(
                    {"resize": filter_name, "size": [width, height], "to": to, "data": encoded(pixels)}
                )
                image = Image.fromarray(pixels).resize(to, Image.Resampling[filter_name.upper()])
                wanted.append(image.tobytes())
    for job, ours, theirs in zip(jobs, host.parts(jobs), wanted, strict=True):
        assert decoded(ours, "u1").tobytes() == theirs, {**job, "data": ""}


@pillow_13
@pytest.mark.parametrize("detail", ["low", "auto", "high"])
def test_crops_of_phi4mm(host: Host, detail: Any) -> None:
    constants = {"crop_size": 64, "patch_size": 8, "pool": 2, "max_crops": 16, "min_side": 3}
    spec = phi4mm_image.cap_crops(phi4mm_image.ImageConstants(**constants), detail)
    pictures = [native.picture(*size) for size in [*SIZES[:6], (65, 64), (129, 640), (40, 90)]]
    asked = {"image": "phi4mm_image", "constants": constants, "detail": detail}
    jobs = [{**asked, "size": one.shape[1::-1], "data": encoded(one)} for one in pictures]
    for pixels, found in zip(pictures, host.parts(jobs), strict=True):
        wanted = phi4mm_image.prepare_image(pixels, spec, LIMITS)
        assert found["tokens"] == wanted.num_tokens
        (arrays,) = arrays_of(found)
        for name, array in wanted.make_inputs().items():
            np.testing.assert_allclose(
                arrays[name], array, rtol=0, atol=2e-6, err_msg=f"{name} of {pixels.shape}"
            )


@pillow_13
def test_pictures_of_one_size(host: Host) -> None:
    constants: dict[str, Any] = {
        "size": 96, "tokens": 9, "mean": [0.48, 0.45, 0.4], "std": [0.26, 0.27, 0.28],
    }  # fmt: skip
    pictures = [native.picture(*size) for size in SIZES]
    for fit in ("stretch", "crop"):
        for resample in ("bilinear", "bicubic", "lanczos"):
            chosen = {**constants, "resample": resample, "fit": fit}
            read = {**chosen, "mean": tuple(chosen["mean"]), "std": tuple(chosen["std"])}
            spec = fixed_image.FixedImageConstants(**read)
            asked = {"image": "fixed_image", "constants": chosen, "detail": "auto"}
            jobs = [{**asked, "size": one.shape[1::-1], "data": encoded(one)} for one in pictures]
            for pixels, found in zip(pictures, host.parts(jobs), strict=True):
                (arrays,) = arrays_of(found)
                assert found["tokens"] == 9
                np.testing.assert_array_equal(
                    arrays["pixel_values"][0], fixed_image.process(Image.fromarray(pixels), spec)
                )


def audio_job(
    kind: str, constants: dict[str, Any], samples: npt.NDArray[np.float32], rate: int
) -> dict[str, Any]:
    channels = samples.shape[1]
    return {
        "audio": kind, "constants": constants, "channels": channels, "rate": rate, "data": encoded(samples)
    }  # fmt: skip


PHI = {"sample_rate": 16000, "num_mels": 80, "subsampling": 8, "window_tokens": 500}


def test_spectra_of_phi4mm(host: Host) -> None:
    left = native.sound(16000, 16000)
    clips = [
        (native.sound(401, 16000), 16000), (native.sound(16000, 16000), 16000),
        (native.sound(30001, 16000, 2), 16000),
        (native.sound(9000, 8000), 8000), (np.concatenate([left, -left], axis=1), 16000),
    ]  # fmt: skip
    jobs = [audio_job("phi4mm_audio", PHI, samples, rate) for samples, rate in clips]
    for clip, found in zip(clips, host.parts(jobs), strict=True):
        wanted = phi4mm_audio.prepare_audio(clip, phi4mm_audio.AudioConstants(**PHI), LIMITS)
        assert found["tokens"] == wanted.num_tokens
        (arrays,) = arrays_of(found)
        np.testing.assert_allclose(arrays["audio_embeds"], wanted.make_inputs()["audio_embeds"], atol=2e-5)


@pytest.mark.parametrize(
    "constants",
    [
        {"num_mels": 80, "frames_per_token": 8, "padding": "none"},
        {"num_mels": 128, "frames_per_token": 2, "padding": "kept"},
        {"num_mels": 40, "frames_per_token": 7, "padding": "dropped"},
    ],
)
def test_spectra_of_whisper(host: Host, constants: dict[str, Any]) -> None:
    clips = [native.sound(401, 16000), native.sound(30001, 16000, 2), native.sound(500123, 16000)]
    jobs = [audio_job("whisper_audio", constants, samples, 16000) for samples in clips]
    # A graph is only looked at when an encoder opens; the constants are all that matters here.
    encoder = whisper_audio.Encoder.__new__(whisper_audio.Encoder)
    encoder.constants, encoder._has_choice = whisper_audio.WhisperConstants(**constants), False
    for samples, found in zip(clips, host.parts(jobs), strict=True):
        wanted = encoder.prepare((samples, 16000), LIMITS, "auto")
        assert found["tokens"] == wanted.num_tokens
        graph = types.SimpleNamespace(fed=[])
        graph.run = lambda given, graph=graph: (
            graph.fed.append(given["input_features"])
            or [np.zeros((given["input_features"].shape[2], 4), np.float32)]
        )
        encoder.run(graph, wanted.make_inputs(), 0)
        arrays = arrays_of(found)
        for one, array in zip(arrays, graph.fed, strict=True):
            np.testing.assert_allclose(one["input_features"], array, atol=1e-5)


def test_other_rates(host: Host) -> None:
    """As soxr's HQ within -60 dB, where both let through the same: up to 85 % of the lower band."""
    jobs, given = [], []
    for rate in (8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000, 12347):
        time = np.arange(rate) / rate
        limit = 0.85 * min(rate, 16000) / 2
        tones = [0.1 * np.sin(2 * np.pi * at * time + at) for at in np.linspace(60, limit, 7)]
        samples = (np.sum(tones, axis=0) * np.hanning(len(time))).astype(np.float32)
        given.append((rate, samples))
        jobs.append({"resample": [rate, 16000], "data": encoded(samples)})
    for (rate, samples), text in zip(given, host.parts(jobs), strict=True):
        found, wanted = decoded(text, "f4"), soxr.resample(samples, rate, 16000, quality="HQ")
        assert len(found) == len(wanted)
        assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < 1e-3, rate


def test_what_lies_above_the_lower_band_does_not_fold(host: Host) -> None:
    samples = np.sin(2 * np.pi * 9000 * np.arange(96000) / 48000).astype(np.float32)
    (text,) = host.parts([{"resample": [48000, 16000], "data": encoded(samples)}])
    assert np.abs(decoded(text, "f4")[2000:-2000]).max() < 1e-4


_LOGITS = [1.0, 3.0, 2.0, 2.0, -1.0, 0.0, 2.5, -4.0]


def _shares(settings: dict[str, Any]) -> dict[int, float]:
    """What is left of which id, by the definitions of temperature, top-k, top-p and min-p."""
    logits = np.array(_LOGITS) / settings.get("temperature", 1.0)
    order = sorted(range(len(logits)), key=lambda at: (-logits[at], at))
    shares = np.exp(logits - logits.max())
    kept = order[: settings.get("topK") or len(order)]
    if (most := settings.get("topP", 1.0)) < 1.0:
        total = sum(shares[at] for at in kept)
        count = next(n for n in range(1, len(kept) + 1) if sum(shares[at] for at in kept[:n]) >= most * total)
        kept = kept[:count]
    kept = [at for at in kept if shares[at] >= settings.get("minP", 0.0) * shares[kept[0]]]
    total = sum(shares[at] for at in kept)
    return {at: shares[at] / total for at in kept}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0, "topK": 4},
        {"temperature": 1.0, "topP": 0.8},
        {"temperature": 1.0, "minP": 0.3},
        {"temperature": 1.5, "topK": 6, "topP": 0.9, "minP": 0.1},
    ],
)
def test_draws_have_the_shares_that_settings_say(host: Host, settings: dict[str, Any]) -> None:
    count = 20000
    (ids,) = host.parts([{"logits": _LOGITS, "settings": {**settings, "seed": 5}, "draws": count}])
    wanted = _shares(settings)
    found = {at: ids.count(at) / count for at in set(ids)}
    assert found.keys() <= wanted.keys()
    for at, share in wanted.items():
        assert abs(found.get(at, 0.0) - share) < 5 * np.sqrt(share * (1 - share) / count) + 1e-4


def test_penalties_and_the_best(host: Host) -> None:
    """Greedy: each id that was chosen is worth less, positive scores divided, negative ones multiplied."""
    jobs = [{"logits": _LOGITS, "settings": {"repetitionPenalty": 2.0}, "draws": 4}]
    assert host.parts(jobs) == [[1, 6, 2, 3]]
    refused = host.parts([{"logits": _LOGITS, "settings": {"repetitionPenalty": 0}, "draws": 1}])
    assert refused[0]["error"] == "ArgumentError"
