"""An embedding model whose vectors can be counted by hand: the sums of rows of a small table."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from phirt.bundle.document import manifest_bytes
from phirt.bundle.manifest import EMBEDDER, EmbedderManifest, FileEntry, GraphSpec, TensorSpec

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


def write_embedder(folder: Path, **changes: Any) -> EmbedderManifest:
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
