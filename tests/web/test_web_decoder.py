"""The decoder of the host for JavaScript where a conversation grows past the model's original context, with
keys and values in 8 bits, and where the context is full: ids beside phirt's own, with random weights. The
package is one for phones, which Node opens as well.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from web_host import Host, native_tests

import phirt

native = native_tests("test_native_decoder")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    sentences = folder / "sentences.txt"
    sentences.write_text("\n".join(native._QUESTIONS * 4), "utf-8")
    made: Path = native._package(folder, bits=32, kv="int8", calibration=[sentences])
    return made


def test_past_the_original_context_with_keys_and_values_in_8_bits(host: Host, package: Path) -> None:
    """The rotary factors change in the midst of an answer, and between two."""
    known = native._conversation(package, 40)
    lengths = [len(turn["prompt_ids"]) for turn in known["turns"]]
    assert lengths[0] < 128 < lengths[-1]
    settings = {"maxNewTokens": 40, "temperature": 0}
    found = host.converse(package, [{"text": turn["text"], "settings": settings} for turn in known["turns"]])
    for turn, ours in zip(known["turns"], found, strict=True):
        assert (ours["promptIds"], ours["ids"]) == (turn["prompt_ids"], turn["ids"])


def test_what_stays_on_a_gpu(host: Host) -> None:
    """Keys and values in 8 bits have no place there in onnxruntime-web."""
    jobs = [
        {"cache": "float32", "provider": "webgpu"},
        {"cache": "int8", "provider": "webgpu"},
        {"cache": "float32", "provider": "wasm"},
    ]
    assert host.parts(jobs) == [["present"], [], []]


def test_a_reply_that_failed_fails_again(host: Host) -> None:
    assert host.parts([{"failing": "no memory"}]) == [["no memory"] * 3]


def test_a_full_context_ends_an_answer(host: Host, package: Path, tmp_path: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text("utf-8"))
    manifest["limits"]["context"] = 40
    shutil.copytree(package, tmp_path, dirs_exist_ok=True)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with phirt.load(tmp_path, threads=1) as model:
        result = model.chat().send("Hello", max_new_tokens=100, speculation=False).result
    (found,) = host.converse(
        tmp_path, [{"text": "Hello", "settings": {"maxNewTokens": 100, "temperature": 0}}]
    )
    assert found["finishReason"] == result.finish_reason == "context"
    assert found["ids"] == list(result.token_ids)
