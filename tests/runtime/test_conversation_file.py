"""Saved conversations: going on equals never having stopped; nothing is lost; hostile files are refused."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import zipfile

import numpy as np
import pytest
from conversing import engine_of, npy, rewritten
from tiny_bundle import Tiny, write_bundle

import phirt
from phirt import GenerationConfig
from phirt.errors import ChatBusyError, ConversationError
from phirt.generate.engine import Engine
from phirt.runtime.session import LazySession

SHORT = GenerationConfig(max_new_tokens=8, seed=1)  # repeatable, as for what is drafted


@pytest.fixture
def chat(model, photo, clip):
    """A conversation that has seen a picture and heard a clip."""
    chat = model.chat(system="be kind", tools=[{"name": "f"}])
    chat.send("hear", audio=[clip], config=SHORT).text()
    chat.send("see", images=[photo], config=SHORT).text()
    return chat


def test_going_on_equals_never_having_stopped(model, chat, tmp_path, monkeypatch):
    path = tmp_path / "talk.phirt"
    chat.save(path)
    restored = model.load_chat(path)
    assert [(m.role, m.content, m.token_ids) for m in restored.messages] == [
        (m.role, m.content, m.token_ids) for m in chat.messages
    ]
    assert (restored.system, restored.tools, restored.adapter) == (chat.system, chat.tools, "vision")
    expected = chat.send("go on", config=SHORT).result
    ran = []
    run = Engine._run_chunk
    monkeypatch.setattr(
        Engine, "_run_chunk", lambda self, ids, rows: (ran.append(len(ids)), run(self, ids, rows))[1]
    )
    monkeypatch.setattr(LazySession, "run", lambda *_: pytest.fail("an encoder ran again"))
    result = restored.send("go on", config=SHORT).result
    assert (result.token_ids, result.text, result.usage) == (
        expected.token_ids,
        expected.text,
        expected.usage,
    )
    assert sum(ran) == len(result.prompt_token_ids) - result.usage.cached_tokens
    assert result.usage.cached_tokens > 59


def test_audio_can_take_another_projector_after_restoring(model, clip, photo, tmp_path):
    chat = model.chat()
    chat.send("hear", audio=[clip], config=SHORT).text()
    chat.save(tmp_path / "x")
    restored = model.load_chat(tmp_path / "x")
    model.generator.encoder.cache.clear()
    expected = chat.send("see", images=[photo], config=SHORT).result
    model.generator.encoder.cache.clear()
    assert restored.send("see", images=[photo], config=SHORT).result.token_ids == expected.token_ids


def test_an_empty_conversation_is_saved_too(model, tmp_path):
    model.chat(system="x").save(tmp_path / "x")
    restored = model.load_chat(tmp_path / "x")
    assert (restored.messages, restored.system) == ((), "x")
    assert (
        restored.send("hi", config=SHORT).result.token_ids
        == model.chat(system="x").send("hi", config=SHORT).result.token_ids
    )


def test_lone_surrogates_that_were_typed_come_back(model, tmp_path):
    chat = model.chat(system="a\ud800", tools=[{"name": "f", "description": "\udfff"}])
    chat.send("\udcff", config=SHORT).text()
    chat.save(tmp_path / "typed.phirt")
    restored = model.load_chat(tmp_path / "typed.phirt")
    assert (restored.system, restored.messages[0].content) == ("a\ud800", "\udcff")
    assert restored.send("go on", config=SHORT).text() == chat.send("go on", config=SHORT).text()


def test_a_long_role_is_refused_in_a_short_line(model, chat, tmp_path):
    path = tmp_path / "talk.phirt"
    chat.save(path)

    def long_role(document):
        document["messages"][0]["role"] = "a" * 10_000

    changed = rewritten(path, tmp_path / "changed.phirt", document=long_role)
    with pytest.raises(ConversationError, match="role 'aaa") as caught:
        model.load_chat(changed)
    assert len(str(caught.value)) < 500


def test_saving_ends_a_cancelled_reply_and_no_other(model, tmp_path):
    chat = model.chat()
    reply = chat.send("talk", config=GenerationConfig(max_new_tokens=400))
    next(reply)
    with pytest.raises(ChatBusyError):
        chat.save(tmp_path / "x")
    reply.cancel()
    chat.save(tmp_path / "x")
    assert reply.result.finish_reason == "cancelled"
    assert model.load_chat(tmp_path / "x").messages[1].token_ids == reply.result.token_ids


def test_turns_taken_back_are_not_in_the_file(model, photo, tmp_path):
    chat = model.chat()
    chat.send("one", config=SHORT).text()
    chat.send("a secret phrase", images=[photo], config=SHORT).text()
    chat.rewind()
    chat.save(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        assert not [name for name in archive.namelist() if name.startswith("media")]
        document = json.loads(archive.read("conversation.json"))
    assert "secret" not in json.dumps(document)
    assert document["cache"]["ids"] == []
    assert model.load_chat(tmp_path / "x").send("x", config=SHORT).result.usage.new_tokens == 8


def test_a_conversation_in_the_long_regime_goes_on(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    model = phirt.load(
        write_bundle(folder, Tiny(context=256, original_context=48, long=4.0), vision=False, speech=False),
        threads=1,
    )
    chat = model.chat()
    chat.send("a question that is long enough to cross the border of the rotary regime", config=SHORT).text()
    chat.save(tmp_path / "x")
    restored = model.load_chat(tmp_path / "x")
    assert engine_of(restored).long_regime
    expected = chat.send("on", config=SHORT).result
    result = restored.send("on", config=SHORT).result
    assert (result.token_ids, result.usage) == (expected.token_ids, expected.usage)
    assert result.usage.cached_tokens > 48


def test_a_full_context_can_be_saved_and_read(model, tmp_path):
    chat = model.chat()
    chat.send("x" * 1000).text()
    chat.save(tmp_path / "x")
    assert model.load_chat(tmp_path / "x").messages[0].content == "x" * 1000


def test_a_full_disk_keeps_the_older_file(model, chat, tmp_path):
    path = tmp_path / "talk.phirt"
    model.chat().save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5000, hard))
    try:
        with pytest.raises(ConversationError, match=r"cannot be saved to .*what was there is unchanged"):
            chat.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["talk.phirt"]
    chat.save(path)
    assert len(model.load_chat(path).messages) == 4


def test_no_space_at_the_last_moment(model, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConversationError, match="No space left on device"):
        model.chat().save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(model, tmp_path):
    for place in (tmp_path / "missing" / "x", tmp_path):
        with pytest.raises(ConversationError, match=r"cannot be saved|is no saved conversation"):
            model.chat().save(place)


def test_another_bundle_is_refused(model, chat, tmp_path, bundle):
    chat.save(tmp_path / "x")
    other = shutil.copytree(bundle, tmp_path / "other")
    document = json.loads((other / "manifest.json").read_text())
    document["description"] = "not the same"
    (other / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ConversationError, match="was held with another bundle than 'tiny'"):
        phirt.load(other, threads=1).load_chat(tmp_path / "x")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda d: d.update(version=9), "version 9 is not known, accepted: 1, 2; update phirt"),
        (lambda d: d.update(format="x"), "format is 'x'"),
        (lambda d: d.pop("messages"), "'messages' is missing"),
        (lambda d: d["messages"][0].update(role="root"), "role 'root' is not known"),
        (lambda d: d["messages"][0].update(media=[5]), "'media'"),
        (lambda d: d["messages"][0].update(content=None), "'content'"),
        (lambda d: d["messages"][1].update(ids=[512]), "'ids'"),
        (lambda d: d["messages"][1].update(ids=[1]), "media placeholders"),
        (lambda d: d["messages"][1].update(ids=[2**70]), "'ids'"),
        (lambda d: d["media"][0].update(tokens=10**9), "'tokens'"),
        (lambda d: d["media"][0].update(tokens=7), "is no float32 array of .7, 32"),
        (lambda d: d["media"][0].update(encoder="video"), "'encoder' 'video' is none of the bundle's"),
        (lambda d: d["media"][0].update(projectors=["../../x"]), "projector '../../x'"),
        (lambda d: d["media"][1].update(projectors=[]), "neither the encoder's inputs nor all features"),
        (lambda d: d["cache"].update(route="fast"), "route is 'fast', the conversation takes 'vision'"),
        (lambda d: d["cache"].update(spans=[]), "do not stand at their placeholders"),
        (lambda d: d["cache"]["spans"][0].update(start=0), "do not stand at their placeholders"),
        (lambda d: d["cache"]["spans"][0].update(media=7), "'media'"),
        (lambda d: d["cache"]["ids"].append(20), "is no float32 array"),
        (lambda d: d["cache"].update(ids=[20] * 2000), "'ids'"),
    ],
)  # fmt: skip
def test_altered_documents_are_refused(model, chat, tmp_path, edit, expected):
    chat.save(tmp_path / "x")
    with pytest.raises(ConversationError, match=expected):
        model.load_chat(rewritten(tmp_path / "x", tmp_path / "y", document=edit))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, "neither the encoder's inputs nor all features"),
        ({"audio_embeds": [1, 47, 80]}, r"audio_embeds\.npy is no float32 array of .1, 47, 80"),
        ({"audio_embeds": [1, 2**40, 80]}, "'inputs'.*1.* is 1099511627776, expected a whole number"),
        ({"audio_embeds": [2**31, 2**31, 2**31]}, "is no float32 array"),
        ({"audio_embeds": [48, 80]}, "is no float32 array"),
        ({"other": [1]}, "inputs other are none of the encoder's"),
    ],
)
def test_altered_inputs_of_an_encoder_are_refused(model, clip, tmp_path, inputs, expected):
    model.generator.encoder.cache.clear()
    chat = model.chat()
    chat.send("hear", audio=[clip], config=SHORT).text()
    chat.save(tmp_path / "x")
    with pytest.raises(ConversationError, match=expected):
        model.load_chat(
            rewritten(tmp_path / "x", tmp_path / "y", document=lambda d: d["media"][0].update(inputs=inputs))
        )


def test_what_a_file_says_about_media_is_believed_in_its_own_conversation_only(model, clip, photo, tmp_path):
    """Otherwise a stranger's file could give other chats of the process other pictures than they sent."""
    model.generator.encoder.cache.clear()
    chat = model.chat()
    chat.send("hear", audio=[clip], config=SHORT).text()
    chat.save(tmp_path / "x")
    other = npy(np.zeros((1, 48, 80), dtype=np.float32))
    forged = rewritten(tmp_path / "x", tmp_path / "y", arrays={"media/0/inputs/audio_embeds.npy": other})
    model.generator.encoder.cache.clear()
    model.load_chat(forged).send("see", images=[photo], config=SHORT).text()
    found = model.generator.encoder.prepare("audio", clip)
    assert found.inputs["audio_embeds"].any() and not found.features


def as_version_1(document: dict) -> None:
    """The document as the first version wrote it."""
    document["version"] = 1
    for item in document["media"]:
        item["kind"] = {"vision": "image", "speech": "audio"}[item.pop("encoder")]
        item["frames"] = item.pop("inputs").get("audio_embeds", [1, 0])[1]


def test_files_of_version_1_go_on(model, clip, photo, tmp_path):
    """Frames of a recording lay in `inputs.npy` without a batch; media were named by what they are."""
    model.generator.encoder.cache.clear()
    chat = model.chat()
    chat.send("hear", audio=[clip], config=SHORT).text()
    chat.save(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        frames = np.load(io.BytesIO(archive.read("media/0/inputs/audio_embeds.npy")))[0]
    old = rewritten(
        tmp_path / "x",
        tmp_path / "y",
        document=as_version_1,
        arrays={"media/0/inputs/audio_embeds.npy": None, "media/0/inputs.npy": npy(frames)},
    )
    restored = model.load_chat(old)
    model.generator.encoder.cache.clear()
    expected = chat.send("see", images=[photo], config=SHORT).result
    model.generator.encoder.cache.clear()
    result = restored.send("see", images=[photo], config=SHORT).result
    assert (result.token_ids, result.usage) == (expected.token_ids, expected.usage)


def test_altered_arrays_are_refused(model, chat, tmp_path):
    chat.save(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        whole = np.load(io.BytesIO(archive.read("cache/0.key.npy")))
    huge = npy(whole).replace(b"'shape': (1, 2, ", b"'shape': (9, 2, ")
    cases = {
        "missing": None,
        "pickled": npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
        "float64": npy(whole.astype(np.float64)),
        "fortran": npy(np.asfortranarray(whole)),
        "short": npy(whole)[:-4],
        "long": npy(whole) + b"\0\0\0\0",
        "shape": huge,
        "version 2": npy(whole, version=(2, 0)),
        "no array": b"hello",
        "empty": b"",
    }
    for name, data in cases.items():
        target = rewritten(tmp_path / "x", tmp_path / "y", arrays={"cache/0.key.npy": data})
        with pytest.raises(ConversationError) as refused:
            model.load_chat(target)
        assert "cache/0.key.npy" in str(refused.value), name


def test_compressed_parts_are_refused(model, chat, tmp_path):
    chat.save(tmp_path / "x")
    with pytest.raises(ConversationError, match="compressed parts"):
        model.load_chat(rewritten(tmp_path / "x", tmp_path / "y", compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18])
def test_files_that_are_no_conversation(model, tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConversationError):
        model.load_chat(tmp_path / "x")


def test_missing_files_and_folders(model, tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConversationError, match="is no file"):
            model.load_chat(place)


def test_a_file_cut_anywhere_is_refused(model, chat, tmp_path):
    chat.save(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "y").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ConversationError):
            model.load_chat(tmp_path / "y")


def test_flipped_bytes_are_refused_or_harmless(model, chat, tmp_path):
    chat.save(tmp_path / "x")
    data = bytearray((tmp_path / "x").read_bytes())
    refused = 0
    for position in np.random.default_rng(0).integers(0, len(data), 60):
        altered = bytearray(data)
        altered[position] ^= 0xFF
        (tmp_path / "y").write_bytes(altered)
        try:
            model.load_chat(tmp_path / "y")
        except ConversationError:
            refused += 1
    assert refused > 50


def test_saving_replaces_a_conversation_and_nothing_else(model, tmp_path):
    chat = model.chat()
    for name in ("photo.jpg", "other.zip"):
        path = tmp_path / name
        if name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("letter.txt", "mine")
        else:
            path.write_bytes(b"\xff\xd8 a photo")
        before = path.read_bytes()
        with pytest.raises(ConversationError, match="exists and is no saved conversation"):
            chat.save(path)
        assert path.read_bytes() == before
    chat.save(tmp_path / "talk")
    chat.save(tmp_path / "talk")
    assert model.load_chat(tmp_path / "talk").messages == ()


@pytest.mark.parametrize(
    "header", ["((((", "{'descr': '<f4', 'shape': (", "{1:2,'a':3}", "{[]:1}", " {\n\t'descr': 1}"]
)
def test_hostile_headers_are_refused(model, chat, tmp_path, header):
    chat.save(tmp_path / "x")
    packed = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64
    target = rewritten(tmp_path / "x", tmp_path / "y", arrays={"cache/0.key.npy": packed})
    with pytest.raises(ConversationError, match=r"cache/0\.key\.npy"):
        model.load_chat(target)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_caches_of_no_numbers_are_refused(model, chat, tmp_path, value):
    chat.save(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        array = np.load(io.BytesIO(archive.read("cache/0.key.npy")))
    array.flat[3] = value
    target = rewritten(tmp_path / "x", tmp_path / "y", arrays={"cache/0.key.npy": npy(array)})
    with pytest.raises(ConversationError, match="no numbers"):
        model.load_chat(target)


def test_a_damaged_directory_stops_neither_loading_nor_saving_unclearly(model, chat, tmp_path):
    chat.save(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    directory = data.index(b"PK\x01\x02")
    refused = 0
    for position in np.random.default_rng(0).integers(directory, len(data), 150):
        altered = bytearray(data)
        altered[position] ^= 0xFF
        for act in (model.load_chat, chat.save):
            (tmp_path / "y").write_bytes(altered)
            try:
                act(tmp_path / "y")
            except ConversationError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_impossible_names_are_refused(model, chat, tmp_path, name):
    with pytest.raises(ConversationError):
        chat.save(tmp_path / name)
    with pytest.raises(ConversationError):
        model.load_chat(tmp_path / name)


def test_a_fork_that_encodes_meanwhile_changes_no_saved_file(bundle, clip, tmp_path, monkeypatch):
    """Media are shared: what one chat lets go of while another is written must not be missing there."""
    describe = phirt.chat.store._describe
    model = phirt.load(bundle, threads=1)  # one that has not encoded the clip for an earlier test already
    chat = model.chat()
    chat.send("hear", audio=[clip], config=SHORT).text()

    def and_then_a_fork_encodes(*arguments):
        document = describe(*arguments)
        for message in chat.messages:
            for item in message.media:
                assert item.inputs is not None
                item.features["vision"] = item.features["speech"]
                item.inputs = None
        return document

    monkeypatch.setattr("phirt.chat.store._describe", and_then_a_fork_encodes)
    chat.save(tmp_path / "talk")
    monkeypatch.undo()
    assert [m.content for m in model.load_chat(tmp_path / "talk").messages] == [
        m.content for m in chat.messages
    ]
