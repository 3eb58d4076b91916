"""Pictures and recordings for training: prepared as the runtime prepares them, changed only where asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phirt.bundle.manifest import Limits
from phirt.encoders.phi4mm_audio import process_audio
from phirt.encoders.phi4mm_image import ImageConstants, process_image
from phirt_export.narrow import narrow
from phirt_export.reference import Model, initialize
from phirt_train.data.audio import FrameReader, augment_batch
from phirt_train.data.augmentation import UNCHANGED_AUDIO, AudioAugmentation, ImageAugmentation
from phirt_train.data.images import augment_image, read_image
from phirt_train.media_features import image_features
from phirt_train.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[2] / "export/recipes/nano"
LIMITS = Limits(10**8, 60.0, 1 << 28)
UNCHANGED = ImageAugmentation()


@pytest.fixture(scope="module")
def model() -> Model:
    made = Model(load_recipe(RECIPE, "tiny").model)
    initialize(made, 3)
    return made.eval()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_pictures_of_several_crops_are_encoded_in_one_batch_as_alone(model: Model) -> None:
    constants = narrow(ImageConstants, model.image_embed.config)
    several = ImageConstants(constants.crop_size, constants.patch_size, constants.pool, 4, constants.min_side)
    pictures = [noise(50, 40), noise(150, 70), noise(64, 64), noise(40, 200)]
    inputs = [process_image(picture, several, "x") for picture in pictures]
    assert [len(one.pixel_values) - 1 for one in inputs] == [1, 2, 1, 4]
    with torch.no_grad():
        together = image_features(model, inputs, torch.device("cpu"))
        for one, rows in zip(inputs, together, strict=True):
            grid = math.isqrt(one.patch_mask.shape[1])
            mask = torch.from_numpy(one.patch_mask).view(-1, grid, grid)
            (h, w), (u, v) = one.crop_grid.tolist(), one.feature_grid.tolist()
            alone = model.image_embed(torch.from_numpy(one.pixel_values), mask, (h, w), (u, v))
            assert torch.allclose(rows, alone, atol=1e-5)


def test_an_unchanged_picture_is_what_the_runtime_sees(model: Model, tmp_path: Path) -> None:
    constants = narrow(ImageConstants, model.image_embed.config)
    noise(70, 45).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", constants, LIMITS, UNCHANGED, np.random.default_rng(0))
    seen = process_image(noise(70, 45), constants, "a")
    for name, array in seen.as_inputs().items():
        np.testing.assert_array_equal(read.as_inputs()[name], array, err_msg=name)


def test_each_change_of_a_picture_does_what_it_says() -> None:
    rng = np.random.default_rng(1)
    picture = noise(40, 30)
    assert augment_image(picture, UNCHANGED, rng) is picture
    flipped = {augment_image(picture, ImageAugmentation(flip=True), rng).tobytes() for _ in range(20)}
    assert flipped == {picture.tobytes(), picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()}
    areas = [math.prod(augment_image(picture, ImageAugmentation(min_area=0.5), rng).size) for _ in range(50)]
    assert min(areas) < 0.7 * 1200 and min(areas) >= 0.45 * 1200 and max(areas) > 0.9 * 1200
    # A quarter of a turn carries the left edge to the top or to the bottom.
    edge = Image.new("RGB", (41, 41), "black")
    edge.paste((255, 0, 0), (0, 0, 5, 41))
    turned = [np.asarray(augment_image(edge, ImageAugmentation(rotate_degrees=90), rng)) for _ in range(40)]
    assert all(abs(int((one == [255, 0, 0]).all(axis=2).sum()) - 205) < 120 for one in turned)
    erased = np.asarray(
        augment_image(Image.new("RGB", (90, 90), "red"), ImageAugmentation(random_erasing=1), rng)
    )
    assert 0 < int((erased == 128).all(axis=2).sum()) <= 31 * 31
    jittered = augment_image(picture, ImageAugmentation(color_jitter=0.5), rng)
    assert jittered.size == picture.size and jittered.tobytes() != picture.tobytes()


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    area=st.floats(0.01, 1),
    degrees=st.floats(0, 180),
    seed=st.integers(0, 99),
)
def test_a_changed_picture_keeps_its_least_side(
    size: tuple[int, int], area: float, degrees: float, seed: int
) -> None:
    change = ImageAugmentation(area, True, degrees, 0.9, 1.0)
    changed = augment_image(noise(*size), change, np.random.default_rng(seed), min_side=10)
    assert all(min(10, old) <= new <= old for new, old in zip(changed.size, size, strict=True))


def clips(*lengths: int) -> list[Any]:
    rng = np.random.default_rng(7)
    return [rng.uniform(1, 9, (length, 80)).astype(np.float16) for length in lengths]


def test_a_batch_of_unchanged_recordings_is_padded_and_nothing_else() -> None:
    short, long = clips(5, 9)
    fill = torch.full((80,), 3.0)
    frames, lengths = augment_batch([short, long], UNCHANGED_AUDIO, np.random.default_rng(0), fill)
    assert lengths.tolist() == [5, 9]
    np.testing.assert_array_equal(frames[0, :5], short.astype(np.float32))
    np.testing.assert_array_equal(frames[1], long.astype(np.float32))
    assert (frames[0, 5:] == 3).all()


def test_each_change_of_a_recording_does_what_it_says() -> None:
    (clip,) = clips(100)
    fill = torch.zeros(80)

    def changed(**change: Any) -> tuple[torch.Tensor, int]:
        frames, lengths = augment_batch(
            [clip] * 20, AudioAugmentation(**change), np.random.default_rng(2), fill
        )
        return frames, lengths

    _, lengths = changed(speed=0.5)
    assert 61 <= lengths.min() < 90 and 110 < lengths.max() <= 165
    frames, _ = changed(narrowband=1.0)
    assert (frames[:, :, 62:] == 0).all() and (frames[:, :, :62] > 0).all()
    frames, _ = changed(spec_augment=1)
    empty = frames == 0
    assert empty.any() and empty.float().mean() < 0.3
    frames, _ = changed(gain=1.0)
    shift = (frames - torch.from_numpy(clip.astype(np.float32)))[:, 50].mean(1)
    assert 0.5 < shift.std() < 2
    _, lengths = changed(edge_frames=10)
    assert 80 <= lengths.min() < 100 < lengths.max() <= 120
    frames, _ = changed(noise=1.0)
    assert (frames >= torch.from_numpy(clip.astype(np.float32)) - 1e-3).all()


def test_frames_are_the_runtimes_and_counted_by_the_header(model: Model, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 24000)
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    config = model.audio_embed.config
    reader = FrameReader(config, LIMITS)
    frames = reader.read(tmp_path / "a.flac")
    expected, _ = process_audio(tmp_path / "a.flac", config, LIMITS)
    np.testing.assert_array_equal(frames, expected.astype(np.float16))
    assert abs(reader.count_frames(tmp_path / "a.flac") - len(frames)) <= 2
    (tmp_path / "a.flac").unlink()
    assert reader.read(tmp_path / "a.flac") is frames  # kept
