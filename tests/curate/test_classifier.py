"""The quality classifier: what it learns, how it is kept, what a damaged one says; AUC against SciPy's U."""

from __future__ import annotations

import itertools
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from phirt.errors import ConfigError
from phirt_train.curate.classifier import (
    FACTS_NAME,
    Classifier,
    TrainingOptions,
    area_under_curve,
    score_all,
    train,
)
from phirt_train.curate.executor import Executor, InProcess
from phirt_train.curate.features import feature_blocks, text_features
from phirt_train.curate.raw_texts import corruptions, package_texts, standard_library_texts, write_pieces
from phirt_train.curate.records import TextSource, held_out, read_texts
from phirt_train.curate.shards import cut
from phirt_train.curate.vectors import feature_edges

OPTIONS = TrainingOptions(features=1 << 12, blocks=3, iterations=20)
Lines = Callable[..., Path]


def _source(path: Path, size: int = 300) -> TextSource:
    return TextSource(path.stem, "{text}", tuple(cut(path.stem, [path], size)))


@pytest.fixture
def examples(lines: Lines) -> tuple[TextSource, TextSource]:
    """Texts about birds, and texts that sell something; 40 of each."""
    good = [{"text": f"The heart of bird {n} is large and beats fast."} for n in range(40)]
    bad = [{"text": f"Click here now, buy {n} for free, limited offer."} for n in range(40)]
    return _source(lines("good.jsonl", *good)), _source(lines("bad.jsonl", *bad))


def test_features_of_a_text() -> None:
    indices, values = text_features("The cat, the cat.", 1 << 16)
    assert len(indices) == 1 + 2 + 2  # the bias; the, cat; the cat, cat the
    assert indices[0] == 0 and values[0] == 1.0 and np.all(np.diff(indices) > 0)
    assert float(np.sum(values[1:] ** 2)) == pytest.approx(1.0)
    counts = sorted(values[1:] / values[1:].min())
    assert counts == pytest.approx([1.0, *[1 + np.log(2)] * 3])
    assert text_features("", 1 << 16)[0].tolist() == [0]


def test_blocks_of_features_are_the_whole_rows() -> None:
    texts = ["a b c d", "", "d e f a a"]
    edges = feature_edges(1 << 10, 3)
    dense = np.zeros((3, 1 << 10), dtype=np.float32)
    for row, text in enumerate(texts):
        indices, values = text_features(text, 1 << 10)
        dense[row, indices] = values
    weights = np.random.default_rng(0).normal(size=1 << 10)
    blocks = feature_blocks(texts, edges)
    parts = [b.times(weights[i:j]) for b, (i, j) in zip(blocks, itertools.pairwise(edges), strict=True)]
    np.testing.assert_allclose(np.sum(parts, axis=0), dense.astype(np.float64) @ weights, atol=1e-12)


def test_a_trained_one_tells_good_from_bad(tmp_path: Path, examples: tuple[TextSource, TextSource]) -> None:
    good, bad = examples
    training = train(InProcess(), [good], [bad], OPTIONS, tmp_path / "made")
    assert (training.facts.good, training.facts.bad) == (40, 40) and training.facts.loss < 0.1
    classifier = Classifier(tmp_path / "made")
    assert classifier.score("The heart of a bird is large.") > 0.8
    assert classifier.score("Buy now, free offer, click here.") < 0.2
    scores = [score_all(InProcess(), tmp_path / "made", [one]) for one in examples]
    assert area_under_curve(*scores) == 1.0


def test_its_files_are_arrays_and_json(tmp_path: Path, examples: tuple[TextSource, TextSource]) -> None:
    train(InProcess(), [examples[0]], [examples[1]], OPTIONS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".npy", ".json")) == [
        FACTS_NAME, "weights-00000.npy", "weights-00001.npy", "weights-00002.npy",
    ]  # fmt: skip
    weights = [np.load(tmp_path / f"weights-0000{n}.npy", allow_pickle=False) for n in range(3)]
    assert sum(map(len, weights)) == OPTIONS.features


def test_the_same_files_from_any_number_of_workers(
    tmp_path: Path, examples: tuple[TextSource, TextSource], four_workers: Executor
) -> None:
    facts = []
    for name, executor in (("one", InProcess()), ("four", four_workers)):
        options = TrainingOptions(features=1 << 12, blocks=2, iterations=2)
        train(executor, [examples[0]], [examples[1]], options, tmp_path / name)
        facts.append((tmp_path / name / FACTS_NAME).read_text(encoding="utf-8"))
    assert facts[0] == facts[1]  # sums of the files among them


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / FACTS_NAME).unlink(), "holds no classifier"),
        (lambda folder: (folder / FACTS_NAME).write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / FACTS_NAME).write_text("{}"), "'format' is missing"),
        (lambda folder: (folder / "weights-00001.npy").unlink(), "weights-00001.npy cannot be read"),
        (lambda folder: (folder / "weights-00001.npy").write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda folder: np.save(folder / "weights-00001.npy", np.zeros(3)), "has the shape"),
        (
            lambda folder: np.save(folder / "weights-00001.npy", np.array([{}]), allow_pickle=True),
            "cannot be read",
        ),
    ],
)
def test_a_damaged_one(
    tmp_path: Path,
    examples: tuple[TextSource, TextSource],
    spoil: Callable[[Path], object],
    says: str,
) -> None:
    train(InProcess(), [examples[0]], [examples[1]], TrainingOptions(1 << 10, 2, iterations=1), tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=says) as found:
        Classifier(tmp_path)
    assert str(found.value).endswith("; train it again") and "\n" not in str(found.value)


def test_texts_of_one_kind_alone(
    tmp_path: Path, examples: tuple[TextSource, TextSource], lines: Lines
) -> None:
    nothing = _source(lines("empty.jsonl", {"other": 1}))
    with pytest.raises(ConfigError, match="texts of both kinds"):
        train(InProcess(), [examples[0]], [nothing], OPTIONS, tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_area_under_curve_is_mann_and_whitneys_u(seed: int) -> None:
    random = np.random.default_rng(seed)
    good, bad = random.integers(0, 12, size=40) + 2, random.integers(0, 12, size=25)  # with ties
    expected = scipy.stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    assert area_under_curve(good, bad) == pytest.approx(expected, abs=1e-12)


def test_groups_are_held_out_as_a_whole(lines: Lines) -> None:
    records = [{"text": f"text {n}", "group": f"g{n % 20}"} for n in range(200)]
    source = _source(lines("a.jsonl", *records), 10_000)
    parts = {}
    for part in ("learnt", "held out"):
        only = TextSource(source.name, source.template, source.shards, part)  # type: ignore[arg-type]
        parts[part] = [text for shard in only.shards for text in read_texts(only, shard)]
    assert len(parts["learnt"]) + len(parts["held out"]) == 200 and len(parts["held out"]) % 10 == 0
    assert sum(held_out(f"g{n}") for n in range(10_000)) == pytest.approx(1016, abs=150)


def test_on_an_encyclopedia_and_raw_texts(shared_data: Path, tmp_path: Path, lines: Lines) -> None:
    """Learnt from 300 pages and what is installed here, measured on pages, packages and modules that it has
    not seen.
    """

    def pages(name: str, count: int) -> list[str]:
        with lzma.open(shared_data / "text" / name, "rt", encoding="utf-8") as file:
            return [json.loads(line)["text"][:3000] for line in itertools.islice(file, count)]

    good = pages("wikipedia.train.jsonl.xz", 300)
    raw = [
        *itertools.islice(package_texts(), 300),
        *itertools.islice(standard_library_texts(), 200),
        *corruptions(good[:150]),
    ]
    write_pieces(tmp_path / "raw.jsonl", raw)
    bad = _source(tmp_path / "raw.jsonl", 500_000)
    learnt = TextSource(bad.name, bad.template, bad.shards, "learnt")
    source = _source(lines("good.jsonl", *({"text": text} for text in good)), 500_000)
    train(InProcess(), [source], [learnt], TrainingOptions(1 << 16, 2, iterations=15), tmp_path / "made")
    unseen = _source(
        lines("val.jsonl", *({"text": t} for t in pages("wikipedia.val.jsonl.xz", 150))), 500_000
    )
    measured = [
        score_all(InProcess(), tmp_path / "made", [one])
        for one in (unseen, TextSource(bad.name, bad.template, bad.shards, "held out"))
    ]
    assert len(measured[1]) > 20 and area_under_curve(*measured) > 0.95
