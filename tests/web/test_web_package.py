"""Packages for browsers and Node answer their golden conversations with the same ids in Node; damaged ones
end in one line; chats keep what they promise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from web_host import Host, native_tests

import phirt
from phirt.bundle.files import require_intact
from phirt_export.mobile.package import write_package
from phirt_export.mobile.profiles import read_profile

native = native_tests("test_native_package")
_CASES = 7


@pytest.mark.parametrize("runtime", ["node", "wasm"])
def test_every_golden_conversation(host: Host, nano_package: Path, runtime: str) -> None:
    """The same code on onnxruntime-node and on onnxruntime-web's WebAssembly, here outside of a browser."""
    done = host.node("golden", nano_package, 1, runtime)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{_CASES} of {_CASES} identical" in done.stdout


def test_no_weight_is_a_branchs(nano_package: Path) -> None:
    manifest = json.loads((nano_package / "manifest.json").read_text("utf-8"))
    for graph in manifest["graphs"].values():
        model = onnx.load(nano_package / graph["file"], load_external_data=False)
        inner = [node for node in model.graph.node for one in node.attribute if one.HasField("g")]
        assert graph["file"] != "decoder.onnx" or inner  # the adapters are still branches
        for node in inner:
            for attribute in node.attribute:
                assert not attribute.g.initializer
        assert {one.location for one in _external(model)} == set(graph["data"])


def _external(model: onnx.ModelProto) -> list[Any]:
    found = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert found
    return [onnx.external_data_helper.ExternalDataInfo(tensor) for tensor in found]


def test_a_package_is_a_bundle(nano_package: Path) -> None:
    """phirt itself opens it, and answers as before."""
    require_intact(nano_package)
    cases = json.loads((nano_package / "golden.json").read_text("utf-8"))["cases"]
    with phirt.load(nano_package) as model:
        for case in cases[:2]:
            turn, chat = case["turns"][0], model.chat(case["system"])
            result = chat.send(turn["text"], max_new_tokens=turn["max_new_tokens"]).result
            assert list(result.token_ids) == turn["ids"]


def test_a_package_of_a_package(nano_package: Path, tmp_path: Path) -> None:
    """What was made for the first target is made anew, and listed as it is now."""
    write_package(nano_package, tmp_path / "phone", read_profile("android"), 1 << 30, lambda _: None)
    require_intact(tmp_path / "phone")
    assert json.loads((tmp_path / "phone" / "host.json").read_text("utf-8"))["target"] == "android"


def test_the_example(host: Host, nano_package: Path) -> None:
    picture = nano_package / "golden-shapes.ppm"
    done = host.node("examples/ask.mjs", nano_package, picture, "What is this?")
    assert done.returncode == 0, done.stderr
    with phirt.load(nano_package) as model:
        wanted = model.chat().send("What is this?", images=[picture], max_new_tokens=200).text()
    assert done.stdout == wanted
    assert len((host.folder / "examples" / "ask.mjs").read_text("utf-8").splitlines()) <= 42
    none = host.node("examples/ask.mjs", nano_package / "nothing", "Hello")
    assert none.returncode == 1
    assert none.stderr.startswith("error: ") and none.stderr.count("\n") == 1


def _greedy(tokens: int) -> dict[str, Any]:
    return {"maxNewTokens": tokens, "temperature": 0}


def test_media_over_several_turns_as_phirt(host: Host, nano_package: Path) -> None:
    """Text, a picture, a recording, text: adapters change on the way, and each time all is read anew."""
    picture, clip = nano_package / "golden-shapes.ppm", nano_package / "golden-voice.wav"
    turns: list[dict[str, Any]] = [
        {"text": "Hello!"},
        {"text": "What is this?", "image": str(picture)},
        {"text": "What do you hear?", "audio": str(clip)},
        {"text": "Thank you!"},
        {"text": "Bye."},
    ]
    found = host.converse(nano_package, [{**turn, "settings": _greedy(6)} for turn in turns])
    with phirt.load(nano_package, threads=1) as model:
        chat = model.chat()
        for turn, ours in zip(turns, found, strict=True):
            media = {"images": [turn["image"]]} if "image" in turn else {}
            media |= {"audio": [turn["audio"]]} if "audio" in turn else {}
            result = chat.send(turn["text"], max_new_tokens=6, speculation=False, **media).result
            assert ours["promptIds"] == list(result.prompt_token_ids)
            assert ours["ids"] == list(result.token_ids), turn
            assert (ours["adapter"], ours["finishReason"]) == (result.adapter, result.finish_reason)
    assert [turn["adapter"] for turn in found] == ["none", *["vision"] * 4]
    assert found[1]["cachedTokens"] == 0 and found[2]["cachedTokens"] > 0 and found[4]["cachedTokens"] > 0


def test_an_answer_can_be_stopped_left_and_gone_on_from(host: Host, nano_package: Path) -> None:
    text = "Tell me about the sea."
    whole, stopped, left, after, none = host.converse(
        nano_package,
        [
            {"text": text, "settings": _greedy(12)},
            {"reset": True},
            {"text": text, "settings": _greedy(12), "stopAfter": 2},
            {"reset": True},
            {"text": text, "settings": _greedy(12), "leaveAfter": 3, "meanwhile": "And you?"},
            {"text": "Go on.", "settings": _greedy(4)},
            {"text": text, "settings": _greedy(12), "stopAfter": 0},
        ],
    )
    assert whole["finishReason"] == "stop" and len(whole["ids"]) > 4
    assert "".join(whole["pieces"]) == whole["text"]
    assert stopped["finishReason"] == left["finishReason"] == "cancelled"
    assert stopped["pieces"] == whole["pieces"][:2] and left["pieces"] == whole["pieces"][:3]
    assert left["refused"]["error"] == "ChatBusyError" and "stop it" in left["refused"]["message"]
    at = after["promptIds"].index(left["ids"][0])
    assert after["promptIds"][at : at + len(left["ids"])] == left["ids"]  # the history goes as far as it came
    assert after["cachedTokens"] >= len(left["promptIds"])
    assert (none["ids"], none["finishReason"]) == ([], "cancelled")


def test_a_conversation_goes_on_when_there_was_no_room(host: Host, nano_package: Path) -> None:
    """What was cached is lost with the room that it had, and read again."""
    first, last = ({"text": text, "settings": _greedy(6)} for text in ("Tell me about the sea.", "Go on."))
    long = {"text": "word " * 300, "settings": _greedy(6), "hasNoRoom": True}
    told, refused, found, again, wanted = host.converse(
        nano_package, [first, long, last, {"reset": True}, first, last]
    )
    assert refused["error"] == "MemoryError" and "keys and values" in refused["message"]
    assert (told["ids"], found["ids"]) == (again["ids"], wanted["ids"])
    assert found["cachedTokens"] == 0 < wanted["cachedTokens"]


def test_an_answer_is_stopped_before_its_media_are_encoded(host: Host, nano_package: Path) -> None:
    """And the next one encodes them."""
    picture = str(nano_package / "golden-shapes.ppm")
    turn = {"text": "What is this?", "image": picture, "settings": _greedy(4)}
    stopped, after = host.converse(
        nano_package, [{**turn, "stopAfter": 0}, {"text": "Well?", "settings": _greedy(4)}]
    )
    assert (stopped["promptIds"], stopped["ids"], stopped["finishReason"]) == ([], [], "cancelled")
    assert after["adapter"] == "vision" and len(after["ids"]) > 0


def test_draws_are_those_of_the_seed(host: Host, nano_package: Path) -> None:
    turn = {"text": "Hello!", "settings": {"maxNewTokens": 8, "temperature": 1.5, "topK": 50, "seed": 7}}
    other = {**turn, "settings": {**turn["settings"], "seed": 8}}
    first, second, third = host.converse(nano_package, [turn, {"reset": True}, turn, {"reset": True}, other])
    assert first["ids"] == second["ids"] != third["ids"]


@pytest.mark.parametrize(
    ("turn", "error", "message"),
    [
        ({"settings": {"temperature": -1}}, "ArgumentError", "temperature is -1, accepted: a number from 0"),
        ({"settings": {"maxNewTokens": 0.5}}, "ArgumentError", "accepted: a whole number from 1"),
        ({"settings": {"topP": 0}}, "ArgumentError", "topP is 0, accepted: a number above 0"),
        ({"text": "word " * 4000}, "ContextError", "the model's context has 2048; shorten it"),
        ({"audio": "silence.wav"}, "MediaError", "the recording is silent"),
        ({"audio": "minutes.wav"}, "MediaError", "the limit of this model is 60; cut it into parts"),
        ({"audio": "broken.wav"}, "MediaError", "no whole WAV file"),
        ({"image": "thin.ppm"}, "MediaError", "each side needs at least 10"),
        ({"image": "broken.ppm"}, "MediaError", "no whole PPM file"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    host: Host, nano_package: Path, tmp_path: Path, turn: dict[str, Any], error: str, message: str
) -> None:
    _write_media(tmp_path)
    asked = {"text": "Hello!", **turn}
    for kind in {"image", "audio"} & asked.keys():
        asked[kind] = str(tmp_path / asked[kind])
    refused, well = host.converse(nano_package, [asked, {"text": "Hello!", "settings": _greedy(2)}])
    assert refused["error"] == error
    assert message in refused["message"] and "\n" not in refused["message"]
    assert len(well["ids"]) == 2  # and the chat goes on


def _write_media(folder: Path) -> None:
    head = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data"
    (folder / "silence.wav").write_bytes(head + (16000).to_bytes(4, "little") + bytes(16000))
    minutes = b"\0\x20" * 61 * 16000
    (folder / "minutes.wav").write_bytes(head + len(minutes).to_bytes(4, "little") + minutes)
    (folder / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    (folder / "thin.ppm").write_bytes(b"P6\n100 3\n255\n" + bytes(900))
    (folder / "broken.ppm").write_bytes(b"P6\n100 100\n255\n" + bytes(10))


_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = native.DAMAGES | {
    "no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff{}"), "no text in UTF-8"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "an object"),
    "a picture from elsewhere": (
        native.json_change("golden.json", lambda d: d["cases"][3]["turns"][0].update(image="../x.ppm")),
        "one of the package's files",
    ),
    "no graph": (native.DAMAGES["no graph"][0], "onnxruntime failed at opening decoder.onnx"),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_what_is_damaged_is_refused_in_one_line(
    host: Host, nano_package: Path, tmp_path: Path, name: str
) -> None:
    damage, message = _DAMAGES[name]
    folder = tmp_path / "package"
    shutil.copytree(nano_package, folder)
    damage(folder)
    done = host.node("golden", folder, 1)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert message in lines[-1] and lines[-1].startswith("error: ")
