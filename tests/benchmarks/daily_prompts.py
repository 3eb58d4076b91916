"""Asks bundles of one model the same hundred questions of daily use, greedily, and counts how they differ.

    python tests/benchmarks/daily_prompts.py REFERENCE BUNDLE… [--tokens 64] [--show]

For each bundle: the answers whose first 16 tokens are the reference's, and those that end in a loop where the
reference's does not. An answer loops where its last tokens are one piece of at most 24 tokens, three times
over. REFERENCE is an export with `--bits 32`. The questions lie beside this file; no calibration has seen
them. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import phirt

_FIRST = 16
_LONGEST_PIECE, _TIMES = 24, 3


def answers(bundle: Path, prompts: list[str], tokens: int) -> list[tuple[int, ...]]:
    """What a bundle answers, each in a conversation of its own."""
    model = phirt.load(bundle)
    config = phirt.GenerationConfig(max_new_tokens=tokens, temperature=0.0)
    return [tuple(model.chat().send(prompt, config=config).result.token_ids) for prompt in prompts]


def loops(token_ids: tuple[int, ...]) -> bool:
    """Whether an answer ends in a piece that is repeated."""
    # A single token a few times over may be meant: "ha ha ha", or spaces.
    for length in range(2, _LONGEST_PIECE + 1):
        tail = token_ids[-length * _TIMES :]
        if len(tail) == length * _TIMES and tail == tail[:length] * _TIMES:
            return True
    return False


def main() -> None:
    """Prints a line for each bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--show", action="store_true", help="print answers that differ")
    options = parser.parse_args()
    prompts = (Path(__file__).parent / "daily_prompts.txt").read_text("utf-8").splitlines()
    reference = answers(options.reference, prompts, options.tokens)
    known = [loops(ids) for ids in reference]
    print(
        f"{options.reference}: {len(prompts)} prompts, {sum(known)} answers of {options.tokens} tokens loop"
    )
    for bundle in options.bundles:
        found = answers(bundle, prompts, options.tokens)
        same = [a[:_FIRST] == b[:_FIRST] for a, b in zip(found, reference, strict=True)]
        new = [loops(a) and not known[i] for i, a in enumerate(found)]
        print(
            f"{bundle}: the first {_FIRST} tokens are the same in {sum(same)} of {len(prompts)}; "
            f"{sum(new)} loops that the reference has not"
        )
        if options.show:
            tokenizer = phirt.load(bundle).tokenizer
            for i, prompt in enumerate(prompts):
                if not same[i] or new[i]:
                    print(f"  {prompt}")
                    for ids in (reference[i], found[i]):
                        print(f"    {tokenizer.decode(ids)!r}")


if __name__ == "__main__":
    main()
