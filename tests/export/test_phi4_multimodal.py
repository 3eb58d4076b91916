"""Phi-4-multimodal in both published layouts, against transformers: text, images, audio, and both, each under
its adapter.

transformers runs the base weights unless told otherwise, so its model of a route has that adapter fused in.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints.write import write_checkpoint
from phi4_published import AFTER, BEFORE, GRID, Clip, Image, fused, published_images
from three_ways import Media, ThreeWays, load_published, load_reference

from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.exporter import export_bundle

pytest.importorskip("transformers", reason="transformers has the published models")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, ranks):
    """The same weights in both layouts, in shards."""
    folder = tmp_path_factory.mktemp("published")
    return {
        family: write_checkpoint(folder / family, family, ranks, shard_bytes=1_000_000)
        for family in ("phi4mm", "phi4_multimodal")
    }


@pytest.fixture(scope="module")
def ways(folders, tmp_path_factory) -> ThreeWays:
    """The original layout exported, beside transformers on its own layout."""
    bundle = export_bundle(folders["phi4mm"], tmp_path_factory.mktemp("bundles") / "bundle", bits=32)
    base = load_published(folders["phi4_multimodal"])
    published = {"none": base} | {
        route: fused(base, folders["phi4_multimodal"] / f"{route}-lora") for route in ("vision", "speech")
    }
    return ThreeWays(folders["phi4mm"], load_reference(folders["phi4mm"]), bundle, published)


def assert_adapter_matters(ways: ThreeWays, pieces, route: str) -> None:
    """The first answer's logits under the route differ from those of the base weights."""
    ids = [i for p in pieces for i in ([p.token] * len(p.reference_rows) if isinstance(p, Media) else [p])]
    rows = torch.from_numpy(np.concatenate([p.reference_rows for p in pieces if isinstance(p, Media)]))
    with torch.no_grad():
        active, base = (ways.reference(torch.tensor([ids]), rows, r)[0, -1] for r in (route, "none"))
    assert (active - base).abs().max() > 0.1


def test_text_is_that_of_transformers(ways):
    ways.assert_equal([*BEFORE, *AFTER])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1, 9, 0)], ids=["1 crop", "5 crops", "padded"])
def test_an_image_is_that_of_transformers_under_the_vision_adapter(ways, shape):
    image = Image(*shape)
    pieces = [*BEFORE, image.media(ways), *AFTER]
    ways.assert_equal(pieces, "vision", published_images(image))
    assert_adapter_matters(ways, pieces, "vision")


def test_two_images_are_those_of_transformers(ways):
    first, second = Image(1, 2, right=7, seed=1), Image(1, 1, seed=2)
    pieces = [*BEFORE, first.media(ways), 8, second.media(ways), *AFTER]
    ways.assert_equal(pieces, "vision", published_images(first, second))


@pytest.mark.parametrize("frames", [61, 333])
def test_audio_is_that_of_transformers_under_the_speech_adapter(ways, frames):
    clip = Clip(frames)
    pieces = [*BEFORE, clip.media(ways, "speech"), *AFTER]
    ways.assert_equal(pieces, "speech", clip.published())
    assert_adapter_matters(ways, pieces, "speech")


def test_audio_past_the_window_is_that_of_transformers(ways):
    clip = Clip(8 * 520)
    media = clip.media(ways, "speech")
    embed = ways.published["none"].model.embed_tokens_extend.audio_embed
    with torch.no_grad():
        rows = embed.down_proj_for_speech(F.gelu(embed.up_proj_for_speech(embed.encoder(clip.frames, None))))
    for ours in (media.reference_rows, media.bundle_rows):
        np.testing.assert_allclose(ours, rows[0].numpy(), atol=1e-4, rtol=0)


def test_image_and_audio_are_those_of_transformers_under_the_vision_adapter_and_projector(ways):
    image, clip = Image(1, 1, seed=3), Clip(200)
    pieces = [*BEFORE, image.media(ways), clip.media(ways, "vision"), *AFTER]
    ways.assert_equal(pieces, "vision", published_images(image) | clip.published())


def test_both_layouts_are_the_same_model(folders):
    original, native = (Checkpoint(folders[family]) for family in ("phi4mm", "phi4_multimodal"))
    assert original.config == native.config
    for name in expected_shapes(original.config):
        np.testing.assert_array_equal(original.tensor(name), native.tensor(name))
    name = "model.layers.1.mlp.gate_up_proj.lora_B.speech.weight"
    np.testing.assert_array_equal(native.rows(name, 100, 300), original.tensor(name)[100:300])


def test_transformers_leaves_routing_to_its_user_and_the_specification_wins(ways):
    # Without an adapter being set, an image runs through the base weights; here it never does.
    image = Image(1, 1, seed=4)
    media = image.media(ways)
    ids = torch.tensor([[*BEFORE, *[media.token] * len(media.reference_rows), *AFTER]])
    rows = torch.from_numpy(media.reference_rows)
    with torch.no_grad():
        unrouted = ways.published["none"](ids, **published_images(image)).logits[0, -1]
        base, routed = (ways.reference(ids, rows, route)[0, -1] for route in ("none", "vision"))
    np.testing.assert_allclose(base, unrouted, atol=1e-4, rtol=0)
    assert (routed - unrouted).abs().max() > 0.1


def test_padded_recordings_differ_in_transformers_and_the_specification_wins(ways):
    # transformers adds its boolean mask to the bias; the original excludes padding, so that a clip in a
    # padded batch comes out as it does alone.
    published = ways.published["none"].model.embed_tokens_extend.audio_embed.encoder
    ours = ways.reference.audio_embed.encoder
    short, long = Clip(80).frames, Clip(240).frames
    padded = F.pad(short, (0, 0, 0, 160))
    padded[:, 80:] = ours.encoder_embedding.global_mean  # what the convolutions pad with, once normalised
    frames = torch.tensor([80, 240])
    mask = torch.arange(240)[None] < frames[:, None]
    with torch.no_grad():
        alone = published(short, None)[0]
        in_published = published(torch.cat((padded, long)), mask)[0, :10]
        in_ours = ours(torch.cat((padded, long)), frames)[0, :10]
    np.testing.assert_allclose(in_ours, alone, atol=1e-4, rtol=0)
    assert (in_published - alone).abs().max() > 1e-2


def test_fused_attention_of_transformers_sees_whole_crops_causally_and_the_specification_wins(ways, folders):
    # Its vision attention calls itself causal, which counts where no mask is passed: in full crops.
    image = Image(1, 1, seed=5)
    towers = [
        model.model.embed_tokens_extend.image_embed.img_processor
        for model in (ways.published["none"], load_published(folders["phi4_multimodal"], "sdpa"))
    ]
    with torch.no_grad():
        plain, causal = (
            tower(image.pixels, patch_attention_mask=image.mask, output_hidden_states=True).hidden_states[-2]
            for tower in towers
        )
        pooled = ways.reference.image_embed.img_processor(image.pixels, image.mask)
    expected = F.avg_pool2d(plain.transpose(1, 2).unflatten(2, (GRID, GRID)), 2).permute(0, 2, 3, 1)
    np.testing.assert_allclose(pooled, expected, atol=1e-4, rtol=0)
    assert (plain - causal).abs().max() > 1
