"""Real photos and recordings through the processors and the tiny bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from phirt import GenerationConfig
from phirt.bundle.manifest import Limits
from phirt.encoders import image_file
from phirt.encoders import phi4mm_audio as audio
from phirt.encoders import phi4mm_image as image
from phirt.encoders.phi4mm_audio import AudioConstants
from phirt.encoders.phi4mm_image import ImageConstants

PHI4 = ImageConstants(crop_size=448, patch_size=14, pool=2, max_crops=36, min_side=10)
SPEC = AudioConstants(sample_rate=16000, num_mels=80, subsampling=8, window_tokens=500)
LIMITS = Limits(image_pixels=10**8, audio_seconds=60.0, media_bytes=1 << 28)


@pytest.fixture(params=["apples.jpg", "gull.jpg", "tshirt.jpg"])
def real_photo(shared_data, request):
    return shared_data / "samples" / request.param


@pytest.fixture(params=["jfk.flac", "sentence.flac", "seven.flac", "coffee_order.flac"])
def real_clip(shared_data, request):
    return shared_data / "samples" / request.param


def test_photos_at_phi4s_sizes(real_photo):
    opened, _, name = image_file.open_image(real_photo, LIMITS)
    inputs = image.process_image(opened, PHI4, name)
    crops = int(inputs.crop_grid.prod())
    assert inputs.pixel_values.shape == (1 + crops, 3, 448, 448)
    assert -1 <= inputs.pixel_values[1:].min() < -0.5 < 0.5 < inputs.pixel_values[1:].max() <= 1
    assert inputs.position_ids.max() < 1024
    u, v = inputs.feature_grid
    assert image.count_tokens(opened.size, PHI4, name) == u * v + u + 1 + 256 + 16
    down, across = inputs.crop_grid
    mask = (
        inputs.patch_mask[1:]
        .reshape(down, across, 32, 32)
        .transpose(0, 2, 1, 3)
        .reshape(down * 32, across * 32)
    )
    assert (u, v) == (-(-mask[:, 0].sum() // 2), -(-mask[0].sum() // 2))


def test_recordings(real_clip):
    frames, _ = audio.process_audio(real_clip, SPEC, LIMITS)
    assert frames.shape[1] == 80
    assert np.isfinite(frames).all()
    assert 0 <= frames.min() < 8 < frames.max() < 30


def test_a_digit_at_8_kilohertz(shared_data):
    import tarfile

    row = json.loads((shared_data / "speech" / "fsdd.val.jsonl").read_text().splitlines()[0])
    with tarfile.open(shared_data / "speech" / "fsdd.val.tar") as tar:
        data = tar.extractfile(row["file"]).read()
    frames, _ = audio.process_audio(data, SPEC, LIMITS)
    assert len(frames) == pytest.approx(row["seconds"] * 100, abs=3)
    assert (frames[:, 70:] == 0).all()


def test_a_conversation_with_real_media(model, shared_data):
    samples = shared_data / "samples"
    config = GenerationConfig(max_new_tokens=4)
    chat = model.chat()
    for text, media, route in [
        ("Hello", {}, "none"),
        ("Which?", {"images": [samples / "apples.jpg", samples / "gull.jpg"]}, "vision"),
        ("And this?", {"audio": [samples / "seven.flac"]}, "vision"),
        ("Why?", {}, "vision"),
    ]:
        assert chat.send(text, config=config, **media).result.adapter == route
    assert model.chat().send("x", audio=[samples / "sentence.flac"], config=config).result.adapter == "speech"
