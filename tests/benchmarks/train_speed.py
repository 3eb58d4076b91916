"""Training on rows of tokens: tokens a second, and the share of the machine's arithmetic that the model's own
takes.

    python tests/benchmarks/train_speed.py nano
    python tests/benchmarks/train_speed.py 1b --batch 32 --micro-batch 4 --checkpoint-activations

A step is one of the trainer, optimiser included. Counted are 6 floating point operations a token for each
weight of the layers and of the head, and 12·layers·width·T for attention (Chowdhery et al., arXiv 2204.02311,
appendix B), learnt or not; layers that run again are not counted twice. The machine's
arithmetic is what its product of two matrices of 4096² reaches, measured here, and for known
GPUs their data sheets.
`--profile` lists where the time goes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from phirt_export.precision import product_type
from phirt_export.reference import (
    DecoderConfig,
    Documents,
    Model,
    ModelConfig,
    RopeConfig,
    TokenConfig,
    initialize,
)
from phirt_train.chunked_loss import IGNORED
from phirt_train.loop import StageRun
from phirt_train.objective import Loss, Share
from phirt_train.row_loss import RowBatch, RowLoss
from phirt_train.stage import Schedule, StageConfig

# Layers, width, heads, key heads, head width, inner width, vocabulary; 135m is SmolLM2's, 1b Llama 3.2's.
SIZES = {
    "nano": (6, 256, 4, 2, 64, 768, 4096),
    "135m": (30, 576, 9, 3, 64, 1536, 49152),
    "1b": (16, 2048, 32, 8, 64, 8192, 128256),
}
ROWS = {"nano": (16, 256), "135m": (64, 2048), "1b": (16, 2048)}  # batch, tokens of a row
DATA_SHEET = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bfloat16
PACKED = 0.4  # of the rows, as in nano's text stage; the others are one text
WARM_UP = 3


class MadeRows:
    """Rows of random tokens; some hold conversations of which half is learnt."""

    unit = "tokens"

    def __init__(self, model: Model, stage: StageConfig, device: torch.device, length: int) -> None:
        self.head = nn.Module()
        self._batch, self._length, self._vocabulary = stage.batch, length, model.config.decoder.vocab_size
        self.loss_of = RowLoss(model, device, length, compiles=stage.compile)

    def prepare(self, step: int, share: Share) -> RowBatch:
        """A function of step and row."""
        numbers = share.of(range(self._batch))
        token_ids = np.zeros((len(numbers), self._length + 1), np.int64)
        documents = np.zeros((len(numbers), self._length), np.int64)
        learnt = np.ones((len(numbers), self._length), bool)
        for row, number in enumerate(numbers):
            rng = np.random.default_rng((step, number))
            token_ids[row] = rng.integers(0, self._vocabulary, self._length + 1)
            if number < PACKED * self._batch:
                documents[row] = np.sort(rng.integers(0, max(2, self._length // 64), self._length))
                learnt[row] = rng.random(self._length) < 0.5
        targets = np.where(learnt, token_ids[:, 1:], IGNORED)
        packed = Documents.of(documents) if (documents != 0).any() else None
        return RowBatch(torch.from_numpy(token_ids[:, :-1].copy()), torch.from_numpy(targets), packed)

    def loss(self, batch: RowBatch) -> Loss:
        """The trainer's own."""
        return self.loss_of(batch)

    def validate(self) -> dict[str, float]:
        """Nothing is measured."""
        return {}


def make_model(size: str, row_tokens: int) -> Model:
    """A decoder with fresh weights."""
    layers, width, heads, key_heads, head, inner, vocabulary = SIZES[size]
    ones = (1.0,) * (head // 2)
    rope = RopeConfig(1e4, head, row_tokens, row_tokens, ones, ones)
    decoder = DecoderConfig(layers, width, heads, key_heads, head, inner, vocabulary, 1e-5, rope)
    model = Model(ModelConfig(decoder, TokenConfig(0, 0, (1,), None, None), None, None, {}))
    initialize(model, 1)
    return model


def operations(model: Model, row_tokens: int) -> float:
    """Floating point operations of a step for each token."""
    decoder = model.config.decoder
    weights = sum(parameter.numel() for parameter in model.parameters())  # the table counts once, as the head
    attention = 12 * decoder.num_layers * decoder.num_heads * decoder.head_dim * row_tokens
    return 6.0 * weights + attention


def product_rate(device: torch.device) -> float:
    """Operations a second of a large product, the best of several."""
    one = torch.randn(4096, 4096, device=device, dtype=product_type(device))
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        (one @ one).sum().item()
        best = min(best, time.perf_counter() - begin)
    return float(2 * 4096**3 / best)


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--row-tokens", type=int)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-muon", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, row_tokens = options.batch or ROWS[options.size][0], options.row_tokens or ROWS[options.size][1]
    model = make_model(options.size, row_tokens).to(device)
    stage = StageConfig(
        name="speed", objective="made", trains=("model.",), steps=options.steps + WARM_UP, batch=batch,
        schedule=Schedule(peak=1e-3, muon=not options.no_muon), data=None, micro_batch=options.micro_batch,
        compile=not options.no_compile, checkpoint_activations=options.checkpoint_activations,
    )  # fmt: skip
    objective = MadeRows(model, stage, device, row_tokens)
    with tempfile.TemporaryDirectory() as folder:
        run = StageRun(model, objective, stage, Path(folder), 1, "")
        _measure(run, options.steps, batch * row_tokens, operations(model, row_tokens), device)
        if options.profile:
            _profile(run, device)


def _measure(run: StageRun, steps: int, tokens: int, each: float, device: torch.device) -> None:
    run.model.train()
    begin = time.perf_counter()
    for _ in range(WARM_UP):
        run._one_step()
    print(f"the first {WARM_UP} steps, compiler included: {time.perf_counter() - begin:.1f} s")
    wall, cpu = [], []
    for _ in range(steps):
        begin, busy = time.perf_counter(), time.process_time()
        run._one_step()  # reads the loss, and so waits for the device
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - busy)
    rate, peak = tokens / statistics.median(wall), product_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{name}: {rate:,.0f} tokens/s (best step {tokens / min(wall):,.0f})")
    if device.type == "cpu":
        print(f"CPU time of a step: {1000 * statistics.median(cpu):,.0f} ms (least {1000 * min(cpu):,.0f})")
    else:
        print(f"most memory: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    print(f"{each / 1e9:.2f} GFLOP a token: {rate * each / 1e12:.2f} TFLOP/s")
    print(f"model FLOP utilisation: {rate * each / peak:.0%} of the measured {peak / 1e12:.2f} TFLOP/s")
    for gpu, flops in DATA_SHEET.items():
        if gpu in name:
            print(f"model FLOP utilisation: {rate * each / flops:.0%} of the data sheet's {flops / 1e12:.0f}")


def _profile(run: StageRun, device: torch.device) -> None:
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as seen:
        run._one_step()
    order = f"self_{device.type}_time_total"
    print(seen.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))


if __name__ == "__main__":
    main()
