"""Conversation files that strangers make: bounded before they are understood, believed by nobody else."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from conversing import SHORT, npy, rewritten

from phirt.errors import ConversationError

PICTURE = {"encoder": "vision", "key": "0" * 64, "tokens": 1024, "inputs": {}, "projectors": ["image"]}
NO_CACHE = {"ids": [], "route": "none", "long": False, "spans": []}


def write_bomb(model, path, document: dict, parts=()):
    """A made-up conversation with one picture as large as the context."""
    whole = {
        "format": "phirt-conversation",
        "version": 2,
        "bundle": model.manifest.fingerprint,
        "system": None,
        "tools": None,
        "messages": [],
        "media": [PICTURE],
        "cache": NO_CACHE,
        **document,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conversation.json", json.dumps(whole))
        archive.writestr("media/0/image.npy", npy(np.zeros((1024, 32), np.float32), version=(1, 0)))
        for name in parts:
            archive.writestr(name, "")
    return path


def turn(media=(), token_ids=None, role="user") -> dict:
    return {"role": role, "content": "x", "media": list(media), "ids": token_ids}


MANY_SPANS = {**NO_CACHE, "route": "vision", "spans": [{"start": 0, "media": 0}] * 4000}
HUGE_INPUT = {**PICTURE, "projectors": [], "inputs": {"pixel_values": [1 << 31] * 16}}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"messages": [turn([0] * 300_000)]}, "'media' is .* 0 to 1024 of them"),
        ({"messages": [turn([0] * 1000)]}, "need more than the context of 1024 tokens"),
        ({"messages": [turn([0]), turn([0])]}, r"messages\[1\].*need more than the context"),
        ({"messages": [turn([0])] * 50_000}, "is larger than 1179648 bytes"),
        ({"messages": [turn(token_ids=[20] * 1025, role="assistant")]}, "'ids' is .* 0 to 1024 of them"),
        ({"messages": [turn(token_ids=[20] * 600, role="assistant")] * 2}, "need more than the context"),
        ({"cache": {**NO_CACHE, "ids": [20] * 100_000}}, "'ids' is"),
        ({"messages": [turn([0])], "cache": MANY_SPANS}, "the media take more than the context"),
        ({"system": "x" * 3_000_000}, "is larger than"),
        ({"media": [{**PICTURE, "projectors": []}] * 5000}, "'media' is"),
        ({"media": [HUGE_INPUT]}, "KeyError|There is no item|pixel_values"),
    ],
)
def test_attack_06_what_names_more_than_the_context_holds_is_refused(model, tmp_path, document, expected):
    with pytest.raises(ConversationError, match=expected):
        model.load_chat(write_bomb(model, tmp_path / "bomb", document))


def test_a_picture_as_large_as_the_context_may_be_restored(model, tmp_path):
    assert len(model.load_chat(write_bomb(model, tmp_path / "x", {"messages": [turn([0])]})).messages) == 1


def test_a_directory_of_very_many_parts_is_not_read(model, tmp_path):
    path = write_bomb(model, tmp_path / "bomb", {}, parts=[f"{number:0100}" for number in range(15_000)])
    with pytest.raises(ConversationError, match=r"its directory has \d+ bytes, at most 2097152 are read"):
        model.load_chat(path)
    with pytest.raises(ConversationError, match="cannot be saved to: its directory has"):
        model.chat().save(path)


def test_what_a_file_says_is_cached_serves_its_own_conversation_only(model, tmp_path):
    """The forged keys and values belong to the very ids that another chat asks for."""
    system = "word " * 40
    chat = model.chat(system=system)
    expected = chat.send("hi", config=SHORT).result
    chat.save(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        names = [name for name in archive.namelist() if name.startswith("cache/")]
        cached = {name: np.load(io.BytesIO(archive.read(name))) for name in names}
    zeros = {name: npy(np.zeros_like(array), version=(1, 0)) for name, array in cached.items()}
    model.generator.pool.clear()
    restored = model.load_chat(rewritten(tmp_path / "x", tmp_path / "y", arrays=zeros))
    fork = restored.fork()
    assert restored.send("and now?", config=SHORT).result.usage.cached_tokens > 128
    assert fork.send("and now?", config=SHORT).result.usage.cached_tokens > 128
    result = model.chat(system=system).send("hi", config=SHORT).result
    assert (result.usage.cached_tokens, result.token_ids) == (0, expected.token_ids)


def test_a_conversation_that_is_too_long_to_be_read_back_is_not_saved(model, tmp_path):
    with pytest.raises(ConversationError, match="texts are too long to be saved"):
        model.chat(system=" " * 2_000_000).save(tmp_path / "x")
