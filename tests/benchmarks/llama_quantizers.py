"""llama.cpp's quantizers beside phirt's: the same weights, the same tokens, one run, one measure.

    python3.11 -m venv PEERS
    CMAKE_ARGS="-DGGML_NATIVE=ON" PEERS/bin/pip install llama-cpp-python==0.3.36 numpy==2.4.6
    python tests/benchmarks/llama_quantizers.py CHECKPOINT WORK --peers-python PEERS/bin/python --bundle DIR…

CHECKPOINT is a llama checkpoint for transformers, best one that no quantizer has seen (`llama_permuted.py`).
Its float32 GGUF file is quantized by llama.cpp's own code to each type, without and with an importance
matrix: the mean squared inputs of each projection, as its imatrix tool takes them, on phirt's own calibration
text and as many tokens of it as an export by `gptq` looks at. Pages of a text, each a sequence of its own
without a start token, then run through each file and each bundle: every token but a page's first is
predicted, as by `phirt eval`. The reference of every row is transformers' float32. The row F32 is llama.cpp's
own float32: it shows that tokens, rope and rows are right, and ends the program where they are not.

Bits a weight count the matrices, token table and projections together, a tied head once, and no norms. What
blocks of 256 do not divide, llama.cpp stores in a type with blocks of 32; the last column has what each file
really holds. Keys and values are float32 in all; activations are each runtime's own (llama.cpp rounds them to
8 bits before each product). WORK keeps the files; what is there already is used again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_gguf import gguf_names, matrix_sizes, write_gguf
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

import phirt
from phirt.bundle.manifest import Manifest
from phirt_export.calibration import HESSIAN_TOKENS, encode_samples, own_samples
from phirt_export.checkpoint import Checkpoint
from phirt_quant.evaluation import BundleScorer
from phirt_quant.fidelity import Fidelity, FidelityMeter
from phirt_quant.sizes import bundle_sizes

TYPES = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K")
WORKER = Path(__file__).with_name("llama_quantizers_worker.py")
_SAME = 1e-6  # nats between two float32 implementations of one model


@dataclasses.dataclass(frozen=True)
class Page:
    """Token ids, and the reference's logits float32 [ids - 1, vocab] for all but the first."""

    ids: tuple[int, ...]
    logits: np.ndarray


class Peers:
    """The interpreter that has llama.cpp."""

    def __init__(self, python: Path, threads: int, work: Path) -> None:
        self._python, self._threads, self._log = python, threads, work / "llama.log"

    def quantize(self, source: Path, target: Path, kind: str, importance: Path | None) -> None:
        """Write `target`, which appears when it is complete."""
        staging = target.with_name(f".{target.name}.partial")
        arguments = ["quantize", source, staging, kind, *([] if importance is None else [importance])]
        with self._log.open("a") as log:
            subprocess.run([self._python, WORKER, *arguments], check=True, stdout=log, stderr=log)
        staging.rename(target)

    def logits(self, model: Path, pages: Iterable[Page]) -> Iterator[np.ndarray]:
        """The logits of each page, which the file predicts its tokens by."""
        command = [self._python, WORKER, "logits", model, str(self._threads)]
        with (
            self._log.open("a") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
        ):
            assert process.stdin is not None and process.stdout is not None
            for page in pages:
                process.stdin.write(json.dumps(page.ids).encode() + b"\n")
                process.stdin.flush()
                shape = (len(page.ids), page.logits.shape[1])
                raw = process.stdout.read(4 * shape[0] * shape[1])
                if len(raw) != 4 * shape[0] * shape[1]:
                    raise SystemExit(f"llama.cpp has ended; {self._log} says why")
                yield np.frombuffer(raw, np.float32).reshape(shape)[:-1]
            process.stdin.close()


def page_ids(checkpoint: Path, text: Path, count: int, characters: int) -> list[tuple[int, ...]]:
    """The ids of the first pages of JSON lines, each cut after so many characters."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    with lzma.open(text, "rt", encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"][:characters] for _ in range(count)]
    return [tuple(tokenizer.encode(page, add_special_tokens=False).ids) for page in texts]


def reference_pages(model: PreTrainedModel, ids: Iterable[tuple[int, ...]]) -> list[Page]:
    """Pages with the reference's logits."""
    return [Page(page, model(torch.tensor([page])).logits[0, :-1].float().numpy()) for page in ids]


def importance(model: PreTrainedModel, checkpoint: Path) -> dict[str, np.ndarray]:
    """Mean squared inputs of every projection by llama.cpp's name. The head is left out, as its tool does."""
    opened = Checkpoint(checkpoint)
    sums: dict[str, torch.Tensor] = {}
    name_of = gguf_names(model.config.num_hidden_layers)

    def watch(name: str) -> Any:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            squares = inputs[0].double().square().sum(dim=(0, 1))
            sums[name] = sums.get(name, 0) + squares

        return add

    layers = [(n, m) for n, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)]
    hooks = [m.register_forward_pre_hook(watch(f"{name_of(f'model.{n}')}.weight")) for n, m in layers]
    tokens = 0
    for sequence in encode_samples(opened, own_samples(opened), HESSIAN_TOKENS):
        model.model(torch.tensor([sequence.token_ids]))
        tokens += len(sequence.token_ids)
    for hook in hooks:
        hook.remove()
    return {name: (total / tokens).float().numpy() for name, total in sums.items()}


def prepare(model: PreTrainedModel, checkpoint: Path, work: Path, peers: Peers) -> dict[str, Path]:
    """The files by name, float32 first."""
    plain, weights = work / "f32.gguf", work / "importance.npz"
    if not plain.exists():
        write_gguf(model, plain)
    if not weights.exists():
        np.savez(weights, **importance(model, checkpoint))
    files = {"F32": plain}
    for kind in TYPES:
        for name, matrix in ((kind, None), (f"{kind}, importance matrix", weights)):
            files[name] = work / f"{kind.lower()}{'' if matrix is None else '-importance'}.gguf"
            if not files[name].exists():
                peers.quantize(plain, files[name], kind, matrix)
    return files


def measure(pages: Iterable[Page], candidate: Iterable[Iterable[np.ndarray]]) -> Fidelity:
    """Agreement over all pages; the candidate's logits come page by page."""
    meter = FidelityMeter()
    for page, rows in zip(pages, candidate, strict=True):
        for leading, logits, token in zip(page.logits, rows, page.ids[1:], strict=True):
            meter.add(leading[None], logits[None], np.array([token]))
    return meter.result()


def row(name: str, bits: float, fidelity: Fidelity, matrices: str) -> str:
    """One line of the table."""
    before, after = fidelity.reference_perplexity, fidelity.candidate_perplexity
    assert before is not None and after is not None
    return (
        f"| {name} | {bits:.3f} | {after:.4f} | {100 * (after / before - 1):+.2f} % | {fidelity.mean_kl:.3g} "
        f"| {fidelity.p99_kl:.3g} | {100 * fidelity.top1_agreement:.2f} % | {matrices} |"
    )


def bundle_row(folder: Path, pages: list[Page], threads: int) -> str:
    """phirt's line."""
    model = phirt.load(folder, threads=threads)
    scorer, decoder = BundleScorer(model), bundle_sizes(model.manifest).decoder
    assert decoder is not None, f"{folder} does not say what its weights take"
    fidelity = measure(pages, (scorer.score(page.ids, 1) for page in pages))
    return row(f"phirt {folder.name}", decoder.bits_per_weight, fidelity, _formats(model.manifest))


def _formats(manifest: Manifest) -> str:
    """How many matrices have which format, where the manifest counts them; else what is asked of all."""
    said = manifest.quantization
    if counts := said.get("matrices"):
        return ", ".join(f"{count} of {form}" for form, count in counts.items())
    return f"{said.get('bits')} bits, blocks of {said.get('block_size')}, {said.get('method')}"


@torch.no_grad()
def main() -> None:
    """Print one row per file and bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(__file__).resolve().parents[3] / "shared"
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peers-python", type=Path, required=True, help="the interpreter with llama.cpp")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="of phirt; repeatable")
    parser.add_argument("--text", type=Path, default=shared / "data/text/wikipedia.val.jsonl.xz")
    parser.add_argument("--pages", type=int, default=12)
    parser.add_argument("--characters", type=int, default=2000, help="of each page")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    peers = Peers(options.peers_python.absolute(), options.threads, options.work)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    pages = reference_pages(
        model, page_ids(options.checkpoint, options.text, options.pages, options.characters)
    )
    files = prepare(model, options.checkpoint, options.work, peers)
    del model
    print("| quantizer | bits a weight | perplexity | change | mean KL (nats) | p99 KL | top-1 | matrices |")
    print("|---|---|---|---|---|---|---|---|")
    for name, path in files.items():
        fidelity = measure(pages, peers.logits(path, pages))
        bits, types = matrix_sizes(path)
        print(row(f"llama.cpp {name}", bits, fidelity, types), flush=True)
        if name == "F32" and fidelity.mean_kl > _SAME:
            raise SystemExit("llama.cpp's float32 is not transformers': tokens, rope or rows differ")
    for folder in options.bundle:
        print(bundle_row(folder, pages, options.threads), flush=True)
    print(f"\n{fidelity.positions} positions; float32: perplexity {fidelity.reference_perplexity:.4f}")


if __name__ == "__main__":
    main()
