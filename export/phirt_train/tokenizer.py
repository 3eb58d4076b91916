"""Learns the byte-level BPE tokenizer of a recipe.

Knows which text it reads and how words are cut. Knows nothing of models. Digits stay single, so that numbers
are spelled; the special tokens come first, in the order that the recipe has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from phirt.errors import ConfigError
from phirt_train.data.records import read_lines, texts_of
from phirt_train.progress import Progress, Report
from phirt_train.recipe import TokenizerConfig

STAGE = "tokenizer"
# Words with their leading space, single digits, runs of punctuation, white space: the shape of o200k's
# pattern, simpler.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _texts(config: TokenizerConfig, paths: Sequence[Path], report: Report) -> Iterator[str]:
    """At most `max_characters` of each file, special tokens taken out of it."""
    marks = re.compile("|".join(re.escape(token) for token in config.special.tokens))
    for index, path in enumerate(paths):
        report(Progress(STAGE, index, len(paths), "files", f"reading {path.name}"))
        left = config.max_characters
        wrong: list[str] = []  # what is no JSON is counted by the stage that learns from the file
        for _, record in read_lines(path, wrong.append):
            for text in texts_of(record):
                left -= len(text)
                yield from filter(None, marks.split(text))
            if left < 0:
                break
        if wrong and left == config.max_characters:
            raise ConfigError(wrong[0])
    report(Progress(STAGE, len(paths), len(paths), "files", f"learning {config.vocab_size} tokens"))


def train_tokenizer(config: TokenizerConfig, paths: Sequence[Path], report: Report) -> str:
    """A tokenizer.json text, learned from these files of JSON lines.

    Raises:
        ConfigError: a file is missing or no JSON lines.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in config.special.tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(config, paths, report), trainer)
    return tokenizer.to_str(pretty=False)
