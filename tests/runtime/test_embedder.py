"""Embedding models: vectors in the order of the texts, whatever is run together; bundles of the two kinds."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_embedder import TABLE, WORDS, write_embedder

import phirt
from phirt.bundle.files import load_any, load_embedder, verify_bundle
from phirt.bundle.manifest import GraphSpec
from phirt.errors import BundleError, ClosedError, ConfigError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A model whose vectors can be added up by hand."""
    write_embedder(tmp_path / "bundle")
    return tmp_path / "bundle"


def _sum(words: str) -> np.ndarray:
    kept = words.split()[:4]  # of six tokens, two are special
    return TABLE[[1, *(WORDS.index(word) for word in kept), 2]].sum(0)


def test_vectors_come_in_the_order_of_the_texts(bundle: Path) -> None:
    texts = ["sea", "wind boat sea", "", "boat"] * 700  # several runs, and lengths mixed in each
    with phirt.Embedder(bundle) as embedder:
        vectors = embedder.embed(texts)
        assert embedder.embed([]).shape == (0, 2)
        one = embedder.embed("wind boat sea")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([_sum(text) for text in texts]))
    np.testing.assert_array_equal(one, [_sum("wind boat sea")])


def test_what_is_past_the_context_is_cut_off(bundle: Path) -> None:
    with phirt.Embedder(bundle) as embedder:
        np.testing.assert_array_equal(embedder.embed("sea boat wind old " * 50), [_sum("sea boat wind old")])
        assert (embedder.width, embedder.context) == (2, 6)


def test_a_prompt_stands_before_every_text(bundle: Path) -> None:
    with phirt.Embedder(bundle) as embedder:
        vectors = embedder.embed(["sea", "boat"], prompt="query")
        np.testing.assert_array_equal(vectors, [_sum("old sea"), _sum("old boat")])
        with pytest.raises(ConfigError, match="prompt 'passage' is none of this model's; accepted: query"):
            embedder.embed("sea", prompt="passage")


def test_texts_are_strings_and_half_characters_harm_nothing(bundle: Path) -> None:
    with phirt.Embedder(bundle) as embedder:
        with pytest.raises(ConfigError, match="a text is a int, accepted: strings"):
            embedder.embed(["sea", 3])  # type: ignore[list-item]
        np.testing.assert_array_equal(embedder.embed("sea \ud800"), [TABLE[[1, 3, 2, 2]].sum(0)])


def test_many_threads_share_one(bundle: Path) -> None:
    texts = [" ".join(WORDS[3 + (i + j) % 4] for j in range(i % 5)) for i in range(64)]
    with phirt.Embedder(bundle) as embedder, concurrent.futures.ThreadPoolExecutor(4) as pool:
        for text, vectors in zip(texts, pool.map(embedder.embed, texts), strict=True):
            np.testing.assert_array_equal(vectors, [_sum(text)])


def test_a_closed_one_says_so(bundle: Path) -> None:
    embedder = phirt.Embedder(bundle)
    assert "2 numbers a text" in repr(embedder)
    embedder.close()
    embedder.close()
    with pytest.raises(ClosedError):
        embedder.embed("sea")
    assert "closed" in repr(embedder)


def test_the_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_embedder(tmp_path / "bundle")
    read = load_embedder(tmp_path / "bundle")
    assert dataclasses.replace(read, fingerprint="") == written
    assert load_any(tmp_path / "bundle") == read
    assert [detail for _, detail in verify_bundle(tmp_path / "bundle")] == ["ok", "ok"]


def test_each_kind_of_bundle_names_what_opens_it(bundle: Path, nano: Path) -> None:
    with pytest.raises(BundleError, match=r"embedding model, .*open it with phirt\.Embedder"):
        phirt.load(bundle)
    with pytest.raises(BundleError, match=r"answers, and no embedding model; open it with phirt\.load"):
        phirt.Embedder(nano)


def test_a_damaged_file_is_found_before_use(bundle: Path) -> None:
    path = bundle / "embedder.onnx"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match=r"embedder\.onnx: sha256 is"):
        phirt.Embedder(bundle, verify=True)


def test_a_tokenizer_that_is_none_is_one_line(bundle: Path) -> None:
    path = bundle / "tokenizer.json"
    path.write_text(json.dumps({"model": None}).ljust(path.stat().st_size))
    with pytest.raises(BundleError, match="is not a usable tokenizer"):
        phirt.Embedder(bundle)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 3}, r"'embeddings' has the shape \['texts', 2\], expected \[any, 3\]"),
        (
            {"graphs": {"decoder": GraphSpec("embedder.onnx", (), "cpu", (), ())}},
            "'graphs' has no 'embedder'",
        ),
        ({"tokenizer": "other.json"}, "'other.json' is used but not listed in 'files'"),
        ({"context": 0}, "context"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BundleError, match=named):
        write_embedder(tmp_path / "bundle", **changes)
