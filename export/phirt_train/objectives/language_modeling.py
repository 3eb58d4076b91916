"""Next-token prediction on text: rows cut from documents, and rows packed with whole conversations.

Knows token arrays, packing and masks. Knows nothing of media. Conversations in one row do not see each other,
and only the assistant's tokens are learnt; documents are learnt whole.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterable
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from phirt.errors import ConfigError
from phirt.fields import Range
from phirt_export.precision import autocast
from phirt_export.reference import Model, ModelConfig
from phirt_train.context import TrainingContext
from phirt_train.data.mixture import HeldOut, Mixture, Sources
from phirt_train.data.token_store import TokenSequences, load_conversations, load_documents
from phirt_train.objective import Loss, ObjectiveKind, Share
from phirt_train.stage import Probability, StageConfig

IGNORED = -100  # what torch's cross-entropy leaves out
_HELD_OUT_TEXTS = 100

Row = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]  # token ids, loss mask, conversation


@dataclasses.dataclass(frozen=True)
class LanguageModelingData:
    """Rows of `row_tokens` tokens, cut from `documents` or filled with whole `conversations`.

    Attributes:
        row_tokens: length of a row.
        documents: share of each file of texts.
        conversations: share of each file of conversations without media.
        document_share: share of the rows that are cut from documents; by default all or none of them.
        held_out: files of texts to measure bits per byte on, by what the figure is called.
    """

    row_tokens: Annotated[int, Range(2, 1 << 20)]
    documents: Sources = dataclasses.field(default_factory=dict)
    conversations: Sources = dataclasses.field(default_factory=dict)
    document_share: Probability | None = None
    held_out: HeldOut = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.documents and not self.conversations:
            raise ValueError("neither documents nor conversations are given")
        if self.document_share is None and self.documents and self.conversations:
            raise ValueError("document_share is missing; give the share of rows that are cut from documents")
        for name, sources, share in (
            ("documents", self.documents, self.share_of_documents),
            ("conversations", self.conversations, 1 - self.share_of_documents),
        ):
            if share > 0 and not sources:
                raise ValueError(f"document_share is {self.document_share}, but there are no {name}")

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
        return (*self.documents, *self.conversations, *self.held_out.values())


class LanguageModeling:
    """Cross-entropy per learnt token."""

    unit = "tokens"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, LanguageModelingData)
        self.model, self.stage, self.context, self.data = model, stage, context, data
        self.length = data.row_tokens
        documents = {name: load_documents(name, context) for name in data.documents}
        conversations = {name: load_conversations(name, context) for name in data.conversations}
        self._check(conversations)
        self.documents = Mixture(documents, data.documents) if documents else None
        self.conversations = Mixture(conversations, data.conversations) if conversations else None
        self.held_out = {label: load_documents(name, context) for label, name in data.held_out.items()}
        self.head = nn.Module()
        compiles = stage.compile and (context.device.type != "cpu" or shutil.which("g++") is not None)
        self._forward = torch.compile(self._row_loss) if compiles else self._row_loss

    def _check(self, conversations: dict[str, TokenSequences]) -> None:
        for name, source in conversations.items():
            if any(source.media):
                raise ConfigError(
                    f"{name} has images or audio, which language_modeling does not learn; use the objective "
                    "supervised_finetuning"
                )

    def _row_loss(self, token_ids: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        """Sum of the cross-entropy over the learnt tokens."""
        with autocast(token_ids.device):
            logits = self.model(token_ids, mask=mask)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def _document_row(self, rng: np.random.Generator) -> Row:
        assert self.documents is not None
        source = self.documents.draw(rng)
        total = len(source.token_ids)
        begin = int(rng.integers(0, max(1, total - self.length)))
        # Text that is shorter than a row begins again at its end.
        token_ids = source.token_ids[np.arange(begin, begin + self.length + 1) % total].astype(np.int64)
        return token_ids, np.ones(len(token_ids), bool), np.zeros(len(token_ids), np.int64)

    def _conversation_row(self, rng: np.random.Generator) -> Row:
        """Whole conversations one after another; the last one is cut where the row ends."""
        assert self.conversations is not None
        token_ids: list[NDArray[np.int64]] = []
        loss_mask: list[NDArray[np.bool_]] = []
        numbers: list[NDArray[np.int64]] = []
        left = self.length + 1
        while left > 0:
            source = self.conversations.draw(rng)
            piece, learnt = source[int(rng.integers(len(source)))]
            token_ids.append(piece[:left].astype(np.int64))
            loss_mask.append(learnt[:left])
            numbers.append(np.full(len(piece[:left]), len(numbers), np.int64))
            left -= len(piece)
        return np.concatenate(token_ids), np.concatenate(loss_mask), np.concatenate(numbers)

    def prepare(self, step: int, share: Share) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids [B, T], targets [B, T] (-100 where nothing is learnt) and the attention mask, or None if
        causal.
        """
        rows = [self._row(step, number) for number in share.of(range(self.stage.batch))]
        token_ids, loss_mask, numbers = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        same = numbers[:, 1:] == numbers[:, :-1]
        targets = torch.where(loss_mask[:, 1:] & same, token_ids[:, 1:], IGNORED)
        if self.data.share_of_documents == 1.0:
            return token_ids[:, :-1], targets, None
        inside = numbers[:, :-1]
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        return token_ids[:, :-1], targets, ((inside[:, :, None] == inside[:, None, :]) & causal)[:, None]

    def _row(self, step: int, number: int) -> Row:
        """A function of seed, step and the row's number alone, whichever process makes it."""
        rng = np.random.default_rng((self.context.seed, step, number))
        is_document = rng.random() < self.data.share_of_documents
        return self._document_row(rng) if is_document else self._conversation_row(rng)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor | None]) -> Loss:
        """Over the learnt tokens; all tokens that are read count as units."""
        token_ids, targets, mask = batch
        device = self.context.device
        mask = None if mask is None else mask.to(device)
        total = self._forward(token_ids.to(device), targets.to(device), mask)
        return Loss(total, int((targets != IGNORED).sum()), token_ids.numel())

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
                nats += self._row_loss(row[None, :-1], row[None, 1:], None).item()
        return nats / math.log(2) / max(1, size)


KIND = ObjectiveKind(LanguageModelingData, LanguageModeling)
