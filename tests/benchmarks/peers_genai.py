"""Builds onnxruntime-genai's int4 model of a phi3 checkpoint in little memory: `peers.py` runs it.

    python tests/benchmarks/peers_genai.py CHECKPOINT FOLDER [KEY=VALUE ...]

onnxruntime-genai's own builder keeps a whole model in float32 until it is quantized, more than 24 GB for
Phi-4-mini's size. Here the same builder exports parts of the checkpoint, each with four of its layers and an
equal share of its vocabulary: 5 GB. The parts are then put together: each layer has its own quantized
weights, the shares of the tied head follow one another (blocks of weights never reach over rows), and the
graph is the first part's with its last layer repeated. KEY=VALUE are extra options of the builder.

The result is the builder's own: for the 904m checkpoint of `peers.py`, with its defaults and with
`block_size=128 fuse_mlp_gate_up=true`, every file equals byte for byte what one run of the builder writes.

Knows the names that onnxruntime-genai 0.18.0 gives to what it builds of a phi3 checkpoint with a tied head,
and ends with a message where layers or vocabulary cannot be shared out. Needs `onnx`, `onnxruntime-genai`,
`safetensors`, `torch` and `transformers`.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import save_file

LAYERS = 4  # of a part: with a share of 25,008 rows, half a billion weights
_BUILDER = ("-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu")
_NUMBERED = re.compile(r"\b(layers|past_key_values|present)\.(\d+)\b")
_MODEL, _DATA, _SETTINGS = "model.onnx", "model.onnx.data", "genai_config.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head."


def layer_of(name: str) -> int | None:
    """The number of the layer that a name belongs to, if it does; the final norm has the number after."""
    found = _NUMBERED.search(name)
    return int(found[2]) if found else None


def moved(name: str, by: int) -> str:
    """The name that the same thing has so many layers later."""
    return _NUMBERED.sub(lambda found: f"{found[1]}.{int(found[2]) + by}", name)


def write_part(checkpoint: Path, config: dict[str, Any], number: int, rows: int, folder: Path) -> None:
    """A checkpoint of the part's layers, its rows of the table, the final norm, and the same tokenizer."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "model.safetensors.index.json"):
            (folder / path.name).symlink_to(path)
    # Padding would be a row that only one part has.
    changes = {"num_hidden_layers": LAYERS, "vocab_size": rows, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    tensors = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                layer = layer_of(name)
                if name == _EMBEDDING:
                    tensors[name] = file.get_slice(name)[number * rows : (number + 1) * rows]
                elif layer is None:
                    tensors[name] = file.get_tensor(name)
                elif layer // LAYERS == number:
                    tensors[moved(name, -number * LAYERS)] = file.get_tensor(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def build(checkpoint: Path, folder: Path, options: Sequence[str]) -> None:
    """One run of the builder, or the end of the program with the end of what it wrote."""
    paths = ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder.parent / "cache")]
    command = [sys.executable, *_BUILDER, *paths, "--extra_options", "hf_token=false", *options]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"onnxruntime-genai's builder failed with status {done.returncode}:\n{done.stderr[-2000:]}")


def renamed(item: Any, by: int) -> Any:
    """A copy of a node, a value or a tensor for a layer so much later."""
    copy = type(item)()
    copy.CopyFrom(item)
    copy.name = moved(item.name, by)
    if isinstance(item, onnx.NodeProto):
        copy.input[:] = [moved(name, by) for name in item.input]
        copy.output[:] = [moved(name, by) for name in item.output]
    return copy


def deepen(graph: onnx.GraphProto, depth: int) -> None:
    """Repeats a part's last layer until there are `depth`; what follows the layers then follows the last."""
    for field in ("node", "input", "output", "value_info", "initializer"):
        items: list[Any] = []
        for layer, run in itertools.groupby(getattr(graph, field), key=lambda item: layer_of(item.name)):
            group = list(run)
            if layer is None or layer == LAYERS:
                shifts = range(depth - LAYERS, depth - LAYERS + 1)
            else:
                shifts = range(depth - LAYERS + 1 if layer == LAYERS - 1 else 1)
            items += [renamed(item, by) for by in shifts for item in group]
        graph.ClearField(field)
        getattr(graph, field).extend(items)


def widen(graph: onnx.GraphProto, rows: int, vocabulary: int) -> None:
    """Writes the whole vocabulary's size wherever the graph tells a part's: attributes, constants, shapes."""

    def whole(name: str) -> str:
        return name.replace(f"[{rows}, ", f"[{vocabulary}, ")

    for node in graph.node:
        node.name = whole(node.name)
        node.input[:] = [whole(name) for name in node.input]
        node.output[:] = [whole(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.name == "N" and attribute.i == rows:
                attribute.i = vocabulary
            elif attribute.type == onnx.AttributeProto.TENSOR:
                values = numpy_helper.to_array(attribute.t).copy()
                values[values == rows] = vocabulary
                attribute.t.CopyFrom(numpy_helper.from_array(values, whole(attribute.t.name)))
    for value in (*graph.value_info, *graph.output):
        value.name = whole(value.name)
        for size in value.type.tensor_type.shape.dim:
            if size.dim_value == rows:
                size.dim_value = vocabulary


def write_weights(graph: onnx.GraphProto, parts: Sequence[Path], path: Path) -> None:
    """Copies each weight from the part that has it, those of the head from all, and says where it lies."""
    tables = []
    for part in parts:
        tensors = onnx.load(part / _MODEL, load_external_data=False).graph.initializer
        tables.append({tensor.name: tensor for tensor in tensors})
    with path.open("wb") as file:
        for tensor in graph.initializer:
            number = min((layer_of(tensor.name) or 0) // LAYERS, len(parts) - 1)
            shared = tensor.name.startswith(_HEAD)
            offset, height = file.tell(), 0
            for i in range(len(parts)) if shared else (number,):
                own = tables[i][moved(tensor.name, -number * LAYERS)]
                file.write(data_of(own, parts[i]))
                height += own.dims[0]
            tensor.dims[0] = height
            place = {"location": _DATA, "offset": str(offset), "length": str(file.tell() - offset)}
            for entry in tensor.external_data:
                entry.value = place[entry.key]


def data_of(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """The bytes of a weight, read from the file that lies beside its model."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        return file.read(int(place["length"]))


def join(parts: Sequence[Path], config: dict[str, Any], rows: int, folder: Path) -> None:
    """Puts the parts' graphs and weights together, beside settings that the builder wrote without a model."""
    model = onnx.load(parts[0] / _MODEL, load_external_data=False)
    deepen(model.graph, config["num_hidden_layers"])
    widen(model.graph, rows, config["vocab_size"])
    write_weights(model.graph, parts, folder / _DATA)
    onnx.save(model, folder / _MODEL)
    settings = json.loads((folder / _SETTINGS).read_text())
    # Without a model the builder leaves this off; with one it follows from the kind of attention.
    built = json.loads((parts[0] / _SETTINGS).read_text())
    settings["search"]["past_present_share_buffer"] = built["search"]["past_present_share_buffer"]
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=4))


def main() -> None:
    """Build the parts one after the other, join them, and name the folder when it is complete."""
    checkpoint, output, options = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), sys.argv[3:]
    config = json.loads((checkpoint / "config.json").read_text())
    depth, vocabulary = config["num_hidden_layers"], config["vocab_size"]
    count = max(1, depth // LAYERS)
    rows = vocabulary // count
    if config["model_type"] != "phi3" or not config["tie_word_embeddings"]:
        sys.exit(f"{checkpoint} is no phi3 checkpoint with a tied head")
    if depth != count * LAYERS or vocabulary != count * rows or rows in config.values():
        sys.exit(f"{depth} layers and {vocabulary} rows cannot be shared out among parts of {LAYERS} layers")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        work = Path(name)
        parts = [work / f"part-{number}" for number in range(count)]
        for number, part in enumerate(parts):
            source = work / "checkpoint"
            write_part(checkpoint, config, number, rows, source)
            build(source, part, options)
            (source / "model.safetensors").unlink()
            source.rename(work / f"checkpoint-{number}")
        build(checkpoint, work / "whole", ["config_only=true", *options])
        join(parts, config, rows, work / "whole")
        (work / "whole").rename(output)


if __name__ == "__main__":
    main()
