"""Bundles beside their checkpoint and beside each other, through the command `phirt eval`."""

from __future__ import annotations

import dataclasses
import json
import lzma
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import config, random_model, save_checkpoint, save_talking_checkpoint
from typer.testing import CliRunner

import phirt
from phirt import GenerationConfig
from phirt.errors import ConfigError
from phirt.transcription import TRANSCRIBE_PROMPT
from phirt_apps.cli import app
from phirt_export import checkpoint_scores
from phirt_export.checkpoint import Checkpoint, expected_shapes
from phirt_export.checkpoint_scores import (
    CheckpointReference,
    available_memory,
    needed_memory,
    streamed_memory,
)
from phirt_export.exporter import export_bundle
from phirt_export.layer_divergence import layer_divergences
from phirt_export.model_weights import load_model
from phirt_quant import samples
from phirt_quant.blockwise import dequantize, quantize
from phirt_quant.evaluation import BundleReference, BundleScorer, compare, media_cases, passages
from phirt_quant.examiner import text_form
from phirt_quant.fidelity import kl_divergence
from phirt_quant.task_scores import read_examination, run
from phirt_quant.text_files import read_documents
from phirt_quant.word_errors import spoken_words

ROUTES = {"none", "vision", "speech"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_talking_checkpoint(tmp_path_factory.mktemp("eval") / "checkpoint")


@pytest.fixture(scope="module")
def full(checkpoint, tmp_path_factory) -> Path:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("eval") / "fp32", bits=32)


@pytest.fixture(scope="module")
def small(checkpoint, tmp_path_factory) -> Path:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("eval") / "int4", bits=4, method="rtn")


@pytest.fixture(scope="module")
def examples() -> Path:
    return Path(__file__).parents[2] / "apps" / "examples"


def evaluate(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments), "--tokens", "200", "--json"])
    assert result.exit_code == 0, result.output + result.stderr
    return json.loads(result.stdout)


def test_an_unquantized_bundle_predicts_what_its_checkpoint_does(checkpoint, full):
    report = evaluate(full, "--against", checkpoint)
    assert set(report["routes"]) == ROUTES and "float32" in report["against"]["kind"]
    for figures in report["routes"].values():
        assert figures["mean_kl"] < 1e-6 and figures["p99_kl"] < 1e-5
        assert figures["top1_agreement"] > 0.99 and figures["max_difference"] < 1e-2
    assert report["routes"]["none"]["positions"] > 150
    assert report["routes"]["vision"]["positions"] > 4 * 4  # three pictures, and one beside a clip


def test_bits_a_weight_count_codes_scales_and_padding(checkpoint, small, full):
    for bundle, bits in ((small, 4 + 16 / 32), (full, 32)):
        size = evaluate(bundle, "--against", bundle)["size"]
        weights = sum(math.prod(shape) for shape in expected_shapes(Checkpoint(checkpoint).config).values())
        assert size["bytes"] == sum(p.stat().st_size for p in bundle.iterdir() if p.name != "manifest.json")
        assert size["bits_per_weight"] == pytest.approx(8 * size["bytes"] / weights)
        assert size["decoder"]["bits_per_weight"] == pytest.approx(bits)
        projections = 3 * (2 * 128 * 64 + 128 * 64 + 3 * 96 * 64)
        assert size["parts"]["decoder"]["weights"] == projections
        # A rank of 8 fills half of a block of 16.
        assert size["parts"]["vision adapter"]["bits_per_weight"] > (15 if bits < 32 else 31)
    result = CliRunner().invoke(app, ["eval", str(small), "--against", str(small), "--tokens", "20"])
    assert re.search(r"decoder and token table +4\.50 ", result.stdout)
    assert re.search(r"whole bundle +[\d.]+ +[\d,]+ +[\d.]+ [kM]B", result.stdout)


@pytest.mark.parametrize("parts", [None, [], {"decoder": 3}, {"decoder": {"weights": 0, "bytes": "x"}}])
def test_a_bundle_that_does_not_tell_its_sizes_is_evaluated_all_the_same(small, tmp_path, parts):
    older = Path(shutil.copytree(small, tmp_path / "older"))
    manifest = json.loads((older / "manifest.json").read_text())
    manifest["quantization"] |= {"parts": parts, "weights": None}
    (older / "manifest.json").write_text(json.dumps(manifest))
    size = evaluate(older, "--against", small)["size"]
    assert size["bytes"] > 100_000 and size["parts"] == {}
    assert size["bits_per_weight"] is None and size["decoder"] is None
    result = CliRunner().invoke(app, ["eval", str(older), "--against", str(small), "--tokens", "20"])
    assert re.search(r"whole bundle +unknown +unknown +\d", result.stdout)


def test_a_bundle_agrees_with_itself(small):
    for figures in evaluate(small, "--against", small)["routes"].values():
        assert (figures["mean_kl"], figures["p99_kl"], figures["top1_agreement"]) == (0.0, 0.0, 1.0)
        assert figures["max_difference"] == 0.0


def test_four_bits_cost_something_and_not_everything(checkpoint, full, small):
    against_bundle, against_checkpoint = (evaluate(small, "--against", other) for other in (full, checkpoint))
    for route in ROUTES:
        one, other = against_bundle["routes"][route], against_checkpoint["routes"][route]
        assert 1e-5 < one["mean_kl"] < one["p99_kl"] < 10 and 0.1 < one["top1_agreement"] <= 1
        assert one["positions"] == other["positions"]
        assert one["mean_kl"] == pytest.approx(other["mean_kl"], rel=1e-2)


def test_text_of_the_users_own_is_scored_in_bits_per_byte(full, small, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The ferry leaves at noon. " * 30)
    report = evaluate(small, "--against", full, "--text", text)
    assert report["inputs"]["text"] == str(text)
    assert "rendered by the program" in report["inputs"]["images"]
    none, vision = report["routes"]["none"], report["routes"]["vision"]
    model = phirt.load(full)
    ids = model.generator.tokenizer.encode_content(text.read_text())[:200]
    assert none["positions"] == len(ids) - 1
    expected = (
        np.log2(none["reference_perplexity"])
        * (len(ids) - 1)
        / len(model.generator.tokenizer.decode(ids[1:]))
    )
    assert none["reference_bits_per_byte"] == pytest.approx(expected)
    assert none["candidate_perplexity"] != none["reference_perplexity"]
    assert vision["reference_bits_per_byte"] is None and vision["reference_perplexity"] is None


def test_the_table_names_every_route_and_what_it_ran_on(full, small):
    result = CliRunner().invoke(app, ["eval", str(small), "--against", str(full), "--tokens", "20"])
    assert result.exit_code == 0
    made = ("3 pictures rendered by the program", "3 clips synthesised by the program")
    for word in (*ROUTES, "perplexity", *made, str(full)):
        assert word in result.stdout


def test_media_of_the_users_own_are_taken(full, small, examples):
    report = evaluate(
        small, "--against", full, "--image", examples / "shapes.png", "--audio", examples / "seven.flac"
    )
    assert report["inputs"]["images"] == "shapes.png"
    assert report["routes"]["vision"]["positions"] <= 2 * 16


def test_recordings_are_written_down_by_bundles_and_their_checkpoint(checkpoint, full, tmp_path):
    (tmp_path / "speech").mkdir()
    with (tmp_path / "speech/fsdd.val.jsonl").open("w") as records:
        for number, clip in enumerate(samples.clips()[:2]):
            (tmp_path / f"speech/{number}.wav").write_bytes(clip)
            records.write(json.dumps({"file": f"{number}.wav", "text": "Two words, here"}) + "\n")
    model = phirt.load(full)
    examination = read_examination("fsdd", tmp_path)
    scorers = [BundleScorer(model), BundleReference(phirt.load(full), model)]
    scorers.append(CheckpointReference(checkpoint, model.manifest))
    outcomes = run(examination, text_form(model), scorers)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    config = GenerationConfig(max_new_tokens=128)
    for item, outcome in zip(examination.items, outcomes[0], strict=True):
        text = model.chat().send(TRANSCRIBE_PROMPT, audio=[item.audio], config=config).result.text
        assert outcome.text == spoken_words(text) and outcome.words == 3
    report = evaluate(full, "--against", checkpoint, "--task", "fsdd", "--data", tmp_path)
    assert report["tasks"]["fsdd"]["wer"]["difference"]["value"] == 0.0


def test_a_checkpoint_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    checkpoint, full, monkeypatch
):
    monkeypatch.setattr(checkpoint_scores, "available_memory", lambda: 1 << 29)
    monkeypatch.setattr(checkpoint_scores, "load_model", None)
    with pytest.raises(ConfigError, match=r"about 1\.\d GB of memory, and 0\.5 GB are avail.*--bits 32"):
        CheckpointReference(checkpoint, phirt.load(full).manifest)


def test_the_memory_named_is_that_of_float32_and_the_machines_is_known(checkpoint):
    opened = Checkpoint(checkpoint)
    weights = sum(parameter.numel() for parameter in load_model(opened).parameters())
    assert needed_memory(opened.config) - (1 << 30) > 4 * weights
    available = available_memory()
    assert available is None or 1 << 20 < available < 1 << 50


def test_models_with_other_tokenizers_are_refused(full, tmp_path):
    other = save_checkpoint(random_model(config()), tmp_path / "other")
    with pytest.raises(ConfigError, match="another tokenizer"):
        CheckpointReference(other, phirt.load(full).manifest)
    model = phirt.load(full)
    entry = dataclasses.replace(model.manifest.files["tokenizer.json"], sha256="0" * 64)
    files = {**model.manifest.files, "tokenizer.json": entry}
    model.generator.manifest = dataclasses.replace(model.manifest, files=files)
    with pytest.raises(ConfigError, match="different tokenizers"):
        BundleReference(model, phirt.load(full))


def test_too_little_text_is_refused(full):
    with pytest.raises(ConfigError, match="fewer than two tokens"):
        passages(phirt.load(full), ["a"], 100)


def test_a_text_only_bundle_is_compared_on_text_alone(checkpoint, full):
    model = phirt.load(full)
    model.generator.manifest = dataclasses.replace(model.manifest, encoders={})
    assert media_cases(model, samples.pictures(), samples.clips()) == {}


def test_passages_have_at_most_the_tokens_asked_for_and_no_long_regime(full):
    model = phirt.load(full)
    cases = passages(model, ["ferry " * 800], 300)
    lengths = [len(case.forced) for case in cases]
    assert sum(lengths) == 300 and max(lengths) <= 256
    result = compare(model, _Uniform(model.manifest.geometry.vocab_size), cases[1:], "none")
    assert result.fidelity.reference_perplexity == pytest.approx(model.manifest.geometry.vocab_size)


@given(total=st.integers(2, 60), window=st.integers(2, 20), data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_predict_each_token_once_as_hugging_faces_guide_counts(full, total, window, data):
    stride = data.draw(st.integers(1, window))
    model = phirt.load(full)
    ids = model.generator.tokenizer.encode_content("a1" * total)[:total]
    cases = passages(model, ["a1" * total], total, window, stride)
    # The loop of the guide: of each window, the targets behind the end of the one before. A model that
    # predicts the next token has none for a window's own first token.
    expected, before = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        targets = ids[begin:end]
        kept = [target for i, target in enumerate(targets) if i >= len(targets) - (end - before) and i > 0]
        if kept:
            expected.append((tuple(targets), kept))
        before = end
        if end == len(ids):
            break
    assert [(case.forced, list(case.forced[case.first :])) for case in cases] == expected


def test_a_smaller_stride_gives_more_context(full, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(samples.SENTENCES))
    arguments = (full, "--against", full, "--text", text, "--window", 40)
    whole, overlapping = (evaluate(*arguments, "--stride", n)["routes"]["none"] for n in (40, 10))
    assert overlapping["positions"] == 199 > whole["positions"] == 200 - 5
    result = CliRunner().invoke(app, ["eval", *map(str, arguments), "--stride", "41"])
    assert result.exit_code == 1 and "accepted: 1 to the window's 40" in result.stderr


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_are_documents_of_their_own(full, tmp_path, packed):
    lines = [{"title": "x", "text": "One text."}, {"pages": ["a", "b"], "more": {"c": ["d"]}, "n": 3}, {}]
    raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = tmp_path / ("t.jsonl.xz" if packed else "t.jsonl")
    path.write_bytes(lzma.compress(raw) if packed else raw)
    assert read_documents(path) == ["One text.", "a\nb\nd"]
    assert evaluate(full, "--against", full, "--text", path)["routes"]["none"]["positions"] > 5


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line 2 .* is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1 .* no JSON object"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.txt.xz", b"plain", "cannot be read"),
        ("a.txt.xz", lzma.compress(b"word " * 99)[:40], "cannot be read"),
    ],
)
def test_text_that_cannot_be_read_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_documents(path)


def test_what_each_layer_costs_is_what_a_model_with_that_layer_rounded_predicts(checkpoint, small, full):
    opened = Checkpoint(checkpoint)
    model, manifest = load_model(opened), phirt.load(small).manifest
    ids = list(np.random.default_rng(0).integers(10, 200, 30))
    done: list[tuple[int, int]] = []
    costs = dict(layer_divergences(model, manifest, ids, lambda *at: done.append(at)))
    assert list(costs) == ["token table", "0", "1", "2", "head"] and done[-1] == (5, 5)
    # Rounded here, tensor by tensor, into a model of its own.
    other = load_model(opened)
    parts = [name for name in expected_shapes(opened.config) if ".layers.1." in name and "base_layer" in name]
    with torch.no_grad():
        for name in parts:
            weight = other.get_parameter(name)
            weight.copy_(torch.from_numpy(dequantize(quantize(weight.numpy().copy(), 4, 32))))
        p, q = (m(torch.tensor([ids]))[0].numpy() for m in (model, other))
    assert len(parts) == 4 and costs["1"] == pytest.approx(kl_divergence(p, q).mean(), rel=1e-3)
    assert min(costs.values()) > 1e-5
    unquantized = layer_divergences(model, phirt.load(full).manifest, ids, lambda *_: None)
    assert {cost for _, cost in unquantized} == {0.0}


def test_a_picture_shows_kl_by_place_and_layer(checkpoint, small, full, tmp_path):
    for against, name in ((checkpoint, "layers.png"), (full, "places.png")):
        evaluate(small, "--against", against, "--plot", tmp_path / name)
    tall, flat = (Image.open(tmp_path / name).size for name in ("layers.png", "places.png"))
    assert tall[0] == flat[0] and tall[1] == 2 * flat[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--plot", "a.png"], "--against"), (["--against", ".", "--plot", "missing/a.png"], "not a folder")],
)
def test_a_picture_that_cannot_be_made_is_refused_before_any_work(
    small, monkeypatch, tmp_path, arguments, said
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["eval", str(small), *arguments])
    assert result.exit_code == 1 and said in result.stderr


class _Uniform:
    """A reference that knows nothing."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def score(self, ids, first):
        for _ in ids[first:]:
            yield np.zeros(self._vocab, np.float32)


def test_a_model_whose_layers_come_from_the_checkpoint_computes_the_same(checkpoint, full, monkeypatch):
    """To the last bit, with one layer at a time in memory; for pictures of single layers it is loaded."""
    candidate = phirt.load(full).manifest
    whole = CheckpointReference(checkpoint, candidate)
    monkeypatch.setattr(checkpoint_scores, "_HELD_BYTES", 0)
    streamed = CheckpointReference(checkpoint, candidate)
    ids = [5, 6, 7, 8, 9]
    np.testing.assert_array_equal(list(streamed.score(ids, 1)), list(whole.score(ids, 1)))
    np.testing.assert_array_equal(list(streamed.score(ids, 3)), list(whole.score(ids, 3)))
    layers = streamed._model.model.layers
    assert len(layers) and {p.device.type for p in layers.parameters()} == {"meta"}
    assert whole.whole_model() is whole._model
    assert {p.device.type for p in streamed.whole_model().parameters()} == {"cpu"}
    sizes = streamed_memory(Checkpoint(checkpoint).config), needed_memory(Checkpoint(checkpoint).config)
    assert sizes[0] < sizes[1]
