"""What each quantizer costs the trained nano model on held-out data, route by route.

    python tests/benchmarks/nano_quantizers.py CHECKPOINT WORK [--data ../shared/data] [--items 40] [--as-is]

The checkpoint was trained on the grid of block-32 rounding, so that this one grid reproduces its weights
exactly and every other has to err: compared as it is (`--as-is`), nothing is learnt about quantizers. So the
model's channels are permuted first: hidden ones, those of values inside a head, and inner ones of the
feed-forward blocks. That is the same function with the same weights, and no block of 32 is one of the
training's any more.

WORK receives the permuted checkpoint, calibration data made of training splits, and a bundle for each
quantizer, which `nano_scores.py` takes. What is there already is used again.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nano_fidelity import cases
from nano_scores import QUESTIONS
from safetensors.torch import load_file, save_file
from torch import Tensor

import phirt
from phirt.prompt.tools import CALL_CLOSE, CALL_OPEN
from phirt_export.exporter import export_bundle
from phirt_export.reference import DecoderConfig, load_config
from phirt_quant.evaluation import BundleReference, compare
from phirt_quant.sizes import bundle_sizes

QUANTIZERS = {
    "rtn-32": {"block_size": 32},
    "mse-32": {"block_size": 32, "method": "mse"},
    "rtn-128": {"block_size": 128},
    "mse-128": {"block_size": 128, "method": "mse"},
    "gptq-128": {"block_size": 128, "method": "gptq"},
    "gptq-4.3": {"block_size": 128, "method": "gptq", "bits_per_weight": 4.3},
}
PAGE_CHARACTERS = 1200


def permuted(state: dict[str, Tensor], decoder: DecoderConfig) -> dict[str, Tensor]:
    """The same function with its channels in another order."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randperm(decoder.hidden_size, generator=generator)
    state = {name: _reorder_hidden(name, tensor, hidden) for name, tensor in state.items()}
    queries_and_keys = (decoder.num_heads + decoder.num_kv_heads) * decoder.head_dim
    for i in range(decoder.num_layers):
        inner = torch.randperm(decoder.intermediate_size, generator=generator)
        value = torch.randperm(decoder.head_dim, generator=generator)
        values = [queries_and_keys + h * decoder.head_dim + value for h in range(decoder.num_kv_heads)]
        rows = {
            "gate_up_proj": torch.cat([inner, inner + decoder.intermediate_size]),
            "qkv_proj": torch.cat([torch.arange(queries_and_keys), *values]),
        }
        columns = {
            "down_proj": inner,
            "o_proj": torch.cat([h * decoder.head_dim + value for h in range(decoder.num_heads)]),
        }
        for name in [name for name in state if name.startswith(f"model.layers.{i}.") and "_proj." in name]:
            projection = name.split(".")[4]
            if projection in rows and ("base_layer" in name or "lora_B" in name):
                state[name] = state[name][rows[projection]]
            if projection in columns and ("base_layer" in name or "lora_A" in name):
                state[name] = state[name][:, columns[projection]]
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _reorder_hidden(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """A tensor with the hidden channels that it reads or writes in another order."""
    reads = ("qkv_proj.base", "qkv_proj.lora_A", "gate_up_proj.base", "gate_up_proj.lora_A", "embed_tokens.w")
    writes = ("o_proj.base", "o_proj.lora_B", "down_proj.base", "down_proj.lora_B")
    norms = ("input_layernorm", "post_attention_layernorm", "model.norm")
    if "embed_tokens_extend" in name:  # the last linear of a projector writes hidden channels
        is_last = "projection" in name and name.split(".")[-2] == "2"
        return tensor[order] if is_last else tensor
    if any(part in name for part in reads):
        return tensor[:, order]
    return tensor[order] if any(part in name for part in (*writes, *norms)) else tensor


def calibration(data: Path, folder: Path) -> Path:
    """Training data of every route as JSON lines, with the media beside them."""
    folder.mkdir(parents=True)
    turns = list(_texts(data))
    for name in ("clothing", "caltech101", "grocery"):
        for file, record in _media(data / "images", f"{name}.train", 24, folder):
            turns.append({"prompt": QUESTIONS[name], "image": file, "answer": record["label"]})
    for name, count in (("speechocean762", 48), ("fsdd", 24)):
        for file, record in _media(data / "speech", f"{name}.train", count, folder):
            turns.append({"audio": file, "answer": record["text"]})
    path = folder / "calibration.jsonl"
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns), encoding="utf-8")
    return path


def _texts(data: Path) -> Iterator[dict[str, Any]]:
    for record in _spread(data / "text/wikipedia.train.jsonl.xz", 32):
        yield {"text": record["text"][:PAGE_CHARACTERS]}
    for record in _spread(data / "text/trivia.train.jsonl.xz", 16):
        yield {"prompt": record["question"], "answer": record["answer"]}
    for record in _spread(data / "text/snips.train.jsonl.xz", 160):
        arguments: dict[str, Any] = {}
        for name, value in record["slots"]:
            arguments.setdefault(name, []).append(value)
        single = {name: values[0] if len(values) == 1 else values for name, values in arguments.items()}
        call = json.dumps([{"name": record["intent"], "arguments": single}], ensure_ascii=False)
        system = "Turn the request into a tool call."  # as in the recipe's training data
        yield {"system": system, "prompt": record["text"], "answer": f"{CALL_OPEN}{call}{CALL_CLOSE}"}


def _spread(path: Path, count: int) -> list[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows = list(lines)
    return [json.loads(rows[i * len(rows) // count]) for i in range(count)]


def _media(source: Path, name: str, count: int, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    with tarfile.open(source / f"{name}.tar") as tar:
        for i in range(count):
            record = json.loads(rows[i * len(rows) // count])
            member = tar.extractfile(record["file"])
            assert member is not None
            file = Path(record["file"]).name
            (folder / file).write_bytes(member.read())
            yield file, record


def prepare(checkpoint: Path, work: Path, data: Path, as_is: bool) -> dict[str, Path]:
    """Bundles by quantizer, and the unquantized one as `fp32`."""
    work.mkdir(parents=True, exist_ok=True)
    source, label = checkpoint, "as-is"
    if not as_is:
        source, label = work / "permuted", "permuted"
        if not source.exists():
            shutil.copytree(checkpoint, work / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
            state = load_file(checkpoint / "model.safetensors")
            decoder = load_config(checkpoint).decoder
            save_file(permuted(state, decoder), work / "copy" / "model.safetensors")
            (work / "copy").rename(source)
    samples = work / "calibration" / "calibration.jsonl"
    if not samples.exists():
        shutil.rmtree(samples.parent, ignore_errors=True)
        calibration(data, samples.parent)
    bundles = {}
    for name, settings in {"fp32": {"bits": 32}, **QUANTIZERS}.items():
        bundles[name] = work / f"{label}-{name}"
        if not bundles[name].exists():
            given = [samples] if settings.get("method") == "gptq" else []
            export_bundle(source, bundles[name], name="nano", calibration=given, **settings)
    return bundles


def main() -> None:
    """Print one row per quantizer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--as-is", action="store_true", help="do not permute the channels")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    bundles = prepare(options.checkpoint, options.work, options.data, options.as_is)
    leader = phirt.load(bundles["fp32"], threads=options.threads)
    print("| quantizer | bits a weight | route | positions | mean KL (nats) | 99th percentile | top-1 |")
    print("|---|---|---|---|---|---|---|")
    for name in QUANTIZERS:
        candidate = phirt.load(bundles[name], threads=options.threads)
        decoder = bundle_sizes(candidate.manifest).decoder
        assert decoder is not None
        for route, batch in cases(leader, options.data, options.items).items():
            f = compare(candidate, BundleReference(leader, candidate), batch, route).fidelity
            print(
                f"| {name} | {decoder.bits_per_weight:.2f} | {route} | {f.positions} | {f.mean_kl:.5f} "
                f"| {f.p99_kl:.4f} | {100 * f.top1_agreement:.1f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
