"""LongRoPE's search for rotary factors on nano's decoder at four times the length that it was trained at.

    python tests/benchmarks/rope_factors.py --data ../shared/data -o rope.jsonl
        [--population 64] [--rounds 40]

Prints perplexities on the five pages that are searched on and on ten others, and the best one after each
round. Figures are kept in the file: a search that is stopped goes on, and one of fewer rounds is how it
begins.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import phirt
from phirt_quant.text_files import read_records
from phirt_train.progress import Progress
from phirt_train.rope_fitness import Passage, long_passages, passage_fitness, perplexity
from phirt_train.rope_search import SearchSettings, extended, search_long_factors, yarn_rope

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "train"))

from nano_decoder import TRAINED, nano_decoder  # noqa: E402 - it lies beside the tests

NANO = TESTS / "bundles/nano"
LENGTH, SEARCHED, OTHERS = 4 * TRAINED, 5, 10


def pages(data: Path) -> list[Passage]:
    """Those that are searched on, then the others."""
    encode = phirt.load(NANO).generator.tokenizer.encode_content
    records = read_records(data / "text/wikipedia.val.jsonl.xz", limit=300)
    texts = [list(encode(f"{record['title']}\n\n{record['text']}")) for record in records]
    return long_passages(texts, LENGTH, SEARCHED + OTHERS)


def told(progress: Progress) -> None:
    """A line now and then."""
    if progress.step % 32 == 0:
        print(f"{progress.step} of {progress.steps}: {progress.loss:.2f}", file=sys.stderr, flush=True)


def main() -> None:
    """Search, and print what was found."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, every = nano_decoder(NANO), pages(options.data)
    searched, others = every[:SEARCHED], every[SEARCHED:]
    rope = model.config.decoder.rope
    settings = SearchSettings(options.population, options.rounds)
    found = search_long_factors(
        rope,
        LENGTH,
        passage_fitness(model, searched),
        settings,
        path=options.output,
        identity="nano",
        report=told,
    )
    plain = extended(rope, LENGTH, (1.0,) * (rope.rotary_dim // 2))
    for name, one in {"plain": plain, "YaRN": yarn_rope(rope, LENGTH), "found": found.rope}.items():
        print(f"{name}: {perplexity(model, searched, one):.2f}, others {perplexity(model, others, one):.2f}")
    print("by rounds:", *(f"{value:.2f}" for value in found.history))
    print("factors:", *found.rope.long_factor)


if __name__ == "__main__":
    main()
