"""The processors at Phi-4-multimodal's own sizes against the specification restated, torch, and transformers.

Where transformers differs from the original the specification wins, and a test here says so.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

import phirt
from phirt.bundle.manifest import Limits
from phirt.encoders import phi4mm_audio as audio
from phirt.encoders import phi4mm_image as image
from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.encoders.phi4mm_image import ImageConstants
from phirt.errors import ConfigError, MediaError

PHI4 = ImageConstants(crop_size=448, patch_size=14, pool=2, max_crops=36, min_side=10)
AUDIO = AudioConstants(sample_rate=16000, num_mels=80, subsampling=8, window_tokens=500)
SIZES = [tuple(int(n) for n in size) for size in np.random.default_rng(4).integers(100, 4200, (1000, 2))]


def restated_tokens(width: int, height: int, limit: int = 36) -> int:
    """Section B, steps 1 to 3 and the assembly, counting patches one by one."""
    w, h = -(-width // 448), -(-height // 448)
    if w * h > limit:
        order = sorted(
            (i * j, i, j) for i in range(1, limit + 1) for j in range(1, limit + 1) if i * j <= limit
        )
        nearest = min(abs(width / height - i / j) for _, i, j in order)
        ties = [(i, j) for _, i, j in order if abs(width / height - i / j) == nearest]
        w, h = ties[0]
        for i, j in ties[1:]:
            if width * height > 0.5 * 448 * 448 * i * j:
                w, h = i, j
    by_width, by_height = 448 * w / width, 448 * h / height
    if by_width < by_height:
        right, below = 0, 448 * h - int(height * by_width)
    else:
        right, below = 448 * w - int(width * by_height), 0
    valid = np.ones((32 * h, 32 * w), bool)
    if right >= 14:
        valid[:, -(right // 14) :] = False
    if below >= 14:
        valid[-(below // 14) :, :] = False
    kept = valid[0::2, 0::2]
    rows, columns = int(kept[:, 0].sum()), int(kept[0].sum())
    tokens = 0
    for _ in range(rows):
        tokens += columns + 1  # and a separator after each row
    return tokens + 1 + 16 * (16 + 1)


@pytest.mark.parametrize("limit", [36, 12, 1])
def test_token_counts_of_a_thousand_sizes(limit):
    spec = dataclasses.replace(PHI4, max_crops=limit)
    for width, height in SIZES:
        assert image.count_tokens((width, height), spec, "x") == restated_tokens(width, height, limit)


def test_square_sizes_meet_every_tie():
    for side in range(100, 6000, 37):
        assert image.count_tokens((side, side), PHI4, "x") == restated_tokens(side, side)
        assert image.count_tokens((2 * side, side), PHI4, "x") == restated_tokens(2 * side, side)


def test_grids_of_equal_size_are_never_equally_near():
    """So it does not matter in which order the original goes through grids with the same number of crops."""
    pairs = [(i, j) for i in range(1, 37) for j in range(1, 37) if i * j <= 36]
    for i, j in pairs:
        for k, m in pairs:
            if i * j == k * m and (i, j) < (k, m):
                middle = (i / j + k / m) / 2
                assert min(abs(middle - a / b) for a, b in pairs) < abs(middle - i / j)


def test_no_crop_lies_wholly_in_the_padding():
    for size in SIZES:
        layout = image.plan(size, PHI4, "x")
        mask = image.patch_mask(layout, PHI4)
        across, down = layout.crops
        assert mask.reshape(down, 32, across, 32).any(axis=(1, 3)).all()


@pytest.mark.parametrize("size", [(487, 206), (300, 500)])
def test_crops_and_global_view_equal_torchs(size):
    import torch
    from torch.nn.functional import interpolate, pad

    width, height = size
    rng = np.random.default_rng(5)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    inputs = image.process_image(picture, PHI4, "x")
    down, across = inputs.crop_grid.tolist()
    layout = image.plan(size, PHI4, "x")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    resized = interpolate(pixels, layout.resized[::-1], mode="bilinear", antialias=True, align_corners=False)
    missing = (0, 448 * across - layout.resized[0], 0, 448 * down - layout.resized[1])
    canvas = (pad(resized, missing, value=255.0) / 255 - 0.5) / 0.5
    whole = interpolate(canvas, (448, 448), mode="bicubic", align_corners=False)[0].numpy()
    crops = (
        canvas.numpy().reshape(3, down, 448, across, 448).transpose(1, 3, 0, 2, 4).reshape(-1, 3, 448, 448)
    )
    step = 1 / 127.5  # the original resizes with Pillow, which rounds to 8 bits after each of its two passes
    assert np.abs(inputs.pixel_values[1:] - crops).max() <= 1.01 * step
    assert np.abs(inputs.pixel_values[0] - whole).max() <= 1.5 * step
    assert np.abs(inputs.pixel_values[1:] - crops).mean() < 0.3 * step
    # On the very canvas that was cut into crops, the global view is exact.
    own = inputs.pixel_values[1:].reshape(down, across, 3, 448, 448).transpose(2, 0, 3, 1, 4)
    own = torch.from_numpy(own.reshape(1, 3, down * 448, across * 448).copy())
    exact = interpolate(own, (448, 448), mode="bicubic", align_corners=False)[0].numpy()
    np.testing.assert_allclose(inputs.pixel_values[0], exact, atol=2e-6)


@pytest.mark.parametrize(
    ("detail", "crops", "most"), [("low", 1, 545), ("auto", 12, 3537), ("high", 36, 10065)]
)
def test_detail_bounds_crops_and_tokens(detail, crops, most):
    spec = image.cap_crops(PHI4, detail)
    assert spec.max_crops == crops
    assert max(image.count_tokens(size, spec, "x") for size in SIZES) <= most
    assert most == max(
        restated_tokens(448 * i, 448 * j) for i in range(1, crops + 1) for j in range(1, crops // i + 1)
    )
    smaller = dataclasses.replace(PHI4, max_crops=2)
    assert image.cap_crops(smaller, detail).max_crops == min(crops, 2)


def test_the_published_counts_hold_under_the_default_detail():
    spec = image.cap_crops(PHI4, "auto")
    expected = {(1344, 1344): 2625, (1000, 1000): 2625, (300, 200): 460, (1300, 876): 1841, (487, 206): 735}
    assert {size: image.count_tokens(size, spec, "x") for size in expected} == expected


class TestDetailInConversations:
    """The tiny bundle takes up to 4 crops of 32 pixels; the photo has 50 x 30."""

    def test_it_changes_what_a_picture_costs_and_says(self, model, photo):
        counts, features = {}, {}
        for detail in ("low", "auto", "high"):
            chat = model.chat()
            chat.send(
                "x", images=[photo], image_detail=detail, config=phirt.GenerationConfig(max_new_tokens=1)
            )
            counts[detail] = model.count_tokens("x", images=[photo], image_detail=detail).images[0]
            media = chat.messages[0].media[0]
            assert media.num_tokens == counts[detail]
            features[detail] = media.features["image"]
        assert counts["low"] < counts["auto"] == counts["high"]
        assert features["auto"] is features["high"]  # the same crops are encoded once
        assert features["low"].shape != features["auto"].shape

    def test_an_unknown_one_is_refused_and_changes_nothing(self, model, photo):
        chat = model.chat()
        with pytest.raises(ConfigError, match="image_detail is 'best', accepted: low, auto, high"):
            chat.send("x", images=[photo], image_detail="best")
        assert chat.messages == ()


def test_log_mel_equals_transformers_but_for_bin_246():
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    samples = (np.random.default_rng(6).standard_normal(16000 * 3) * 0.1).astype(np.float32)
    extractor = transformers.Phi4MultimodalFeatureExtractor()
    expected = extractor(samples, sampling_rate=16000, return_tensors="np")["audio_input_features"][0]
    found = audio.log_mel(samples, 16000, 80)
    assert found.shape == expected.shape == (298, 80)
    np.testing.assert_allclose(found[:, :79], expected[:, :79], atol=1e-3)
    # The original's filters end with bin 245; transformers' last one takes 0.0097 of bin 246 as well.
    assert (found[:, 79] <= expected[:, 79] + 1e-5).all()
    assert np.abs(found[:, 79] - expected[:, 79]).max() > 1e-4


def test_a_long_recording_equals_its_parts():
    """Frames are worked on in blocks; none of it shows."""
    samples = (np.random.default_rng(7).standard_normal(160 * 1400 + 240) * 0.1).astype(np.float32)
    whole = audio.log_mel(samples, 16000, 80)
    assert len(whole) == 1400
    for first in (0, 500, 511, 512, 1023, 1390):
        part = audio.log_mel(samples[160 * first : 160 * (first + 9) + 240], 16000, 80)
        np.testing.assert_allclose(whole[first : first + 9], part, atol=1e-5)


@pytest.mark.parametrize("rate", [44100, 11025, 8000, 48000])
def test_stereo_at_any_rate_has_the_frames_of_its_duration(tmp_path, rate):
    import soundfile

    seconds = 1.2
    left = 0.4 * np.sin(2 * np.pi * 300 * np.arange(int(rate * seconds)) / rate)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, 0 * left], axis=1), rate)
    limits = Limits(image_pixels=1000, audio_seconds=10.0, media_bytes=1 << 24)
    frames, _ = audio.process_audio(path, AUDIO, limits)
    assert len(frames) == (int(16000 * seconds) - 400) // 160 + 1
    assert audio.count_tokens(len(frames), AUDIO) == math.ceil(len(frames) / 8)
    loudest = frames.mean(axis=0).argmax()
    edges = 700 * (np.exp(np.linspace(0, 1127 * np.log(1 + 7690 / 700), 82) / 1127) - 1)
    assert edges[loudest] < 300 < edges[loudest + 2]


def test_the_limits_of_a_side_follow_the_original():
    with pytest.raises(MediaError, match="each side needs at least 10"):
        image.plan((4480, 9), PHI4, "x")
    assert image.plan((10, 10), PHI4, "x").canvas == (448, 448)
