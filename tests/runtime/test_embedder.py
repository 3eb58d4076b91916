"""Embedding models: vectors in the order of the texts, whatever is run together; bundles of the two kinds."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import phirt
from phirt.bundle.document import manifest_bytes
from phirt.bundle.files import load_any, load_embedder, verify_bundle
from phirt.bundle.manifest import EMBEDDER, EmbedderManifest, FileEntry, GraphSpec, TensorSpec
from phirt.errors import BundleError, ClosedError, ConfigError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "sea", "boat", "wind", "old"]
TABLE = np.array([[9, 9], [0, 0], [1, 0], [2, 3], [4, 5], [6, 7], [8, 0.5]], np.float32)


def _graph(path: Path) -> None:
    """Sums the rows of a table over the tokens that the mask leaves."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["embeddings"], keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(TABLE, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "middle"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["texts", 2])
    graph = helper.make_graph(nodes, "sum", inputs, [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def _bundle(folder: Path, **changes: Any) -> EmbedderManifest:
    folder.mkdir(exist_ok=True)
    _graph(folder / "embedder.onnx")
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[SEP]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=30)  # as many published files say; an embedder pads as it needs
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = tuple(TensorSpec(n, "int64", ("texts", "tokens")) for n in ("input_ids", "attention_mask"))
    vectors = (TensorSpec("embeddings", "float32", ("texts", 2)),)
    manifest = EmbedderManifest(
        name="sums",
        files={
            path.name: FileEntry(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in (folder / "embedder.onnx", folder / "tokenizer.json")
        },
        graphs={EMBEDDER: GraphSpec("embedder.onnx", (), "cpu", ids, vectors)},
        tokenizer="tokenizer.json",
        width=2,
        context=6,
        pad=0,
        prompts={"query": "old "},
        folder=folder,
        fingerprint="",
    )
    manifest = dataclasses.replace(manifest, **changes)
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A model whose vectors can be added up by hand."""
    _bundle(tmp_path / "bundle")
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
    written = _bundle(tmp_path / "bundle")
    read = load_embedder(tmp_path / "bundle")
    assert dataclasses.replace(read, fingerprint="") == written
    assert load_any(tmp_path / "bundle") == read
    assert [detail for _, detail in verify_bundle(tmp_path / "bundle")] == ["ok", "ok"]


def test_each_kind_of_bundle_names_what_opens_it(bundle: Path) -> None:
    from phirt.model import embedded_bundle

    with pytest.raises(BundleError, match=r"embedding model, .*open it with phirt\.Embedder"):
        phirt.load(bundle)
    with pytest.raises(BundleError, match=r"answers, and no embedding model; open it with phirt\.load"):
        phirt.Embedder(embedded_bundle())


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
        _bundle(tmp_path / "bundle", **changes)
