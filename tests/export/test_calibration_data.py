"""Calibration data as a user gives it: folders, files, JSON lines, and every mistake in one line."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from small_models import config, random_model, save_checkpoint
from typer.testing import CliRunner

import phirt
from phirt.errors import ConfigError
from phirt_apps.cli import app
from phirt_export import calibration as calibrating
from phirt_export.calibration.samples import OWN_TEXT
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_quant import samples


def test_a_folder_is_walked_and_media_in_turns_come_once(calibration_data):
    read = calibrating.read_samples([calibration_data])
    texts = [s.text for s in read if s.text]
    assert texts[0].startswith("The ferry") and len(texts) == 3 and len(read) == 9
    assert [s.images[0].name for s in read if s.images] == ["2.png", "0.png", "1.png"]
    assert [s.audio[0].name for s in read if s.audio] == ["0.wav", "1.wav", "2.wav"]
    turn = next(s for s in read if s.images and s.audio)
    assert turn.prompt == samples.BOTH_PROMPT and turn.answer == "An invoice, read aloud."


MISTAKES = (
    ("missing.txt", None, "cannot be read"),
    ("weights.bin", b"\0", "is no calibration data; accepted: a folder, text"),
    ("binary.txt", b"\xff\xfe\x00", "cannot be read as UTF-8"),
    ("empty.txt", b"", "holds nothing to calibrate with"),
    ("short.txt", b"a", "not two tokens"),
    ("broken.jsonl", b"{", "line 1 is no JSON object"),
    ("list.jsonl", b"[1]", "line 1 is no JSON object"),
    ("deep.jsonl", b"[" * 9000, "line 1 is no JSON object"),
    (
        "key.jsonl",
        b'{"txt": "a"}',
        "'txt' is not known; accepted: text, system, prompt, image, audio, answer",
    ),
    ("type.jsonl", b'\n{"text": 3}', "line 2: 'text' must be a string"),
    ("both.jsonl", b'{"text": "a", "prompt": "b"}', "either 'text', or a turn"),
    ("neither.jsonl", b'{"answer": "b"}', "either 'text', or a turn"),
    ("path.jsonl", b'{"image": [4]}', "'image' must be a path"),
    ("gone.jsonl", b'{"image": "gone.png"}', "gone.png does not exist"),
    ("nul.jsonl", b'{"audio": "a\\u0000"}', "does not exist"),
    ("no.png", b"no picture", "no picture that can be read"),
    ("no.wav", b"no recording", "no recording that can be read"),
)


@pytest.mark.parametrize(("name", "content", "said"), MISTAKES, ids=[case[0] for case in MISTAKES])
def test_bad_calibration_data_are_answered_in_one_line(talking_checkpoint, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    command = ["export", str(talking_checkpoint), "-o", str(tmp_path / "b"), "--method", "gptq"]
    result = CliRunner().invoke(app, [*command, "--calibration", str(tmp_path / name)])
    assert result.exit_code == 1 and result.stdout == ""
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_without_calibration_data_phirts_own_text_serves(talking_checkpoint, tmp_path):
    """Turns that the model's context or template does not take are left out."""
    opened = Checkpoint(talking_checkpoint)
    everything = calibrating.read_samples([OWN_TEXT])
    own = calibrating.own_samples(opened)
    assert [sample for sample in own if sample.text] == [sample for sample in everything if sample.text]
    assert calibrating.encode_samples(opened, own, 2000)
    tight = dataclasses.replace(opened.config.decoder.rope, original_context=64)
    opened.config = dataclasses.replace(
        opened.config, decoder=dataclasses.replace(opened.config.decoder, rope=tight)
    )
    assert len(calibrating.own_samples(opened)) < len(own)
    with pytest.raises(ConfigError, match=r"kv int8 .*--calibration"):
        export_bundle(talking_checkpoint, tmp_path / "b", kv="int8")


def test_an_unknown_method_is_refused(talking_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="choose from rtn, mse, gptq"):
        export_bundle(talking_checkpoint, tmp_path / "b", method="best")


def test_media_that_the_model_does_not_take_are_refused(talking_checkpoint, calibration_data, tmp_path):
    """A decoder alone is calibrated on text."""
    decoder = Checkpoint(talking_checkpoint).config.decoder
    alone = dataclasses.replace(config(adapters=()), decoder=decoder, vision=None, audio=None)
    plain = save_checkpoint(random_model(alone), tmp_path / "checkpoint")
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(talking_checkpoint / name, plain / name)
    for file, kind in (("2.png", "no images"), ("more/1.wav", "no recordings")):
        with pytest.raises(ConfigError, match=kind):
            export_bundle(plain, tmp_path / "b", method="gptq", calibration=[calibration_data / file])
    bundle = export_bundle(plain, tmp_path / "b", method="gptq", calibration=[calibration_data / "a.txt"])
    assert phirt.load(bundle).manifest.quantization["method"] == "gptq"
