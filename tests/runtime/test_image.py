"""The image processor against torch, the published token counts, hand-made masks, and files that mean
harm.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phirt.bundle.manifest import Limits
from phirt.encoders import image_file
from phirt.encoders import phi4mm_image as processor
from phirt.encoders.phi4mm_image import ImageConstants
from phirt.errors import MediaError

PHI4 = ImageConstants(crop_size=448, patch_size=14, pool=2, max_crops=36, min_side=10)
TINY = ImageConstants(crop_size=32, patch_size=4, pool=2, max_crops=4, min_side=4)
LIMITS = Limits(image_pixels=1_000_000, audio_seconds=10.0, media_bytes=1 << 24)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def process(source, spec=TINY, limits=LIMITS) -> processor.ImageInputs:
    image, _, name = image_file.open_image(source, limits)
    return processor.process_image(image, spec, name)


@pytest.mark.parametrize(
    ("size", "max_crops", "tokens"),
    [
        ((1344, 1344), 36, 2625),
        ((1300, 876), 36, 1841),
        ((487, 206), 36, 735),
        ((1000, 1000), 36, 2625),
        ((300, 200), 36, 460),
        ((448, 448), 36, 545),
        ((2688, 2688), 36, 9585),
    ],
)
def test_token_counts_of_phi4(size, max_crops, tokens):
    spec = dataclasses.replace(PHI4, max_crops=max_crops)
    assert processor.count_tokens(size, spec, "x") == tokens


@given(width=st.integers(4, 400), height=st.integers(4, 400), max_crops=st.integers(1, 9))
def test_counts_masks_and_crops_agree(width, height, max_crops):
    spec = dataclasses.replace(TINY, max_crops=max_crops)
    try:
        layout = processor.plan((width, height), spec, "x")
    except MediaError:
        assert min(width, height) * max_crops < max(width, height) * 2
        return
    across, down = layout.crops
    assert across * down <= max(max_crops, 1)
    assert layout.resized[0] == layout.canvas[0] or layout.resized[1] == layout.canvas[1]
    assert layout.resized[0] <= layout.canvas[0]
    assert layout.resized[1] <= layout.canvas[1]
    mask = processor.patch_mask(layout, spec)
    columns = across * 8 - (layout.canvas[0] - layout.resized[0]) // 4
    rows = down * 8 - (layout.canvas[1] - layout.resized[1]) // 4
    assert mask.sum() == rows * columns
    u, v = math.ceil(rows / 2), math.ceil(columns / 2)
    assert processor.feature_grid(mask, spec) == (u, v)
    assert processor.count_tokens((width, height), spec, "x") == u * v + u + 1 + 16 + 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [((20, 20), (1, 1)), ((33, 20), (2, 1)), ((64, 64), (2, 2)), ((200, 60), (3, 1)), ((60, 200), (1, 3)),
     ((300, 290), (2, 2)), ((400, 100), (4, 1)), ((190, 100), (2, 1))],
)  # fmt: skip
def test_crops_by_hand(size, expected):
    assert processor.choose_crops(size, TINY) == expected


def test_an_exact_tie_takes_the_larger_grid_for_large_pictures():
    assert processor.choose_crops((65, 65), TINY) == (2, 2)  # 4225 > 0.5 * 32² * 4
    spec = dataclasses.replace(TINY, max_crops=9, crop_size=320, patch_size=40)
    assert processor.choose_crops((5000, 20), spec) == (9, 1)


def test_a_wide_picture_step_by_step():
    inputs = process(noise(50, 20))
    # Canvas 64 x 32; ratio 64/50 < 32/20, so the picture becomes 64 x int(20 * 1.28) = 64 x 25; 7 rows of
    # padding.
    assert inputs.pixel_values.shape == (3, 3, 32, 32)
    assert inputs.pixel_values.dtype == np.float32
    assert inputs.crop_grid.tolist() == [1, 2]
    assert (inputs.pixel_values[1:, :, 25:] == 1.0).all()
    assert not (inputs.pixel_values[1:, :, 24] == 1.0).all()
    expected = np.ones((8, 8), bool)
    expected[7:] = False  # floor(7 / 4) = 1 row of patches
    assert inputs.patch_mask[0].all()
    np.testing.assert_array_equal(inputs.patch_mask[1].reshape(8, 8), expected)
    np.testing.assert_array_equal(inputs.patch_mask[2].reshape(8, 8), expected)
    assert inputs.feature_grid.tolist() == [4, 8]


def test_crops_are_row_major_after_the_global_view():
    inputs = process(noise(64, 64, seed=3))
    pixels = np.asarray(noise(64, 64, seed=3), np.float32).transpose(2, 0, 1) / 127.5 - 1
    assert inputs.crop_grid.tolist() == [2, 2]
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        crop = pixels[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        np.testing.assert_allclose(inputs.pixel_values[1 + index], crop, atol=1e-6)


def test_resizing_equals_torchs_antialiased_bilinear():
    import torch

    for size in ((300, 200), (20, 30), (500, 90)):
        layout = processor.plan(size, TINY, "x")
        picture = noise(*size, seed=size[0])
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(pixels)[None],
            layout.resized[::-1],
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )[0].numpy()
        canvas = np.full((3, layout.canvas[1], layout.canvas[0]), 255.0)
        canvas[:, : layout.resized[1], : layout.resized[0]] = expected
        inputs = processor.build_inputs(picture, layout, TINY)
        across, down = layout.crops
        crops = inputs.pixel_values[1:].reshape(down, across, 3, 32, 32).transpose(2, 0, 3, 1, 4)
        found = (crops.reshape(3, down * 32, across * 32) + 1) * 127.5
        assert (
            np.abs(found - canvas).max() <= 1.01
        )  # Pillow rounds to whole steps after each of its two passes


@given(height=st.integers(4, 70), width=st.integers(4, 70), size=st.sampled_from([4, 16, 33]))
def test_the_global_view_equals_torchs_bicubic(height, width, size):
    import torch

    pixels = (
        np.random.default_rng(height * 100 + width).standard_normal((3, height, width)).astype(np.float32)
    )
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None], (size, size), mode="bicubic", align_corners=False
    )[0].numpy()
    # torch reckons source positions in float32
    found = processor.resize_bicubic(pixels.transpose(1, 2, 0), size).transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_one_crop_is_its_own_global_view():
    inputs = process(noise(32, 32))
    np.testing.assert_array_equal(inputs.pixel_values[0], inputs.pixel_values[1])


def test_position_ids_of_a_full_crop_count_up():
    assert processor.position_ids(np.ones((8, 8), bool)).tolist() == list(range(64))


@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (3, 5), (7, 2), (8, 8), (0, 4), (6, 0)])
def test_position_ids_follow_the_boundaries(rows, columns):
    from fractions import Fraction

    mask = np.zeros((8, 8), bool)
    mask[:rows, :columns] = True

    def bucket(i, n):
        return sum(Fraction(k, 8) <= Fraction(i, n) for k in range(1, 8))

    expected = np.zeros((8, 8), np.int64)
    for i in range(rows):
        for j in range(columns):
            expected[i, j] = 8 * bucket(i, rows) + bucket(j, columns)
    np.testing.assert_array_equal(processor.position_ids(mask).reshape(8, 8), expected)


def test_position_ids_of_phi4s_grid_match_floating_buckets():
    boundaries = np.arange(1, 32) / 32
    for rows in range(1, 33):
        mask = np.zeros((32, 32), bool)
        mask[:rows] = True
        coordinates = np.minimum(np.arange(rows) / rows, 1 - 1e-6)
        expected = (coordinates[:, None] >= boundaries).sum(1)
        np.testing.assert_array_equal(processor.position_ids(mask).reshape(32, 32)[:rows, 0] // 32, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_formats(kind):
    inputs = process(encoded(noise(40, 40), kind))
    assert inputs.pixel_values.shape == (5, 3, 32, 32)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_path_bytes_and_picture_give_the_same(tmp_path, kind):
    data = encoded(noise(40, 30), kind)
    (tmp_path / "x").write_bytes(data)
    results = [process(source) for source in (data, tmp_path / "x", str(tmp_path / "x"), noise(40, 30))]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].pixel_values, other.pixel_values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation):
    picture = noise(40, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "PNG", exif=exif)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    opened = Image.open(io.BytesIO(data))
    for source in (data, opened):
        image, _, _ = image_file.open_image(source, LIMITS)
        assert image_file.upright_size(image) == expected.shape[1::-1]
        np.testing.assert_array_equal(np.asarray(image_file.to_rgb(image)), expected)


def test_the_callers_picture_is_not_changed():
    picture = noise(40, 20).convert("RGBA")
    before = (picture.mode, picture.size, picture.tobytes())
    process(picture)
    assert (picture.mode, picture.size, picture.tobytes()) == before


def test_transparency_lies_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:4, :, 3] = 255
    rgba[4:, :, 3] = 51  # a fifth
    result = np.asarray(image_file.to_rgb(Image.fromarray(rgba)))
    assert result[0, 0].tolist() == [200, 0, 0]
    assert np.abs(result[7, 7].astype(int) - [244, 204, 204]).max() <= 1
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.info["transparency"] = 0
    assert np.asarray(image_file.to_rgb(palette))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "RGBX", "I", "F", "I;16"])
def test_modes_become_rgb(mode):
    result = image_file.to_rgb(Image.new(mode, (8, 6)))
    assert (result.mode, result.size) == ("RGB", (8, 6))


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    result = np.asarray(image_file.to_rgb(Image.open(io.BytesIO(encoded(grey, "PNG")))))
    assert result[..., 0].reshape(-1).tolist() == list(range(256))


def test_a_gif_shows_its_first_frame():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image, _, _ = image_file.open_image(data, LIMITS)
    assert np.asarray(image_file.to_rgb(image))[0, 0].tolist() == [255, 0, 0]


def png_header(width: int, height: int) -> bytes:
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60000, 60000), (10000, 9500), (1001, 1000)])
def test_too_many_pixels_are_refused_from_the_header(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MediaError, match=r"pixels, the limit is 1000000; scale it down"):
            process(png_header(*size))


def test_pillows_settings_stay():
    from PIL import ImageFile

    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    process(encoded(noise(40, 40), "JPEG"))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(kind, share):
    data = encoded(noise(200, 200), kind)
    with pytest.raises(MediaError, match=r"is damaged or incomplete|is no picture that can be read"):
        process(data[: int(len(data) * share)])


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "text.jpg").write_text("I am not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    cases = {
        "text.jpg": "is text, no picture that can be read; accepted: JPEG, PNG, WebP, GIF, BMP",
        "empty.jpg": "is empty",
        "folder.jpg": "is a folder",
        "missing.jpg": "does not exist",
        "nul\0.jpg": "cannot be read|does not exist",
    }
    for name, expected in cases.items():
        with pytest.raises(MediaError, match=expected):
            process(tmp_path / name)
    with pytest.raises(MediaError, match="is no regular file"):
        process("/dev/zero")
    with pytest.raises(MediaError, match="got int, accepted"):
        process(7)


def test_too_many_bytes_are_refused():
    small = dataclasses.replace(LIMITS, media_bytes=1000)
    with pytest.raises(MediaError, match="more than 1000 bytes"):
        process(encoded(noise(40, 40), "BMP"), limits=small)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_too_small_a_side_is_refused(size):
    with pytest.raises(MediaError, match=f"is {size[0]} x {size[1]} pixels; each side needs at least 4"):
        process(noise(*size))


def test_too_narrow_a_picture_is_refused():
    with pytest.raises(MediaError, match="too long and narrow"):
        process(noise(900, 5))


@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=5),
)
@settings(deadline=None, max_examples=80)
def test_changed_bytes_are_refused_or_seen(kind, changes):
    data = bytearray(encoded(noise(30, 20), kind))
    for place, mask in changes:
        data[int(place * len(data))] ^= mask
    try:
        pixels = process(bytes(data)).pixel_values
    except MediaError as error:
        assert changes, error
    else:
        # Cubic weights go up to 2 x 0.59375 + 2 x 0.09375 in sum along each axis, so edges overshoot.
        assert pixels.shape[1] == 3 and np.abs(pixels).max() <= 1.375**2


def test_content_names_a_picture():
    keys = {
        image_file.open_image(source, LIMITS)[1]
        for source in (noise(20, 20), noise(20, 20, 1), noise(20, 21), encoded(noise(20, 20), "PNG"))
    }
    assert len(keys) == 4
    assert image_file.open_image(noise(20, 20), LIMITS)[1] in keys
