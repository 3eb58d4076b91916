"""Answers without digits: a logits processor is a callable that takes logits and the ids so far.

python apps/examples/no_digits.py "Count to three."
"""

import sys
from collections.abc import Sequence

import numpy as np

import phirt
from phirt.generate.sampling import Logits


def without_digits(model: phirt.Model) -> phirt.LogitsProcessor:
    """Never lets a token be chosen whose text holds a digit."""
    tokenizer, size = model.generator.tokenizer, model.manifest.geometry.vocab_size
    banned = np.array([any(c.isdigit() for c in tokenizer.decode([token])) for token in range(size)])

    def process(logits: Logits, token_ids: Sequence[int]) -> Logits:
        logits[banned] = -np.inf
        return logits

    return process


def main(question: str) -> None:
    """Prints one answer."""
    with phirt.load() as model:
        reply = model.chat().send(question, logits_processors=[without_digits(model)], max_new_tokens=64)
        print(reply.text())


if __name__ == "__main__":
    main(sys.argv[1])
