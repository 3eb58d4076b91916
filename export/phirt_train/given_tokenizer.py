"""A tokenizer that a recipe takes as it is: from a file, or from a checkpoint of any layout.

Knows files and the ids of special tokens. Knows nothing of how text is encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from phirt.errors import ConfigError
from phirt_export.chat_files import tokenizer_bytes


def given_tokenizer(path: Path) -> bytes:
    """The tokenizer.json that a file is or a checkpoint folder has.

    Raises:
        ConfigError: there is none that can be read.
    """
    if path.is_dir():
        return tokenizer_bytes(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}; correct the recipe") from error


def ids_of(tokenizer: bytes, vocab_size: int) -> Callable[[str], int]:
    """Gives the id of a special token.

    Raises:
        ConfigError: the bytes are no tokenizer, or it has more tokens than the model; later, it has no such
            token.
    """
    try:
        opened = Tokenizer.from_str(tokenizer.decode("utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise ConfigError(f"the tokenizer's file is none: {error}; correct 'file' of [tokenizer]") from error
    if (size := opened.get_vocab_size()) > vocab_size:
        raise ConfigError(
            f"the tokenizer has {size} tokens, and vocab_size is {vocab_size}; give the model as many"
        )

    def find(name: str) -> int:
        found = opened.token_to_id(name)
        if found is None:
            raise ConfigError(
                f"the tokenizer has no token {name!r:.80}, which the recipe's 'special' names; name "
                "those that it has under tokenizer.special"
            )
        return int(found)

    return find
