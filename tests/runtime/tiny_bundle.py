"""Makes a bundle with random weights that keeps the graph contract, small enough to build in a second.

The decoder is a real one: embeddings, RMS norm, fused qkv, GroupQueryAttention with shared past and present,
routed low-rank branches, FFN, a head of its own. The encoders are deterministic formulas with the contract's
inputs and outputs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

_MARKS = "endoftext endoftext10 endoftext11 assistant end user system tool /tool"
CONTROL = tuple(f"<|{name}|>" for name in f"{_MARKS} tool_call /tool_call tool_response".split())
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.tools %}<|tool|>{{ message.tools }}<|/tool|>{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = (
    "The quick brown fox jumps over the lazy dog. What is this picture? Please describe the sound that you "
    "hear. "
    "naïve café über straße 你好，世界 👋🏽 привет мир ελληνικά "
) * 4


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Sizes of the tiny decoder. `long` differs from `short` where a test wants the long rotary regime."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    hidden: int = 32
    inner: int = 48
    vocab: int = 512
    context: int = 1024
    original_context: int = 1024
    rotary_dim: int = 16
    long: float = 1.0
    seed: int = 0


def write_bundle(folder: Path, tiny: Tiny | None = None, *, vision: bool = True, speech: bool = True) -> Path:
    """Writes the bundle into `folder`, which must exist, and returns it."""
    tiny = tiny or Tiny()
    graphs = {"decoder": _decoder(tiny)}
    if vision:
        graphs["vision"] = _vision(tiny)
    if speech:
        graphs["speech"] = _speech(tiny)
    _write_tokenizer(folder / "tokenizer.json", tiny.vocab)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    described = {name: _save(folder, name, model) for name, model in graphs.items()}
    manifest = {
        "format": "phirt-bundle",
        "version": 2,
        "name": "tiny",
        "description": "random weights",
        "producer": "tests",
        "files": {},
        "graphs": described,
        "geometry": {
            "num_layers": tiny.layers,
            "num_heads": tiny.heads,
            "num_kv_heads": tiny.kv_heads,
            "head_dim": tiny.head_dim,
            "hidden_size": tiny.hidden,
            "intermediate_size": tiny.inner,
            "vocab_size": tiny.vocab,
            "context": tiny.context,
            "rope": {
                "theta": 10000.0,
                "rotary_dim": tiny.rotary_dim,
                "original_context": tiny.original_context,
                "short_factor": [1.0] * (tiny.rotary_dim // 2),
                "long_factor": [tiny.long] * (tiny.rotary_dim // 2),
            },
        },
        "tokens": {"bos": 0, "pad": 0, "eos": [0, 4]},
        "chat_template": "chat_template.jinja",
        "tokenizer": "tokenizer.json",
        **encoders_and_rules(vision, speech),
        "limits": {"image_pixels": 1000000, "audio_seconds": 10.0, "media_bytes": 16777216},
        "quantization": {"bits": 32, "block_size": 32, "adapter_bits": 32, "encoder_bits": 32},
    }
    write_manifest(folder, manifest)
    return folder


def encoders_and_rules(vision: bool, speech: bool) -> dict:
    """The manifest's encoders, adapters and rules, as Phi-4-multimodal has them."""
    encoders, adapters, rules = {}, {}, []
    if vision:
        constants = {"crop_size": 32, "patch_size": 4, "pool": 2, "max_crops": 4, "min_side": 4}
        encoders["vision"] = {
            "kind": "phi4mm_image", "modality": "image", "graph": "vision", "placeholder": 1,
            "projectors": ["image"], "constants": constants,
        }  # fmt: skip
        adapters["vision"] = {"id": 1}
        heard = {"speech": "vision"} if speech else {}
        rules.append({"modalities": ["image"], "adapter": "vision", "projectors": heard})
    if speech:
        constants = {"sample_rate": 16000, "num_mels": 80, "subsampling": 8, "window_tokens": 50}
        encoders["speech"] = {
            "kind": "phi4mm_audio", "modality": "audio", "graph": "speech", "placeholder": 2,
            "projectors": ["speech", "vision"], "constants": constants,
        }  # fmt: skip
        adapters["speech"] = {"id": 2}
        rules.append({"modalities": ["audio"], "adapter": "speech", "projectors": {"speech": "speech"}})
    rules.append({"modalities": [], "adapter": None, "projectors": {}})
    return {"encoders": encoders, "adapters": adapters, "rules": rules}


def as_version_1(manifest: dict) -> dict:
    """The same in the words of the first version: constants at the root, routes for adapter and projector."""
    encoders = manifest["encoders"]
    image, audio = encoders.get("vision"), encoders.get("speech")
    tokens = {
        "image": image and image["placeholder"],
        "audio": audio and audio["placeholder"],
    }
    old = {key: value for key, value in manifest.items() if key not in ("encoders", "adapters", "rules")}
    return old | {
        "version": 1,
        "tokens": manifest["tokens"] | tokens,
        "image": image and image["constants"],
        "audio": audio and audio["constants"],
        "routes": {
            "none": {"id": 0, "adapter": None, "audio_projector": None},
            "vision": {"id": 1, "adapter": "vision", "audio_projector": "vision"},
            "speech": {"id": 2, "adapter": "speech", "audio_projector": "speech"},
        },
    }


def write_manifest(folder: Path, manifest: dict) -> None:
    """Writes manifest.json with sizes and checksums of what lies in `folder`."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    manifest["files"] = {
        name: {
            "size": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in names
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


class _Graph:
    """Collects nodes and initializers of one graph."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def op(
        self, kind: str, *inputs: str, domain: str = "", outputs: list[str] | None = None, **attributes
    ) -> str:
        outputs = outputs or [f"node{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, domain=domain, **attributes))
        return outputs[0]

    def const(self, name: str, value) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(f"i{len(self.initializers)}", np.array(values, dtype=np.int64))

    def input(self, name: str, kind: int, shape: list) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: list) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _save(folder: Path, name: str, model: onnx.ModelProto) -> dict:
    onnx.save_model(
        model, folder / f"{name}.onnx", save_as_external_data=True, location=f"{name}.data", size_threshold=64
    )
    return {
        "file": f"{name}.onnx",
        "data": [f"{name}.data"],
        "target": "cpu",
        "inputs": [_tensor(value) for value in model.graph.input],
        "outputs": [_tensor(value) for value in model.graph.output],
    }


def _tensor(value: onnx.ValueInfoProto) -> dict:
    kind = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    return {"name": value.name, "dtype": helper.tensor_dtype_to_np_dtype(kind.elem_type).name, "shape": shape}


def rotary_caches(tiny: Tiny) -> dict[str, np.ndarray]:
    """cos and sin [context, rotary_dim/2] of both regimes."""
    caches = {}
    for regime, factor in (("short", 1.0), ("long", tiny.long)):
        exponents = np.arange(0, tiny.rotary_dim, 2) / tiny.rotary_dim
        angles = np.outer(np.arange(tiny.context), 1.0 / (factor * 10000.0**exponents))
        caches[f"cos_{regime}"] = np.cos(angles).astype(np.float32)
        caches[f"sin_{regime}"] = np.sin(angles).astype(np.float32)
    return caches


def _decoder(t: Tiny) -> onnx.ModelProto:
    g = _Graph("decoder")
    rng = np.random.default_rng(t.seed)

    def weight(name: str, *shape: int) -> str:
        return g.const(name, (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    g.input("input_ids", TensorProto.INT64, [1, "tokens"])
    g.input("media_features", TensorProto.FLOAT, ["media", t.hidden])
    g.input("route", TensorProto.INT64, [1])
    g.input("num_logits", TensorProto.INT64, [1])
    g.input("seqlens_k", TensorProto.INT32, [1])
    g.input("total_sequence_length", TensorProto.INT32, [1])
    table = g.const("embedding", rng.standard_normal((t.vocab, t.hidden)).astype(np.float32))
    hidden = _embed(g, table, t)
    is_long = g.op(
        "Greater", "total_sequence_length", g.const("switch", np.array([t.original_context], np.int32))
    )
    caches = {name: g.const(name, value) for name, value in rotary_caches(t).items()}
    cos = g.op("Where", is_long, caches["cos_long"], caches["cos_short"])
    sin = g.op("Where", is_long, caches["sin_long"], caches["sin_short"])
    kv_shape = [1, t.kv_heads, "capacity", t.head_dim]
    for layer in range(t.layers):
        normed = _norm(g, hidden)
        widths = (t.heads * t.head_dim, t.kv_heads * t.head_dim, t.kv_heads * t.head_dim)
        qkv = g.op("MatMul", normed, weight(f"qkv{layer}", t.hidden, sum(widths)))
        qkv = g.op("Add", qkv, _branch(g, normed, f"{layer}", sum(widths), t, rng))
        parts = [f"q{layer}", f"k{layer}", f"v{layer}"]
        g.op("Split", qkv, g.ints(*widths), outputs=parts, axis=-1)
        past = [
            g.input(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, kv_shape)
            for part in ("key", "value")
        ]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        attended = g.op(
            "GroupQueryAttention", *parts, *past, "seqlens_k", "total_sequence_length", cos, sin,
            domain="com.microsoft", outputs=[f"attended{layer}", *present],
            num_heads=t.heads, kv_num_heads=t.kv_heads, do_rotary=1,
        )  # fmt: skip
        for name in present:
            g.output(name, TensorProto.FLOAT, kv_shape)
        hidden = g.op("Add", hidden, g.op("MatMul", attended, weight(f"o{layer}", widths[0], t.hidden)))
        normed = _norm(g, hidden)
        inner = g.op("Relu", g.op("MatMul", normed, weight(f"up{layer}", t.hidden, t.inner)))
        hidden = g.op("Add", hidden, g.op("MatMul", inner, weight(f"down{layer}", t.inner, t.hidden)))
    start = g.op("Sub", g.op("Gather", g.op("Shape", "input_ids"), g.ints(1)), "num_logits")
    last = g.op("Slice", _norm(g, hidden), start, g.ints(1 << 30), g.ints(1))
    g.op(
        "MatMul", last, weight("head", t.hidden, t.vocab), outputs=["logits"]
    )  # a tied one would repeat its input
    g.output("logits", TensorProto.FLOAT, [1, "num_logits", t.vocab])
    return g.model()


def _embed(g: _Graph, table: str, t: Tiny) -> str:
    """Rows of the table, with those of placeholder ids replaced by the media features in order."""
    flat = g.op("Reshape", "input_ids", g.ints(-1))
    rows = g.op("Gather", table, flat)
    is_media = g.op("Or", g.op("Equal", flat, g.ints(1)), g.op("Equal", flat, g.ints(2)))
    positions = g.op("Transpose", g.op("NonZero", is_media), perm=[1, 0])
    return g.op("Unsqueeze", g.op("ScatterND", rows, positions, "media_features"), g.ints(0))


def _norm(g: _Graph, x: str) -> str:
    square = g.op("ReduceMean", g.op("Mul", x, x), g.ints(-1))
    return g.op("Div", x, g.op("Sqrt", g.op("Add", square, g.const(f"eps{len(g.nodes)}", np.float32(1e-5)))))


def _branch(g: _Graph, x: str, name: str, width: int, t: Tiny, rng: np.random.Generator) -> str:
    """A rank-4 branch chosen by the route; route 0 takes one of zeros."""
    down = rng.standard_normal((3, t.hidden, 4)).astype(np.float32) / np.float32(np.sqrt(t.hidden))
    down[0] = 0
    up = rng.standard_normal((3, 4, width)).astype(np.float32)
    chosen = [
        g.op("Gather", g.const(f"{side}{name}", value), "route") for side, value in (("a", down), ("b", up))
    ]
    return g.op("MatMul", g.op("MatMul", x, chosen[0]), chosen[1])


def _vision(t: Tiny) -> onnx.ModelProto:
    """Every output row is the mean of all pixels times a matrix, plus a multiple of the row's number."""
    g = _Graph("vision")
    side, grid = 32, 8
    g.input("pixel_values", TensorProto.FLOAT, ["crops", 3, side, side])
    g.input("patch_mask", TensorProto.BOOL, ["crops", grid * grid])
    g.input("position_ids", TensorProto.INT64, ["crops", grid * grid])
    g.input("crop_grid", TensorProto.INT64, [2])
    g.input("feature_grid", TensorProto.INT64, [2])
    pooled = g.op("ReduceMean", "pixel_values", g.ints(0, 2, 3), keepdims=0)
    u, v = g.op("Gather", "feature_grid", g.ints(0)), g.op("Gather", "feature_grid", g.ints(1))
    kept = g.op("ReduceSum", g.op("Cast", "patch_mask", to=TensorProto.INT64), g.ints(0, 1), keepdims=0)
    bucket = g.op("ReduceMax", "position_ids", g.ints(0, 1), keepdims=0)
    crops = g.op("ReduceSum", "crop_grid", g.ints(0), keepdims=0)
    facts = g.op("Cast", g.op("Add", g.op("Add", kept, bucket), crops), to=TensorProto.FLOAT)
    count = g.op("Add", g.op("Add", g.op("Mul", u, v), u), g.ints(1 + 4 * 4 + 4))
    _rows(g, pooled, count, "image_features", t, 3, facts)
    return g.model()


def _speech(t: Tiny) -> onnx.ModelProto:
    """Every output row is the mean frame times the projector's matrix, plus a multiple of the row's
    number.
    """
    g = _Graph("speech")
    g.input("audio_embeds", TensorProto.FLOAT, [1, "frames", 80])
    g.input("projector", TensorProto.INT64, [1])
    pooled = g.op("ReduceMean", "audio_embeds", g.ints(0, 1), keepdims=0)
    frames = g.op("Gather", g.op("Shape", "audio_embeds"), g.ints(1))
    count = g.op("Div", g.op("Add", frames, g.ints(7)), g.ints(8))
    _rows(g, pooled, count, "audio_features", t, 80, g.op("Cast", "projector", to=TensorProto.FLOAT))
    return g.model()


def _rows(g: _Graph, pooled: str, count: str, name: str, t: Tiny, width: int, extra: str) -> None:
    rng = np.random.default_rng(t.seed + width)
    matrix = g.const(
        "matrix", rng.standard_normal((width, t.hidden)).astype(np.float32) / np.float32(width**0.5)
    )
    row = g.op("Add", g.op("MatMul", pooled, matrix), extra)
    scalar = g.op("Reshape", count, g.const("scalar", np.zeros(0, dtype=np.int64)))
    zero, one = g.const("zero", np.int64(0)), g.const("one", np.int64(1))
    numbers = g.op("Cast", g.op("Range", zero, scalar, one), to=TensorProto.FLOAT)
    column = g.op("Unsqueeze", g.op("Sin", numbers), g.ints(1))
    g.op("Add", column, g.op("Unsqueeze", row, g.ints(0)), outputs=[name])
    g.output(name, TensorProto.FLOAT, ["rows", t.hidden])


def _write_tokenizer(path: Path, vocab: int) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in CONTROL]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.save(str(path))
