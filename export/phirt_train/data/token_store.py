"""Token ids of whole files of training data: encoded once, kept beside the run, read through a memory map.

Knows the cache folder and how sequences lie in it. Knows nothing of templates or batches. A file of any size
is encoded in bounded memory; a file that has changed is encoded again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from phirt.errors import ConfigError
from phirt_train.context import TrainingContext
from phirt_train.data.conversations import EncodedConversation, MediaRef
from phirt_train.data.records import Conversation, Document, PreferencePair, read_records
from phirt_train.data.rejects import Rejected, Rejects

T = TypeVar("T")
Outcome = list[EncodedConversation] | str  # of a record; or what is wrong with it
Encode = Callable[[Sequence[tuple[str, T]]], Iterator[Outcome]]
_VERSION = 2  # of the layout on disk
_REJECTED = "rejected.json"
_CHUNK = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSequences:
    """Many token sequences in one array.

    Attributes:
        token_ids: int32 [total].
        loss_mask: bool [total], False where a token is given and not to be predicted.
        starts: int64 [n + 1], where each sequence begins; the last entry is the total.
        media: for each sequence its pictures and recordings, with paths as the records have them.
        file: the file of records; paths are relative to its folder.
    """

    token_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    starts: NDArray[np.int64]
    media: Sequence[tuple[MediaRef, ...]]
    file: Path

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        span = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.token_ids[span], self.loss_mask[span]

    def only(self, numbers: NDArray[np.int64]) -> TokenSequences:
        """These sequences alone, without media."""
        parts = [self[int(number)] for number in numbers]
        token_ids, loss_mask = (np.concatenate(part) for part in zip(*parts, strict=True))
        starts = np.cumsum([0, *(len(ids) for ids, _ in parts)])
        return TokenSequences(token_ids, loss_mask, starts, [()] * len(parts), self.file)


def load_documents(name: str, context: TrainingContext) -> TokenSequences:
    """The token ids of a file of texts (`records.Document`).

    Raises:
        ConfigError: the file is missing or holds something else.
    """

    def encode(records: Sequence[tuple[str, Document]]) -> Iterator[Outcome]:
        for encoded in context.encoder.encode_documents([document.text for _, document in records]):
            yield [encoded]

    return _load(name, Document, encode, context)


def load_conversations(name: str, context: TrainingContext) -> TokenSequences:
    """The token ids of a file of conversations (`records.Conversation`).

    Raises:
        ConfigError: the file is missing, holds something else, or names media that are not there.
    """
    folder = context.path(name).parent

    def encode(records: Sequence[tuple[str, Conversation]]) -> Iterator[Outcome]:
        for place, conversation in records:
            try:
                yield [_with_media(context.encoder.encode(conversation), folder)]
            except ConfigError as error:
                yield f"{place}: {error}"

    return _load(name, Conversation, encode, context)


def load_preferences(name: str, context: TrainingContext) -> TokenSequences:
    """The token ids of a file of preferences (`records.PreferencePair`): sequence 2i is the prompt with the
    chosen answer of pair i, 2i + 1 the one with the rejected answer; only these answers are learnt.

    Raises:
        ConfigError: as `load_conversations`.
    """
    folder = context.path(name).parent

    def encode(records: Sequence[tuple[str, PreferencePair]]) -> Iterator[Outcome]:
        for place, pair in records:
            try:
                yield [
                    _last_answer(_with_media(context.encoder.encode(conversation), folder))
                    for conversation in (pair.with_answer(pair.chosen), pair.with_answer(pair.rejected))
                ]
            except ConfigError as error:
                yield f"{place}: {error}"

    return _load(name, PreferencePair, encode, context)


def _with_media(encoded: EncodedConversation, folder: Path) -> EncodedConversation:
    for item in encoded.media:
        if not (folder / item.path).is_file():
            raise ConfigError(f"{item.path} is no file in {folder}; correct the path")
    return encoded


def _last_answer(encoded: EncodedConversation) -> EncodedConversation:
    """The same with nothing learnt before the last answer."""
    mask, begin = encoded.loss_mask, len(encoded.loss_mask)
    while begin and mask[begin - 1]:
        begin -= 1
    return dataclasses.replace(encoded, loss_mask=(False,) * begin + mask[begin:])


def _load(name: str, cls: type[T], encode: Encode[T], context: TrainingContext) -> TokenSequences:
    path = context.path(name)
    if not path.is_file():
        raise ConfigError(f"the recipe names {name}, and {context.data} holds no such file")
    folder = context.cache / f"{path.name}-{_key(path, cls.__name__, context.encoder.identity)}"
    if not folder.is_dir():
        staging = folder.with_suffix(".partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        rejected = Rejects()
        _write(staging, _encoded(name, path, cls, encode, context, rejected))
        left_out = [dataclasses.asdict(file) for file in rejected.files.values()]
        (staging / _REJECTED).write_text(json.dumps(left_out), encoding="utf-8")
        staging.replace(folder)
    context.rejects.files.pop(name, None)  # a file may be read to learn from and to measure with
    for file in json.loads((folder / _REJECTED).read_text(encoding="utf-8")):
        context.rejects.files[name] = Rejected(**file)
    return _read(folder, path)


def _key(path: Path, kind: str, encoder: str) -> str:
    state = path.stat()
    facts = json.dumps([_VERSION, str(path.resolve()), state.st_size, state.st_mtime_ns, kind, encoder])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _encoded(
    name: str, path: Path, cls: type[T], encode: Encode[T], context: TrainingContext, rejected: Rejects
) -> Iterator[EncodedConversation]:
    unread: list[str] = []
    records, done = read_records(path, cls, unread.append), 0
    context.note(f"reading {name}")
    while chunk := list(itertools.islice(records, _CHUNK)):
        for outcome in encode(chunk):
            if isinstance(outcome, str):
                rejected.add(name, outcome)
            else:
                yield from outcome
        done += len(chunk)
        context.note(f"reading {name}", done)
    if unread:
        rejected.add(name, unread[0], len(unread))
    if not done and not unread:
        raise ConfigError(f"{path} holds no records; leave it out, or fill it")
    rejected.check(name, done + len(unread))


def _write(folder: Path, sequences: Iterable[EncodedConversation]) -> None:
    starts = [0]
    with (
        (folder / "token_ids").open("wb") as token_ids,
        (folder / "loss_mask").open("wb") as loss_mask,
        (folder / "media.jsonl").open("w", encoding="utf-8") as media,
    ):
        for sequence in sequences:
            token_ids.write(np.array(sequence.token_ids, np.int32).tobytes())
            loss_mask.write(np.array(sequence.loss_mask, bool).tobytes())
            starts.append(starts[-1] + len(sequence.token_ids))
            if sequence.media:
                found = [dataclasses.astuple(item) for item in sequence.media]
                media.write(json.dumps([len(starts) - 2, found]) + "\n")
        for file in (token_ids, loss_mask):
            file.flush()
            os.fsync(file.fileno())
    np.save(folder / "starts.npy", np.array(starts, np.int64))


def _read(folder: Path, path: Path) -> TokenSequences:
    starts = np.load(folder / "starts.npy", allow_pickle=False)
    media: list[tuple[MediaRef, ...]] = [()] * (len(starts) - 1)
    for line in (folder / "media.jsonl").read_text(encoding="utf-8").splitlines():
        index, found = json.loads(line)
        media[index] = tuple(MediaRef(*item) for item in found)
    return TokenSequences(
        np.memmap(folder / "token_ids", np.int32, "r"),
        np.memmap(folder / "loss_mask", np.bool_, "r"),
        starts,
        media,
        path,
    )
