"""What frozen encoders make of media is computed once, kept on disk, and the same after an interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from phirt.bundle.manifest import Limits
from phirt_export.reference import PhotoConfig, WhisperConfig
from phirt_export.reference.config import PhotoBlock
from phirt_export.reference.efficientnet import PhotoEmbed
from phirt_export.reference.whisper import SoundEmbed
from phirt_train.data.augmentation import AudioAugmentation, ImageAugmentation
from phirt_train.data.waveforms import augment_samples
from phirt_train.feature_store import FeatureStore
from phirt_train.frozen_media import FrozenPhotos, FrozenSounds
from phirt_train.objectives.piece_ctc import Pieces

LIMITS = Limits(10**8, 60.0, 1 << 28)


def test_arrays_are_found_again_and_a_line_that_was_cut_short_is_written_again(tmp_path):
    first, second = np.arange(6, dtype=np.float16).reshape(2, 3), np.ones((4,), np.float16)
    with FeatureStore(tmp_path) as store:
        store.write("a", first)
        store.write("b", second)
    index = tmp_path / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-4])
    with FeatureStore(tmp_path) as store:
        assert ("a" in store, "b" in store, len(store)) == (True, False, 1)
        store.write("b", 2 * second)
    with FeatureStore(tmp_path) as store:
        np.testing.assert_array_equal(store.read("a"), first)
        np.testing.assert_array_equal(store.read("b"), 2 * second)


def test_an_index_ahead_of_the_data_is_not_believed(tmp_path):
    with FeatureStore(tmp_path) as store:
        store.write("a", np.ones(8, np.float16))
        store.write("b", np.ones(8, np.float16))
    data = tmp_path / "features.bin"
    data.write_bytes(data.read_bytes()[:20])
    with FeatureStore(tmp_path) as store:
        assert ("a" in store, "b" in store) == (True, False)
        store.write("b", np.full(8, 3, np.float16))
        np.testing.assert_array_equal(store.read("b"), np.full(8, 3, np.float16))
        np.testing.assert_array_equal(store.read("a"), np.ones(8, np.float16))


@pytest.fixture
def photos(tmp_path) -> tuple[PhotoEmbed, list[Path]]:
    torch.manual_seed(0)
    blocks = (PhotoBlock(8, 8, 1, 3), PhotoBlock(8, 12, 2, 5, 2), PhotoBlock(12, 20, 2, 5, 2))
    config = PhotoConfig(size=96, blocks=blocks, channels=16, classes=(("x",),), projector_size=8)
    paths = []
    for number in range(3):
        paths.append(tmp_path / "media" / f"{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return PhotoEmbed(config, 24), paths


def test_pictures_are_looked_at_once_and_views_are_functions_of_their_names(photos, tmp_path, monkeypatch):
    embed, paths = photos
    change = ImageAugmentation(min_area=0.5, flip=True)
    frozen = FrozenPhotos(embed, change, tmp_path / "cache", LIMITS)
    wanted = [(path, view) for path in paths for view in (0, 1)]
    seen = frozen.batch(wanted)
    assert seen.shape == (6, 26, 16) and not torch.equal(seen[0], seen[1])
    looked: list[int] = []
    monkeypatch.setattr(embed, "look", lambda pixels: looked.append(len(pixels)))
    again = FrozenPhotos(embed, change, tmp_path / "cache", LIMITS)
    torch.testing.assert_close(again.batch(wanted), seen)
    assert looked == []
    fresh = FrozenPhotos(photos[0], change, tmp_path / "elsewhere", LIMITS)
    monkeypatch.undo()
    torch.testing.assert_close(fresh.batch(wanted[1:2]), seen[1:2], atol=2e-2, rtol=2e-2)


def test_rows_have_the_projectors_gradients_and_no_others(photos, tmp_path):
    embed, paths = photos
    rows = FrozenPhotos(embed, ImageAugmentation(), tmp_path / "cache", LIMITS).rows([(paths[0], 0)])
    assert rows[0].shape == (4 + 25, 24)
    rows[0].sum().backward()
    assert embed.projection[0].weight.grad is not None and embed.trunk.stem.weight.grad is None


def test_an_array_stands_for_a_picture_that_was_only_imagined(photos, tmp_path):
    embed, _ = photos
    path = tmp_path / "imagined.npy"
    np.save(path, np.full((26, 16), 0.5, np.float16))
    frozen = FrozenPhotos(embed, ImageAugmentation(), tmp_path / "cache", LIMITS)
    assert frozen.batch([(path, 3)]).unique().tolist() == [0.5]


def test_recordings_of_one_batch_are_heard_as_alone(tmp_path):
    torch.manual_seed(0)
    config = WhisperConfig(
        num_mels=20, hidden_size=16, num_layers=1, num_heads=2, pieces=("a", " b"), projector_size=12
    )
    embed = SoundEmbed(config, 24)
    paths = []
    for number, seconds in enumerate((0.3, 0.71)):
        paths.append(tmp_path / f"{number}.flac")
        noise = np.random.default_rng(number).normal(0, 0.1, int(seconds * 8000))
        soundfile.write(paths[-1], noise, 8000)
    frozen = FrozenSounds(embed, AudioAugmentation(), tmp_path / "cache", LIMITS)
    with torch.no_grad():
        together = frozen.rows([(path, 0) for path in paths])
        alone = [frozen.rows([(path, 0)])[0] for path in paths]
    assert [len(rows) for rows in together] == [4, 9] == [frozen.count(path) for path in paths]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_waveforms_change_as_asked_and_never_clip():
    time = np.arange(16000) / 16000
    tone = (0.5 * np.sin(2 * np.pi * 6000 * time)).astype(np.float32)
    rng = np.random.default_rng
    assert augment_samples(tone, AudioAugmentation(), rng(0)) is not None
    np.testing.assert_array_equal(augment_samples(tone, AudioAugmentation(), rng(0)), tone)
    narrow = augment_samples(tone, AudioAugmentation(narrowband=1.0), rng(0))
    assert len(narrow) == len(tone) and np.abs(narrow[800:-800]).max() < 0.01
    loud = augment_samples(tone, AudioAugmentation(gain=9.0, noise=1.0), rng(4))
    assert np.abs(loud).max() <= 0.9901
    spans = {len(augment_samples(tone, AudioAugmentation(speed=0.2), rng(n))) for n in range(20)}
    assert 13000 < min(spans) < 16000 < max(spans) < 19600
    edges = {len(augment_samples(tone, AudioAugmentation(edge_frames=4), rng(n))) for n in range(40)}
    assert edges <= set(range(16000 - 8 * 160, 16000 + 8 * 160)) and len(edges) > 3


def test_words_are_split_into_the_longest_pieces_and_joined_again():
    pieces = Pieces((" the", "the", " t", "h", "e", "n", " ", "se", "s"))
    assert [pieces.pieces[n] for n in pieces.split("then these")] == [" the", "n", " the", "se"]
    assert pieces.join(pieces.split("then these")) == "then these"
    assert pieces.split("qu!") == pieces.split("")  # what no piece has is left out
