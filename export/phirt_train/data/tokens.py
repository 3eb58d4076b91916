"""Text as token ids: documents and conversations, encoded once and kept as arrays beside the run.

Knows the tokenizer, the chat format and the cache folder. Knows nothing of batches or of where text comes
from.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from phirt_train.context import TrainingContext
from phirt_train.data.chats import CHATS, DOCUMENTS, Chat

END_OF_TEXT = "<|endoftext|>"
CHUNK = 2000


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Many token sequences in one array.

    Attributes:
        ids: uint16 [total].
        learn: bool [total], False where a token is given and not to be predicted.
        starts: int64 [n + 1], where each sequence begins; the last entry is the total.
    """

    ids: NDArray[np.uint16]
    learn: NDArray[np.bool_]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        span = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.ids[span], self.learn[span]


def chat_pieces(chat: Chat) -> list[tuple[str, bool]]:
    """The text of a conversation in pieces, each with whether the model is to say it."""
    pieces: list[tuple[str, bool]] = []
    for role, content in chat:
        pieces.append((f"<|{role}|>", False))
        if role == "assistant":
            pieces.append((f"{content}<|end|>", True))
        else:
            pieces.append((f"{content}<|end|>", False))
    return pieces


def encode_chat(tokenizer: Tokenizer, chat: Chat) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and, for each, whether it is to be learnt."""
    ids: list[int] = []
    learn: list[bool] = []
    for text, said in chat_pieces(chat):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        learn += [said] * len(piece)
    return ids, learn


def _pack(sequences: Iterator[tuple[list[int], list[bool]]]) -> Sequences:
    ids, learn, lengths = [], [], [0]
    for sequence_ids, sequence_learn in sequences:
        ids.append(np.array(sequence_ids, np.uint16))
        learn.append(np.array(sequence_learn, bool))
        lengths.append(len(sequence_ids))
    return Sequences(np.concatenate(ids), np.concatenate(learn), np.cumsum(lengths))


def _documents(tokenizer: Tokenizer, name: str, data: Path) -> Iterator[tuple[list[int], list[bool]]]:
    file, read = DOCUMENTS[name]
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None
    for chunk in _chunks(read(data / file)):
        for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
            yield [*encoding.ids, end], [True] * (len(encoding.ids) + 1)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(texts, CHUNK)):
        yield chunk


def _chats(tokenizer: Tokenizer, name: str, data: Path, seed: int) -> Iterator[tuple[list[int], list[bool]]]:
    chats = CHATS[name](data, seed)
    while group := list(itertools.islice(chats, CHUNK)):
        pieces = [chat_pieces(chat) for chat in group]
        flat = tokenizer.encode_batch_fast(
            [text for chat in pieces for text, _ in chat], add_special_tokens=False
        )
        encodings = iter(flat)
        for chat in pieces:
            ids: list[int] = []
            learn: list[bool] = []
            for _, said in chat:
                piece = next(encodings).ids
                ids += piece
                learn += [said] * len(piece)
            yield ids, learn


def load_sequences(name: str, context: TrainingContext) -> Sequences:
    """The token sequences of a source of `DOCUMENTS` or `CHATS`, from the cache when they are there."""
    context.cache.mkdir(parents=True, exist_ok=True)
    path = context.cache / f"{name}.tokens.npz"
    if not path.is_file():
        tokenizer = Tokenizer.from_file(str(context.tokenizer))
        encoded = (
            _documents(tokenizer, name, context.data)
            if name in DOCUMENTS
            else _chats(tokenizer, name, context.data, context.seed)
        )
        packed = _pack(encoded)
        staging = path.with_suffix(".partial.npz")
        np.savez(staging, ids=packed.ids, learn=packed.learn, starts=packed.starts)
        staging.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        return Sequences(arrays["ids"], arrays["learn"], arrays["starts"])
