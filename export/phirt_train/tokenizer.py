"""Learns the byte-level BPE tokenizer of a recipe.

Knows which text it reads and how words are cut. Knows nothing of models. Digits stay single, so that numbers
are spelled; the special tokens come first, in the order the recipe module lists them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from phirt_train.data.chats import CHATS
from phirt_train.data.records import read_records, strings
from phirt_train.recipe import SPECIAL_TOKENS, TokenizerConfig

# Words with their leading space, single digits, runs of punctuation, white space: the shape of o200k's
# pattern, simpler.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _texts(config: TokenizerConfig, data: Path) -> Iterator[str]:
    for source in config.sources:
        left = config.max_bytes
        for record in read_records(data / source):
            for text in strings(record):
                yield text
                left -= len(text)
            if left < 0:
                break
    markers = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
    for name in config.chats:
        for chat in itertools.islice(CHATS[name](data, 0), config.max_chats):
            for _, content in chat:
                yield from filter(None, markers.split(content))


def train_tokenizer(config: TokenizerConfig, data: Path) -> str:
    """A tokenizer.json text, learned from at most `max_bytes` of each source.

    Raises:
        ConfigError: a source is missing.
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
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(config, data), trainer)
    return tokenizer.to_str(pretty=False)
