"""The decoder of the library for apps where a conversation grows past the model's original context, and with
keys and values in 8 bits: ids beside phirt's own, with random weights in float32.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from native_host import ROOT, load_test_module, run

import phirt
from phirt_export.exporter import export_bundle
from phirt_export.mobile.package import write_package
from phirt_export.mobile.profiles import read_profile

_QUESTIONS = (
    "Tell me a story of a ship.",
    "And then?",
    "Go on, please.",
    "Who was it?",
    "The end?",
    "Once more.",
)


def _package(folder: Path, **settings: Any) -> Path:
    """A package of random weights whose rotary factors change at 128 positions of 512."""
    small = load_test_module("small_models", ROOT / "tests" / "export" / "small_models.py")
    checkpoint = small.save_talking_checkpoint(folder / "checkpoint")
    rope = small.rope(original_context=128, context=512, long=True)
    config = small.config(stem=False, rotary=rope)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=320))
    kept = {name: (checkpoint / name).read_bytes() for name in ("tokenizer.json", "chat_template.jinja")}
    small.save_checkpoint(small.random_model(config), checkpoint)
    for name, content in kept.items():
        (checkpoint / name).write_bytes(content)
    export_bundle(checkpoint, folder / "bundle", **settings)
    write_package(folder / "bundle", folder / "package", read_profile("android"), None, lambda _: None)
    return folder / "package"


def _conversation(package: Path, tokens: int) -> dict[str, Any]:
    """What phirt answers, as golden.json has it."""
    turns = []
    with phirt.load(package, threads=1) as model:
        chat = model.chat()
        for text in _QUESTIONS:
            result = chat.send(text, max_new_tokens=tokens, speculation=False).result
            turns.append(
                {
                    "text": text,
                    "image": None,
                    "audio": None,
                    "max_new_tokens": tokens,
                    "sure": True,
                    "prompt_ids": list(result.prompt_token_ids),
                    "ids": list(result.token_ids),
                    "answer": result.text,
                    "adapter": result.adapter,
                }
            )
    return {"name": "long", "system": None, "turns": turns}


def _ask(package: Path, program: Path, case: dict[str, Any]) -> bytes:
    """What phirt_golden says of one conversation in the place of the package's own."""
    (package / "golden.json").write_text(json.dumps({"cases": [case]}), "utf-8")
    manifest = json.loads((package / "manifest.json").read_text("utf-8"))
    manifest["files"]["golden.json"]["size"] = (package / "golden.json").stat().st_size
    (package / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return run(program, package, 1)


def test_past_the_original_context(programs: Path, tmp_path: Path) -> None:
    """The factors change in the midst of an answer, and between two."""
    package = _package(tmp_path, bits=32)
    known = _conversation(package, 40)
    lengths = [len(turn["prompt_ids"]) for turn in known["turns"]]
    assert lengths[0] < 128 < lengths[-1]
    assert b"1 of 1 identical" in _ask(package, programs / "phirt_golden", known)


def test_keys_and_values_in_8_bits(programs: Path, tmp_path: Path) -> None:
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\n".join(_QUESTIONS * 4), "utf-8")
    package = _package(tmp_path, bits=32, kv="int8", calibration=[sentences])
    known = _conversation(package, 12)
    assert b"1 of 1 identical" in _ask(package, programs / "phirt_golden", known)


@pytest.mark.parametrize("context", [40])
def test_a_full_context_ends_an_answer(programs: Path, tmp_path: Path, context: int) -> None:
    package = _package(tmp_path, bits=32)
    manifest = json.loads((package / "manifest.json").read_text("utf-8"))
    manifest["limits"]["context"] = context
    (package / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with phirt.load(package, threads=1) as model:
        result = model.chat().send("Hello", max_new_tokens=100, speculation=False).result
    assert result.finish_reason == "context"
    turn = {
        "text": "Hello", "image": None, "audio": None, "max_new_tokens": 100, "sure": True,
        "prompt_ids": list(result.prompt_token_ids), "ids": list(result.token_ids), "answer": result.text,
        "adapter": "none",
    }  # fmt: skip
    case = {"name": "full", "system": None, "turns": [turn]}
    assert b"1 of 1 identical" in _ask(package, programs / "phirt_golden", case)
