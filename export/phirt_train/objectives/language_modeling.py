"""Next-token prediction on text: rows cut from documents, and rows packed with whole conversations.

Knows sources, rows and targets. Knows nothing of media or of how rows are packed. Conversations in one row do
not see each other, and only the assistant's tokens are learnt; documents are learnt whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from phirt.errors import ConfigError
from phirt.fields import Length, Range
from phirt_export.reference import Documents, Model, ModelConfig
from phirt_train.chunked_loss import IGNORED
from phirt_train.context import TrainingContext
from phirt_train.data.mixture import (
    HeldOut,
    Shares,
    Source,
    Sources,
    check_optional,
    check_sources,
    join_shares,
    shares_of,
    source_of,
)
from phirt_train.data.packing import PackedText, RowSource, RunningText
from phirt_train.data.sampling import Consumed, Draws
from phirt_train.data.token_store import TokenSequences, load_conversations, load_documents
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.row_loss import RowBatch, RowLoss
from phirt_train.stage import Probability, StageConfig

_HELD_OUT_TEXTS = 100


@dataclasses.dataclass(frozen=True)
class LanguageModelingData:
    """Rows of `row_tokens` tokens, cut from `documents` or filled with whole `conversations`.

    Attributes:
        row_tokens: length of a row.
        documents: share of each file of texts, by tokens.
        optional: documents that are left out where they are missing.
        conversations: share of each file of conversations without media, by their number.
        document_share: share of the rows that are cut from documents; by default all or none of them.
        pack_documents: whether documents are packed as conversations are: whole, or cut where they are longer
            than a row, and not seeing each other. Otherwise they run on, and a row shows what it is cut from.
        held_out: files of texts to measure bits per byte on, by what the figure is called.
    """

    row_tokens: Annotated[int, Range(2, 1 << 20)]
    documents: Sources = dataclasses.field(default_factory=dict)
    optional: Annotated[tuple[str, ...], Length(0, 1024)] = ()
    conversations: Sources = dataclasses.field(default_factory=dict)
    document_share: Probability | None = None
    pack_documents: bool = False
    held_out: HeldOut = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.documents and not self.conversations:
            raise ValueError("neither documents nor conversations are given")
        if self.document_share is None and self.documents and self.conversations:
            raise ValueError("document_share is missing; give the share of rows that are cut from documents")
        if both := [name for name in self.documents if name in self.conversations]:
            raise ValueError(f"{both[0]} is among documents and among conversations; it can be one of them")
        for name, sources, share in (
            ("documents", self.documents, self.share_of_documents),
            ("conversations", self.conversations, 1 - self.share_of_documents),
        ):
            if share > 0 and not sources:
                raise ValueError(f"document_share is {self.document_share}, but there are no {name}")
            if sources:
                check_sources(sources, {})
        check_optional(self.optional, self.documents)

    @property
    def share_of_documents(self) -> float:
        """Share of the rows that are cut from documents."""
        if self.document_share is not None:
            return self.document_share
        return 1.0 if self.documents else 0.0

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError where rows are longer than the model's context."""
        if self.row_tokens > model.decoder.rope.context:
            raise ConfigError(
                f"row_tokens is {self.row_tokens}, and the model's context has {model.decoder.rope.context}"
            )

    def files(self) -> Iterable[str]:
        """All files that are read."""
        needed = [name for name in self.documents if name not in self.optional]
        return (*needed, *self.conversations, *self.held_out.values())


class LanguageModeling:
    """Cross-entropy per learnt token."""

    unit = "tokens"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, LanguageModelingData)
        self.model, self.context, self.data = model, context, data
        self.length = data.row_tokens
        self._of_documents: Shares | None = None
        if data.documents:
            self._of_documents = shares_of(context.path, data.documents, data.optional)
        there = () if self._of_documents is None else self._of_documents.names
        documents = {name: self._documents(name) for name in there}
        conversations, means = {}, {}
        for name in data.conversations:
            conversations[name], means[name] = self._conversations(name)
        self.sources: dict[str, RowSource] = {**documents, **conversations}
        self._draws = Draws(self._shares(means), stage.batch, stage.steps, context.seed)
        self.held_out = {label: load_documents(name, context) for label, name in data.held_out.items()}
        self.head = nn.Module()
        self._loss = RowLoss(model, context.device, self.length, compiles=stage.compile)

    def _documents(self, name: str) -> RowSource:
        sequences, source = load_documents(name, self.context), source_of(self.data.documents[name])
        if not self.data.pack_documents and not source.filters:
            return RunningText(sequences, self.length, self.context.seed, name)
        numbers = _within(sequences, source, name)
        if self.data.pack_documents:
            return self._packed(sequences, numbers, name, cuts=True)
        return RunningText(sequences.only(numbers), self.length, self.context.seed, name)

    def _conversations(self, name: str) -> tuple[RowSource, float]:
        """The rows of a file of conversations, and the mean length of one."""
        sequences = load_conversations(name, self.context)
        if any(sequences.media):
            raise ConfigError(
                f"{name} has images or audio, which language_modeling does not learn; use the objective "
                "supervised_finetuning"
            )
        numbers = _within(sequences, source_of(self.data.conversations[name]), name)
        packed = self._packed(sequences, numbers, name, cuts=False)
        return packed, packed.total_tokens / len(numbers)

    def _packed(
        self, sequences: TokenSequences, numbers: NDArray[np.int64], name: str, *, cuts: bool
    ) -> PackedText:
        pad = self.model.config.tokens.pad
        return PackedText(sequences, numbers, self.length, cuts, pad, self.context.seed, name)

    def _shares(self, means: Mapping[str, float]) -> Shares:
        """Shares of rows: of conversations, whose shares are of their number, by how long they are."""
        data, parts = self.data, []
        if self._of_documents is not None:
            parts.append((self._of_documents, data.share_of_documents))
        if means:
            parts.append((Shares.of(data.conversations, means.__getitem__), 1 - data.share_of_documents))
        return join_shares(parts)

    @property
    def item_tokens(self) -> float:
        """Tokens of a row."""
        return float(self.length)

    def consumed(self, step: int) -> dict[str, Consumed]:
        """What the steps before this one have taken of each source."""
        found, shares = {}, self._draws.shares
        for number, rows in enumerate(self._draws.before(step).tolist()):
            name = shares.names[number]
            source = self.sources[name]
            tokens, total = source.tokens(rows), source.total_tokens
            found[name] = Consumed(shares.kinds[number], rows, tokens, min(tokens, total), tokens / total)
        return found

    def realised(self) -> list[dict[str, float]]:
        """The share of each source of the rows, for each hundredth of the steps."""
        return self._draws.realised()

    def prepare(self, step: int, share: Share) -> RowBatch:
        """Rows of this part of a step."""
        names = self._draws.shares.names
        rows = [self.sources[names[source]].row(number) for source, number in share.of(self._draws.of(step))]
        token_ids, loss_mask, numbers = (np.stack(part) for part in zip(*rows, strict=True))
        same = numbers[:, 1:] == numbers[:, :-1]
        targets = np.where(loss_mask[:, 1:] & same, token_ids[:, 1:], IGNORED)
        is_packed = bool((numbers != 0).any())
        documents = Documents.of(numbers[:, :-1]) if is_packed else None
        return RowBatch(torch.from_numpy(token_ids[:, :-1].copy()), torch.from_numpy(targets), documents)

    def loss(self, batch: RowBatch) -> Loss:
        """Over the learnt tokens; all tokens that are read count as units."""
        return self._loss(batch)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Bits per UTF-8 byte of the held-out texts, each in rows of `row_tokens` that start cold."""
        return {
            f"{label} bits per byte": self._bits_per_byte(source) for label, source in self.held_out.items()
        }

    def _bits_per_byte(self, source: TokenSequences) -> float:
        nats, size = 0.0, 0
        for index in range(min(len(source), _HELD_OUT_TEXTS)):
            token_ids = torch.from_numpy(source[index][0].astype(np.int64))
            size += len(self.context.encoder.decode(token_ids[:-1].tolist()).encode())
            for begin in range(0, len(token_ids) - 1, self.length):
                row = token_ids[begin : begin + self.length + 1].to(self.context.device)
                nats += self._loss.of_text(row)
        return nats / math.log(2) / max(1, size)


def _within(sequences: TokenSequences, source: Source, name: str) -> NDArray[np.int64]:
    """The sequences whose length a source accepts."""
    sizes = np.diff(sequences.starts)
    high = int(sizes.max()) if source.max_tokens is None else source.max_tokens
    numbers = np.flatnonzero((sizes >= source.min_tokens) & (sizes <= high))
    if not len(numbers):
        raise ConfigError(
            f"{name} has no item of {source.min_tokens} to {high} tokens, its longest has {sizes.max()}; "
            "change min_tokens and max_tokens"
        )
    return numbers


KIND = ObjectiveKind(LanguageModelingData, LanguageModeling)
