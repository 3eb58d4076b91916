"""The unquantized encoder graphs against the reference towers, and both media through the decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import AUDIO, IMAGE, DecoderRunner, session

from phirt_export.reference.vision import position_buckets

TOLERANCE = 1e-4
GRID = 4


class Picture:
    """A random picture in h x w crops whose last `bottom` patch rows or `right` patch columns are padding."""

    def __init__(self, h: int, w: int, bottom: int = 0, right: int = 0) -> None:
        valid = np.ones((h * GRID, w * GRID), bool)
        valid[h * GRID - bottom :] = False
        valid[:, w * GRID - right :] = False
        crops = valid.reshape(h, GRID, w, GRID).transpose(0, 2, 1, 3).reshape(h * w, GRID, GRID)
        self.mask = np.concatenate([np.ones((1, GRID, GRID), bool), crops])
        self.crop_grid = (h, w)
        self.feature_grid = (int(valid[::2, 0].sum()), int(valid[0, ::2].sum()))
        self.pixels = (
            np.random.default_rng(h * 10 + w).standard_normal((1 + h * w, 3, 32, 32)).astype(np.float32)
        )

    def reference(self, model) -> np.ndarray:
        """Image features of the torch tower."""
        pixels, mask = torch.from_numpy(self.pixels), torch.from_numpy(self.mask)
        with torch.no_grad():
            return model.image_embed(pixels, mask, self.crop_grid, self.feature_grid).numpy()

    def feeds(self) -> dict[str, np.ndarray]:
        """Inputs of the graph."""
        buckets = position_buckets(torch.from_numpy(self.mask), GRID).flatten(1).numpy()
        return {
            "pixel_values": self.pixels,
            "patch_mask": self.mask.reshape(-1, GRID * GRID),
            "position_ids": buckets.astype(np.int64),
            "crop_grid": np.array(self.crop_grid, np.int64),
            "feature_grid": np.array(self.feature_grid, np.int64),
        }


# The last one has a crop that lies wholly in padding.
PICTURES = [(1, 1, 0, 0), (2, 3, 2, 0), (3, 1, 0, 1), (1, 2, 0, 3), (2, 2, 5, 0)]


@pytest.mark.parametrize("shape", PICTURES)
def test_image_features_agree(exported, shape):
    picture = Picture(*shape)
    (features,) = session(exported.bundle / "vision.onnx").run(None, picture.feeds())
    u, v = picture.feature_grid
    assert features.shape == (u * v + u + 1 + 4 + 2, 64)
    np.testing.assert_allclose(features, picture.reference(exported.model), atol=TOLERANCE)


@pytest.mark.parametrize("frames", [1, 8, 9, 80, 81, 333])
@pytest.mark.parametrize("projector", ["speech", "vision"])
def test_audio_features_agree_within_and_across_windows(plain, frames, projector):
    clip = np.random.default_rng(frames).standard_normal((1, frames, 80)).astype(np.float32)
    feeds = {"audio_embeds": clip, "projector": np.array([projector == "vision"], np.int64)}
    (features,) = session(plain.bundle / "speech.onnx").run(None, feeds)
    with torch.no_grad():
        expected = plain.model.audio_embed(torch.from_numpy(clip), projector)[0].numpy()
    assert features.shape == (-(-frames // 8), 64)
    np.testing.assert_allclose(features, expected, atol=TOLERANCE)


@pytest.mark.parametrize("media", ["image", "audio", "image and audio"])
def test_logits_agree_from_pixels_and_frames_to_32_steps(plain, media):
    model, ids, rows, expected_rows = plain.model, [5], [], []
    route, route_id = ("vision", 1) if "image" in media else ("speech", 2)
    if "image" in media:
        picture = Picture(1, 2, right=2)
        rows.append(session(plain.bundle / "vision.onnx").run(None, picture.feeds())[0])
        expected_rows.append(picture.reference(model))
        ids += [IMAGE] * len(rows[-1])
    if "audio" in media:
        clip = np.random.default_rng(0).standard_normal((1, 90, 80)).astype(np.float32)
        feeds = {"audio_embeds": clip, "projector": np.array([route_id == 1], np.int64)}
        rows.append(session(plain.bundle / "speech.onnx").run(None, feeds)[0])
        with torch.no_grad():
            expected_rows.append(model.audio_embed(torch.from_numpy(clip), route)[0].numpy())
        ids += [9] + [AUDIO] * len(rows[-1])
    ids += [7, 20, 30]
    features = torch.from_numpy(np.concatenate(expected_rows))
    runner = DecoderRunner(session(plain.bundle / "decoder.onnx"), model.config.decoder)
    got = [runner.run(ids, np.concatenate(rows), route_id)]
    answer = np.random.default_rng(1).integers(3, 160, 32)
    got += [runner.run([int(token)], None, route_id) for token in answer]
    with torch.no_grad():
        expected = model(torch.tensor([ids + answer.tolist()]), features, route)[0].numpy()
    np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-3)
