"""Next-token prediction on text: rows cut from documents, and rows packed with whole conversations.

Knows token arrays, packing and masks. Knows nothing of media. Conversations in one row do not see each other,
and only the assistant's tokens are learnt; documents are learnt whole.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.data.tokens import Sequences, load_sequences
from phirt_train.options import LanguageData
from phirt_train.recipe import StageConfig

IGNORED = -100


class Language:
    """Cross-entropy per learnt token; `documents` and `chats` give each source's share of the rows."""

    unit = "tokens"

    def __init__(self, model: Model, stage: StageConfig, context: TrainingContext) -> None:
        data = stage.data
        assert isinstance(data, LanguageData)
        self.model, self.stage, self.seed, self.device = model, stage, context.seed, context.device
        self.length = data.row_tokens
        self.documents = {name: load_sequences(name, context) for name in data.documents}
        self.chats = {name: load_sequences(name, context) for name in data.chats}
        self.document_share = data.document_share
        self.shares = {"documents": _normalised(data.documents), "chats": _normalised(data.chats)}
        self.held_out = load_sequences("wikipedia.val", context)
        self.tokenizer = Tokenizer.from_file(str(context.tokenizer))
        self.head = nn.Module()
        compiles = stage.compile and (self.device.type != "cpu" or shutil.which("g++") is not None)
        self._forward = torch.compile(self._row_loss) if compiles else self._row_loss

    def _row_loss(self, ids: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = self.model(ids, mask=mask)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    def _document_row(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        name = str(rng.choice(list(self.documents), p=self.shares["documents"]))
        source = self.documents[name]
        begin = int(rng.integers(0, len(source.ids) - self.length))
        ids = source.ids[begin : begin + self.length + 1].astype(np.int64)
        return ids, np.ones(len(ids), bool), np.zeros(len(ids), np.int64)

    def _chat_row(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids: list[np.ndarray] = []
        learn: list[np.ndarray] = []
        segments: list[np.ndarray] = []
        left = self.length + 1
        names = list(self.chats)
        while left > 0:
            source: Sequences = self.chats[names[rng.choice(len(names), p=self.shares["chats"])]]
            piece, said = source[int(rng.integers(len(source)))]
            ids.append(piece[:left].astype(np.int64))
            learn.append(said[:left])
            segments.append(np.full(len(piece[:left]), len(segments)))
            left -= len(piece)
        return np.concatenate(ids), np.concatenate(learn), np.concatenate(segments)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids [B, T], targets [B, T] (-100 where nothing is learnt) and the attention mask, or None if
        causal.
        """
        rng = np.random.default_rng((self.seed, step))
        plain = rng.random(self.stage.batch) < self.document_share
        rows = [self._document_row(rng) if documents else self._chat_row(rng) for documents in plain]
        ids, learn, segments = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True))
        same = segments[:, 1:] == segments[:, :-1]
        targets = torch.where(learn[:, 1:] & same, ids[:, 1:], IGNORED)
        if self.document_share == 1.0:
            return ids[:, :-1], targets, None
        inside = segments[:, :-1]
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        return ids[:, :-1], targets, ((inside[:, :, None] == inside[:, None, :]) & causal)[:, None]

    def loss(self, step: int) -> tuple[Tensor, int]:
        """Mean loss over the learnt tokens of this step, and the number of tokens read."""
        ids, targets, mask = self.batch(step)
        mask = None if mask is None else mask.to(self.device)
        return self._forward(ids.to(self.device), targets.to(self.device), mask), ids.numel()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Bits per UTF-8 byte over the held-out pages, each in rows of `row_tokens` that start cold."""
        nats, size = 0.0, 0
        for index in range(min(len(self.held_out), 100)):
            ids = torch.from_numpy(self.held_out[index][0].astype(np.int64))
            size += len(self.tokenizer.decode(ids[:-1].tolist()).encode())
            for begin in range(0, len(ids) - 1, self.length):
                row = ids[begin : begin + self.length + 1].to(self.device)
                nats += self._row_loss(row[None, :-1], row[None, 1:], None).item() * (len(row) - 1)
        return {"bits per byte": nats / math.log(2) / size}


def _normalised(shares: Mapping[str, float]) -> np.ndarray:
    values = np.array(list(shares.values()), float)
    return values / values.sum() if len(values) else values
