"""Pictures of one fixed size: the steps are those of transformers' processors for SigLIP and CLIP."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from phirt.bundle.manifest import GraphSpec, Limits, TensorSpec
from phirt.encoders.fixed_image import Encoder, FixedImageConstants, process
from phirt.errors import BundleError, MediaError
from phirt.fields import Fields, write_dataclass

LIMITS = Limits(image_pixels=10**8, audio_seconds=1.0, media_bytes=1 << 28)
HALF = (0.5, 0.5, 0.5)
SIGLIP = FixedImageConstants(size=56, tokens=16, mean=HALF, std=HALF)
CLIP = FixedImageConstants(
    size=48, tokens=9, mean=(0.481, 0.458, 0.408), std=(0.269, 0.261, 0.276), fit="crop"
)
SIZES = [(56, 56), (300, 200), (50, 333), (7, 400), (1, 1), (640, 481), (48, 49)]


def picture(size, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_stretched_pictures_equal_siglip_s(size, resample):
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    filters = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
    reference = SiglipImageProcessorPil(size={"height": 56, "width": 56}, resample=filters[resample])
    image = picture(size)
    expected = reference(image, return_tensors="np")["pixel_values"][0]
    found = process(image, dataclasses.replace(SIGLIP, resample=resample))
    assert (found.dtype, found.shape) == (np.float32, (3, 56, 56))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_cut_pictures_equal_clip_s(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    reference = CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48},
        image_mean=list(CLIP.mean), image_std=list(CLIP.std),
    )  # fmt: skip
    image = picture(size)
    expected = reference(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(process(image, CLIP), expected, atol=1e-6)


def graph(size: int, tokens: int, hidden: int = 32) -> GraphSpec:
    pixels = TensorSpec("pixel_values", "float32", (1, 3, size, size))
    return GraphSpec(
        "v.onnx", (), "cpu", (pixels,), (TensorSpec("image_features", "float32", (tokens, hidden)),)
    )


def encoder(constants: FixedImageConstants) -> Encoder:
    fields = Fields(write_dataclass(constants), "constants", BundleError, "")
    return Encoder(fields, graph(constants.size, constants.tokens), 32)


def test_every_picture_costs_the_same_and_is_measured_by_its_header(photo):
    prepared = encoder(SIGLIP).prepare(photo, LIMITS, "auto")
    assert (prepared.num_tokens, len(prepared.key)) == (16, 64)
    assert prepared.key == encoder(SIGLIP).prepare(photo, LIMITS, "low").key
    inputs = prepared.make_inputs()
    np.testing.assert_array_equal(
        inputs["pixel_values"][0], process(Image.open(photo).convert("RGB"), SIGLIP)
    )
    assert encoder(SIGLIP).count(inputs) == 16


def test_a_strip_is_refused_before_it_is_resized():
    strip = Image.new("L", (100_000, 100))
    with pytest.raises(MediaError, match="100000 x 100 pixels, too long and narrow for this model; crop it"):
        encoder(CLIP).prepare(strip, LIMITS, "auto")
    assert encoder(SIGLIP).prepare(strip, LIMITS, "auto").make_inputs()["pixel_values"].shape == (
        1,
        3,
        56,
        56,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 57}, "'pixel_values' has the shape [1, 3, 56, 56], expected [1, 3, 57, 57]"),
        ({"tokens": 15}, "'image_features' has the shape [16, 32], expected [15, 32]"),
        ({"std": [0.0, 1.0, 1.0]}, "'std'[0] is 0.0, expected a number from 0.001"),
        ({"mean": [0.5, 0.5]}, "'mean' is [0.5, 0.5], expected a list of"),
        ({"fit": "pad"}, "'fit' is 'pad', expected one of stretch, crop"),
        ({"resample": "nearest"}, "'resample' is 'nearest', expected one of bilinear, bicubic, lanczos"),
    ],
)
def test_constants_must_fit_the_graph(changes, message):
    fields = Fields(write_dataclass(SIGLIP) | changes, "constants", BundleError, "")
    with pytest.raises(BundleError) as refused:
        Encoder(fields, graph(56, 16), 32)
    assert message in str(refused.value)
