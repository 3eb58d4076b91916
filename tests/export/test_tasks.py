"""Tasks through `phirt eval`, beside transformers on the same weights, and by hand."""

from __future__ import annotations

import json
import lzma
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import save_talking_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import phirt
from phirt.errors import ConfigError
from phirt_apps.cli import app
from phirt_export.checkpoint_scores import CheckpointReference
from phirt_export.exporter import export_bundle
from phirt_quant.evaluation import BundleScorer
from phirt_quant.examiner import text_form
from phirt_quant.likelihood import continuation_likelihood, leading_ids, split_tokens
from phirt_quant.metrics import METRICS, Answer, Choices, estimate
from phirt_quant.task_scores import read_examination, run
from phirt_quant.tasks import known_tasks, read_task
from phirt_quant.tasks.svamp import last_number
from phirt_quant.tasks.task import Document, Question, Recording

ARC = [
    {"query": f"Question: What is {n}?", "choices": ["one", "two ships", "sea"], "gold": n % 3}
    for n in range(7)
]
SVAMP = [
    {"context": f"Ann has {n} keys. How many?", "answer": str(n), "chain_of_thought": ""} for n in range(8)
]
BFCL = {
    "question": [[{"role": "user", "content": "Area of a triangle?"}]],
    "function": [{"name": "area", "parameters": {}}],
    "answer": [{"area": {"base": [10], "name": ["Big One"], "unit": ["cm", ""], "at": [{"x": [1, 2]}]}}],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random Llama, written by transformers, behind a real tokenizer."""
    folder = save_talking_checkpoint(tmp_path_factory.mktemp("tasks") / "checkpoint")
    (folder / "model.safetensors").unlink()
    vocab = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, initializer_range=0.3,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=4,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory) -> Path:
    return export_bundle(checkpoint, tmp_path_factory.mktemp("tasks") / "fp32", bits=32)


@pytest.fixture(scope="module")
def model(bundle) -> phirt.Model:
    return phirt.load(bundle)


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "eval").mkdir()
    write(tmp_path / "eval/arc_easy.jsonl.xz", ARC)
    write(tmp_path / "eval/svamp.jsonl", SVAMP)
    return tmp_path


def write(path: Path, records: list[dict]) -> None:
    raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(lzma.compress(raw) if path.suffix == ".xz" else raw)


def evaluate(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output + result.stderr
    return json.loads(result.stdout)


def test_likelihoods_are_those_of_transformers_in_one_pass(checkpoint, model):
    independent = LlamaForCausalLM.from_pretrained(checkpoint).eval()
    encode = model.generator.tokenizer.encode_content
    scorers = [BundleScorer(model), CheckpointReference(checkpoint, model.manifest)]
    for context, continuation in [
        ("The ferry leaves", " at noon."),
        ("The ferry leaves", " at seven, and turns north"),
        ("A space at the end ", "moves."),
        ("x" * 30, " y"),
    ]:
        context_ids, ids = split_tokens(encode, context, continuation)
        assert context_ids + ids == encode(context + continuation)
        assert context_ids == encode(context.rstrip())
        with torch.no_grad():
            logits = independent(torch.tensor([context_ids + ids])).logits[0, len(context_ids) - 1 : -1]
        expected = float(logits.log_softmax(-1)[range(len(ids)), ids].sum())
        for scorer in scorers:
            score = continuation_likelihood(scorer, context_ids, ids, 511)
            assert score.nats == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert score.is_greedy == (logits.argmax(-1).tolist() == ids)


def test_what_is_too_long_loses_its_beginning(model):
    scorer = BundleScorer(model)
    ids = list(np.random.default_rng(0).integers(20, 300, 40))
    short = continuation_likelihood(scorer, ids[-11:-4], ids[-4:], 10)
    assert continuation_likelihood(scorer, ids[:-4], ids[-4:], 10).nats == pytest.approx(short.nats, abs=1e-4)


def test_greedy_answers_are_those_of_transformers_whatever_the_draft(checkpoint, model):
    independent = LlamaForCausalLM.from_pretrained(checkpoint).eval()
    reference = CheckpointReference(checkpoint, model.manifest)
    ids = model.generator.tokenizer.encode_content("The ferry leaves the harbour")
    made = independent.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20, eos_token_id=None)
    expected = made[0, len(ids) :].tolist()
    ends = [expected.index(end) for end in model.manifest.tokens.eos if end in expected]
    expected = expected[: min(ends, default=20)]
    assert expected
    for draft in ([], expected, [*expected[:3], 99, *expected[4:]], [7] * 30):
        answers = reference.answer(ids, draft)
        assert [token for _, token in zip(range(len(expected)), answers, strict=False)] == expected
    answers = BundleScorer(model).answer(ids)
    assert [token for _, token in zip(range(len(expected)), answers, strict=False)] == expected


def test_multiple_choice_is_scored_and_compared(checkpoint, bundle, model, data):
    report = evaluate(bundle, "--against", checkpoint, "--task", "arc_easy", "--data", data)
    result = report["tasks"]["arc_easy"]
    scorer, encode = BundleScorer(model), model.generator.tokenizer.encode_content
    right, right_by_length = [], []
    for record in ARC:
        context = record["query"] + "\nAnswer:"
        nats = [
            continuation_likelihood(
                scorer, encode(context), split_tokens(encode, context, f" {c}")[1], 511
            ).nats
            for c in record["choices"]
        ]
        right.append(int(np.argmax(nats)) == record["gold"])
        by_length = [n / len(c) for n, c in zip(nats, record["choices"], strict=True)]
        right_by_length.append(int(np.argmax(by_length)) == record["gold"])
    assert result["items"] == 7 and result["shots"] == 0
    assert result["acc"]["value"] == pytest.approx(np.mean(right))
    assert result["acc_norm"]["value"] == pytest.approx(np.mean(right_by_length))
    assert result["acc"]["standard_error"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(7))
    assert result["acc"]["difference"] == {"value": 0.0, "standard_error": 0.0}  # unquantized
    assert "routes" not in report and report["against"]["path"] == str(checkpoint)


def test_examples_stand_before_each_item_and_never_hold_it(data, model):
    drawn = read_examination("svamp", data, shots=3)
    again = read_examination("svamp", data, limit=4, shots=3)
    for index, item in enumerate(drawn.items):
        *examples, asked = item.context.split("\n\n")
        assert asked == f"Question: Ann has {index} keys. How many?\nAnswer:" and len(set(examples)) == 3
        for example in examples:
            number = last_number(example)
            assert number != index and example.endswith(
                f"has {number:.0f} keys. How many?\nAnswer: {number:.0f}"
            )
    # A limit spreads over the file, and an item's examples do not depend on it.
    assert [item.context for item in again.items] == [drawn.items[i].context for i in (0, 2, 4, 6)]
    with pytest.raises(ConfigError, match="8 examples were asked for, and the task svamp has 7"):
        read_examination("svamp", data, shots=8)


def test_exercises_are_answered_and_their_answers_end_at_a_stop(bundle, data, model):
    result = evaluate(bundle, "--task", "svamp", "--data", data, "--limit", 2, "--shots", 1)["tasks"]["svamp"]
    assert result["items"] == 2 and 0 <= result["exact_match"]["value"] <= 1
    examination = read_examination("svamp", data, limit=3)
    ((first, *_),) = run(examination, text_form(model), [BundleScorer(model)])
    assert isinstance(first, Answer) and "\n" not in first.text and "Question:" not in first.text


@pytest.mark.parametrize(
    ("call", "right"),
    [
        ('{"name": "area", "arguments": {"base": 10, "name": "big one.", "at": {"x": 2}}}', True),
        (
            '{"name": "area", "arguments": {"base": 10, "name": "Big One", "at": {"x": 1}, "unit": "cm"}}',
            True,
        ),
        ('{"name": "area", "arguments": {"base": 10, "name": "Big One", "at": {"x": 3}}}', False),
        ('{"name": "area", "arguments": {"base": true, "name": "Big One", "at": {"x": 1}}}', False),
        ('{"name": "area", "arguments": {"base": 10, "at": {"x": 1}}}', False),
        ('{"name": "area", "arguments": {"base": 10, "name": "Big One", "at": {"x": 1}, "more": 1}}', False),
        ('{"name": "other", "arguments": {"base": 10, "name": "Big One", "at": {"x": 1}}}', False),
        ("area(10)", False),
        ("[" * 100_000, False),
    ],
)
def test_a_call_is_right_where_each_argument_is_among_the_accepted(call, right):
    (exercise,) = read_task("bfcl_simple").items(BFCL)
    assert exercise.is_right(call) is right
    assert exercise.is_right(exercise.target)


def test_slots_are_compared_without_case(tmp_path):
    record = {"text": "Play it", "intent": "PlayMusic", "slots": [["a", "One"], ["b", "x"], ["b", "y"]]}
    (exercise,) = read_task("snips").items(record)
    assert exercise.is_right('{"slots": {"b": ["X", "y "], "a": "one"}, "intent": "playmusic"}')
    assert exercise.is_right(exercise.target) and not exercise.is_right(
        '{"intent": "PlayMusic", "slots": {}}'
    )


def test_numbers_are_read_with_their_commas_and_signs():
    cases = {" 1,234 keys": 1234, "= -3.": -3, "2 and .5": 0.5, "none": None, "7": 7}
    assert {text: last_number(text) for text in cases} == cases


def test_measures_by_hand():
    def question(nats: tuple[float, ...], gold: int, greedy: bool = False) -> Choices:
        lengths = (2, 8)[: len(nats)]
        return Choices(nats, (greedy,) * len(nats), lengths, tuple(2 * n for n in lengths), gold)

    outcomes = [question((-1.0, -2.0), 0, True), question((-1.0, -2.0), 1), question((-4.0, -2.0), 1)]
    assert estimate("acc", outcomes).value == pytest.approx(2 / 3)
    assert estimate("acc_norm", outcomes).value == pytest.approx(2 / 3)  # -0.5 and -0.25: the second is best
    assert estimate("greedy_acc", outcomes).value == pytest.approx(1 / 3)
    assert estimate("perplexity", outcomes).value == pytest.approx(math.exp(5 / 3))
    bits = estimate("bits_per_byte", outcomes)
    assert bits.value == pytest.approx(5 / math.log(2) / (4 + 16 + 16))
    # Leaving an item out moves a measure by its influence over the others, to first order.
    perplexity = estimate("perplexity", outcomes * 1000)
    moved = estimate("perplexity", (outcomes * 1000)[1:]).value - perplexity.value
    centred = perplexity.influence[0] - perplexity.influence.mean()
    assert moved == pytest.approx(-centred / 2999, rel=1e-2)
    assert estimate("acc", outcomes[:1]).standard_error is None
    value, error = estimate("acc", outcomes).minus(estimate("acc", outcomes[::-1]))
    assert value == 0 and error == pytest.approx(np.std([0, 0, 0], ddof=1) / math.sqrt(3), abs=1)


def test_the_table_has_both_columns_and_the_difference(bundle, data):
    arguments = ["eval", bundle, "--against", bundle, "--task", "arc_easy", "--data", data]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output + result.stderr
    assert "reference" in result.stdout and "acc_norm" in result.stdout and "+0.0 ± 0.0 %" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "arc_easy"], "arc_easy, .*--data FOLDER"),
        (["--task", "nope", "--data", "."], "no task 'nope'; choose from arc_easy, "),
        (["--task", "lambada", "--data", "."], r"holds no eval/lambada.jsonl \(or .xz of it\)"),
    ],
)
def test_what_is_missing_is_named(bundle, data, monkeypatch, arguments, said):
    monkeypatch.chdir(data)
    result = CliRunner().invoke(app, ["eval", str(bundle), *arguments])
    assert result.exit_code == 1
    assert re.search(said, " ".join(result.stderr.split())), result.stderr


def test_a_record_of_another_kind_is_named(data):
    write(data / "eval/arc_easy.jsonl.xz", [ARC[0], {"text": "x"}])
    with pytest.raises(ConfigError, match=r"record 2 of .*arc_easy.jsonl.xz is none of the task arc_easy"):
        read_examination("arc_easy", data)


def test_a_bundle_alone_has_perplexity_and_bits_per_byte(bundle, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("The ferry leaves at noon. " * 20)
    alone = evaluate(bundle, "--text", text)
    beside = evaluate(bundle, "--against", bundle, "--text", text)["routes"]["none"]
    assert alone["against"] is None and alone["text"]["positions"] == beside["positions"]
    assert alone["text"]["perplexity"] == pytest.approx(beside["candidate_perplexity"])
    assert alone["text"]["bits_per_byte"] == pytest.approx(beside["candidate_bits_per_byte"])
    result = CliRunner().invoke(app, ["eval", str(bundle), "--text", str(text)])
    assert "bits per byte, over" in result.stdout and "whole bundle" in result.stdout


def test_ids_that_a_tokenizer_puts_first_are_found(checkpoint, tmp_path):
    assert leading_ids(checkpoint / "tokenizer.json") == []
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    begin = document["added_tokens"][0]
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"B": {"id": "B", "ids": [begin["id"]], "tokens": [begin["content"]]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert leading_ids(tmp_path / "tokenizer.json") == [begin["id"]]


def test_a_task_is_one_module(tmp_path):
    """A folder that is added to the package's path has a module; nothing else names it."""
    (tmp_path / "toy.py").write_text(
        "from phirt_quant.tasks.task import Question, Task\n"
        "TASK = Task('toy.jsonl', lambda r: [Question(r['a'], (' ' + r['b'],))], ('greedy_acc',))\n"
    )
    (tmp_path / "toy.jsonl").write_text('{"a": "The", "b": "sea"}\n')
    code = (
        "import sys, phirt_quant.tasks as tasks; from pathlib import Path; "
        "tasks.__path__.append(sys.argv[1]); from phirt_quant.task_scores import read_examination; "
        "print(tasks.known_tasks(), read_examination('toy', Path(sys.argv[1])).items[0].target)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "'toy'" in done.stdout and done.stdout.endswith(" sea\n")


# The data package does not have their test sets.
ELSEWHERE = {"boolq", "gsm8k", "hellaswag", "mmlu", "triviaqa"}


@pytest.mark.parametrize("name", sorted({*known_tasks()} - ELSEWHERE))
def test_the_tasks_read_the_data_package(name, shared_data):
    examination = read_examination(name, shared_data, limit=400)
    assert len(examination.items) >= 230 and set(examination.metrics) <= set(METRICS)
    for item in examination.items:
        if isinstance(item, Recording):
            assert item.audio[:4] == b"OggS" and item.target.strip()
        elif isinstance(item, Document):
            assert item.text.strip()
        else:
            assert item.target.startswith(" ") and item.context == item.context.rstrip()
            assert isinstance(item, Question) or item.is_right(item.target)
