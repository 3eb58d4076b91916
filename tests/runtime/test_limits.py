"""Limits come with the bundle; whoever loads it lowers or raises them."""

from __future__ import annotations

import dataclasses

import pytest

import phirt
from phirt.bundle.files import load_manifest
from phirt.bundle.limits import with_limits
from phirt.encoders.media_encoder import MediaEncoder
from phirt.errors import ConfigError, MediaError
from phirt.runtime.device import Device
from phirt.runtime.session import SessionConfig


def test_nothing_changes_where_nothing_is_said(bundle):
    manifest = load_manifest(bundle)
    assert with_limits(manifest, None) == with_limits(manifest, {}) == manifest


def test_limits_can_be_lowered_and_raised(bundle, photo, clip):
    manifest = load_manifest(bundle)
    low = MediaEncoder(
        with_limits(manifest, {"image_pixels": 1499, "audio_seconds": 0.4}), SessionConfig(Device.cpu(1))
    )
    with pytest.raises(MediaError, match="1499"):
        low.prepare("image", photo)
    with pytest.raises(MediaError, match=r"longer than 0\.4 seconds"):
        low.prepare("audio", clip)
    high = with_limits(manifest, {"audio_seconds": 3600, "media_bytes": 1 << 30})
    assert (high.limits.audio_seconds, high.limits.media_bytes) == (3600.0, 1 << 30)
    assert high.limits.image_pixels == manifest.limits.image_pixels


def test_loading_sets_limits(bundle, photo, clip):
    with phirt.load(bundle, threads=1, limits={"image_pixels": 100, "context": 64}) as model:
        assert model.manifest.geometry.context == 64
        with pytest.raises(MediaError, match="the limit is 100"):
            model.chat().send("x", images=[photo])
        with pytest.raises(phirt.ContextError, match="context has 64"):
            model.chat().send("x " * 70)
        result = model.chat().send("hi", max_new_tokens=100).result
        assert (result.finish_reason, len(result.token_ids) + len(result.prompt_token_ids)) in (
            ("context", 65),
            ("stop", len(result.token_ids) + len(result.prompt_token_ids)),
        )
    with pytest.raises(ConfigError, match="'pixels' is not known here"):
        phirt.load(bundle, limits={"pixels": 5})


def test_a_limited_context_is_the_decoder_s_own_from_then_on(bundle):
    manifest = load_manifest(bundle)
    limited = with_limits(manifest, {"context": 100})
    assert (limited.geometry.context, limited.limits.context) == (100, 100)
    exported = dataclasses.replace(manifest, limits=dataclasses.replace(manifest.limits, context=200))
    assert with_limits(exported, None).geometry.context == 200
    assert with_limits(exported, {"context": 1024}).geometry.context == 1024  # up to what the graph can do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pixels": 5},
            "'pixels' is not known here, accepted: image_pixels, audio_seconds, media_bytes",
        ),
        ({"image_pixels": 0}, "'image_pixels' is 0, expected a whole number from 1"),
        ({"image_pixels": 1.5}, "'image_pixels' is 1.5, expected a whole number"),
        ({"audio_seconds": "long"}, "'audio_seconds' is 'long', expected a number"),
        ({"context": 1025}, "context 1025 is more than the decoder's 1024 positions"),
        ({"context": True}, "'context' is True"),
        ({5: 1}, "5 is not known here"),
        ([("context", 5)], "limits is a list, accepted: a dict"),
        ("context", "limits is a str, accepted: a dict"),
    ],
)
def test_what_is_no_limit_is_refused(bundle, changes, message):
    with pytest.raises(ConfigError) as refused:
        with_limits(load_manifest(bundle), changes)
    assert message in str(refused.value)
