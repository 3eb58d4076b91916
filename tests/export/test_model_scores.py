"""One checkpoint measured three ways: alone, as a bundle that loses nothing, and as a model in training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from small_models import save_talking_checkpoint
from typer.testing import CliRunner

from phirt.errors import ConfigError
from phirt_apps.cli import app
from phirt_export.checkpoint import Checkpoint
from phirt_export.checkpoint_scores import open_alone
from phirt_export.exporter import export_bundle
from phirt_export.model_weights import load_model
from phirt_quant import samples
from phirt_quant.task_scores import read_examination, run
from phirt_train.chat_format import CHAT_TEMPLATE
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.model_scores import needle_passages, perplexity_at, retrieval, task_scores
from phirt_train.rope_fitness import passage_fitness, perplexity
from phirt_train.rope_search import yarn_rope

NEEDLES = ["--needles", "300", "--needles", "400", "--limit", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_talking_checkpoint(tmp_path_factory.mktemp("scores") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory) -> Path:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("scores") / "fp32", bits=32)


@pytest.fixture(scope="module")
def training(checkpoint):
    """The model as a stage has it, with its dropout on, and its encoder."""
    opened = Checkpoint(checkpoint)
    encoder = ConversationEncoder(checkpoint / "tokenizer.json", CHAT_TEMPLATE, opened.config)
    return load_model(opened).train(), encoder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "data"
    (folder / "eval").mkdir(parents=True)
    (folder / "text").mkdir()
    records = [
        {"query": f"Question: {n}?", "choices": ["one", "two", "sea"], "gold": n % 3} for n in range(5)
    ]
    answers = [{"context": f"Ann has {n} keys.", "answer": str(n)} for n in range(4)]
    pages = [{"title": "Sea", "text": text * 3} for text in samples.SENTENCES]
    files = {"eval/arc_easy": records, "eval/svamp": answers, "text/wikipedia.val": pages}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output + result.stderr
    return json.loads(result.stdout)


def test_tasks_have_one_figure_however_the_model_is_held(checkpoint, bundle, training, data):
    names = ["arc_easy", "svamp", "wikipedia"]
    options = [*(word for name in names for word in ("--task", name)), "--data", data, "--shots"]
    for shots, some in ((0, names), (1, names[:2])):
        asked = options if shots == 0 else [*(w for n in some for w in ("--task", n)), *options[-3:]]
        alone, beside = evaluate(checkpoint, *asked, shots), evaluate(bundle, *asked, shots)
        trained = task_scores(*training, some, data, shots=shots)
        assert set(alone["tasks"]) == set(trained) == set(some)
        for name, measures in trained.items():
            for metric, found in measures.items():
                expected = pytest.approx(found.value, rel=1e-4)
                assert alone["tasks"][name][metric]["value"] == expected
                assert beside["tasks"][name][metric]["value"] == expected
    assert all(module.training for module in training[0].modules())


def test_needles_have_one_figure_however_the_model_is_held(checkpoint, bundle, training):
    alone, beside = evaluate(checkpoint, *NEEDLES), evaluate(bundle, "--against", checkpoint, *NEEDLES)
    trained = retrieval(*training, samples.SENTENCES, [300, 400], count=2)
    assert len(alone["needles"]) == len(trained) == 10 and "routes" not in beside
    for one, other, cell in zip(alone["needles"], beside["needles"], trained, strict=True):
        assert (one["length"], one["depth"], one["items"]) == (cell.length, cell.depth, 2)
        expected = {"found": cell.found, "perplexity": pytest.approx(cell.perplexity, rel=1e-4)}
        for found in (one, other, other["reference"]):
            assert {key: found[key] for key in expected} == expected
    result = CliRunner().invoke(app, ["eval", str(bundle), "--against", str(bundle), *NEEDLES])
    assert "reference found" in result.stdout and "25 %" in result.stdout


def test_a_checkpoint_alone_predicts_a_text(checkpoint, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("The ferry leaves at noon. " * 9)
    report = evaluate(checkpoint, "--text", text, "--tokens", 50)
    assert "needles" not in report and "tasks" not in report
    form, scorer = open_alone(checkpoint)
    ids = form.encode(text.read_text())[:50]
    rows = scorer.score([form.bos, *ids], 1)
    with torch.no_grad():
        nats = -sum(float(torch.from_numpy(r).log_softmax(0)[i]) for r, i in zip(rows, ids, strict=True))
    size = len(form.decode(ids).encode())
    assert report["text"]["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert "bits_per_byte" in CliRunner().invoke(app, ["eval", str(checkpoint)]).stdout


@pytest.mark.parametrize("option", [["--against", "x"], ["--image", "x.png"], ["--window", "9"]])
def test_a_checkpoint_alone_is_asked_for_nothing_that_needs_a_bundle(checkpoint, option):
    result = CliRunner().invoke(app, ["eval", str(checkpoint), *option])
    assert result.exit_code == 1 and "which is measured alone" in " ".join(result.stderr.split())


def test_recordings_need_a_bundle(checkpoint, shared_data):
    form, scorer = open_alone(checkpoint)
    with pytest.raises(ConfigError, match="put to bundles, and to checkpoints beside"):
        run(read_examination("fsdd", shared_data, limit=1), form, [scorer])


def test_a_model_is_measured_past_its_context(training):
    model, encoder = training
    texts = [" ".join(samples.SENTENCES) * 8]
    assert model.config.decoder.rope.context == 1024
    assert perplexity_at(model, encoder, texts, 1500, count=1) > 1
    (cell,) = retrieval(model, encoder, texts, [1500], depths=(0.5,), count=1)
    assert cell.length == 1500 and cell.perplexity > 1


def test_passkeys_are_a_fitness_of_rotary_factors(training):
    model, encoder = training
    passages = needle_passages(model, encoder, samples.SENTENCES, 1200, depths=(0.0, 1.0), count=1)
    assert [len(one.token_ids) for one in passages] == [1200, 1200]
    answers = {encoder.decode(one.token_ids[one.first :]) for one in passages}
    assert len(answers) == 1 and 10_000 <= int(answers.pop()) < 100_000
    rope = yarn_rope(model.config.decoder.rope, 4096)
    fitness = passage_fitness(model, passages)
    assert fitness(rope, 0) == perplexity(model, passages, rope) != perplexity(model, passages)
