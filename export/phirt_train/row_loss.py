"""The loss of rows of tokens: the decoder's pass, compiled where that is asked for, then cross-entropy in
chunks.

Knows token ids, targets and which documents share a row. Knows nothing of where rows come from.
"""

from __future__ import annotations

import shutil
from typing import NamedTuple

import torch
from torch import Tensor

from phirt_export.precision import autocast
from phirt_export.reference import Documents, Model
from phirt_train.chunked_loss import IGNORED, chunked_cross_entropy, loss_and_change
from phirt_train.compiled_attention import LONGEST, attend_by_products
from phirt_train.objective import Loss


class RowBatch(NamedTuple):
    """Token ids and targets [B, T], targets -100 where nothing is learnt; which documents share the rows,
    None where a row is one.
    """

    token_ids: Tensor
    targets: Tensor
    documents: Documents | None


class RowLoss:
    """The loss of batches of rows.

    Args:
        length: tokens of a row.
        compiles: whether torch is to compile the pass, where a compiler is at hand.
    """

    def __init__(self, model: Model, device: torch.device, length: int, *, compiles: bool) -> None:
        self._model, self._device = model, device
        compiles = compiles and (device.type != "cpu" or shutil.which("g++") is not None)
        # A compiled pass takes a mask of one shape, and positions that run on.
        self._compiles = compiles and length <= model.config.decoder.rope.original_context
        self._compiled = torch.compile(self._states) if self._compiles else self._states
        self._change_of = torch.compile(loss_and_change, dynamic=True) if self._compiles else loss_and_change
        if self._compiles and device.type == "cpu" and length <= LONGEST:
            attend_by_products(model)

    def _states(self, token_ids: Tensor, mask: Tensor | Documents | None) -> tuple[Tensor, Tensor]:
        """Final hidden states [B, T, hidden], and the matrix [vocab, hidden] that scores tokens."""
        return self._model.hidden_states(token_ids, mask=mask), self._model.head_weight()

    def __call__(self, batch: RowBatch) -> Loss:
        """Over the learnt tokens; all tokens that are read count as units."""
        token_ids, targets, documents = batch
        learnt = (targets.flatten() != IGNORED).nonzero()[:, 0]  # counted here: a device would have to wait
        mask: Tensor | Documents | None = None if documents is None else documents.to(self._device)
        if self._compiles and isinstance(mask, Documents):
            mask = mask.mask(self._model.config.decoder.sliding_window)
        wanted = targets.flatten()[learnt]
        with autocast(self._device):  # entered outside of what is compiled, which would be cut in two there
            hidden, scoring = self._compiled(token_ids.to(self._device), mask)
            rows = hidden.flatten(0, 1)[learnt.to(self._device)]
            total = chunked_cross_entropy(rows, scoring, wanted.to(self._device), self._change_of)
        return Loss(total, len(learnt), token_ids.numel())

    def of_text(self, token_ids: Tensor) -> float:
        """The sum of the loss of one row [T + 1] on the device, of any length."""
        with autocast(self._device):
            hidden, scoring = self._states(token_ids[None, :-1], None)
            return chunked_cross_entropy(hidden[0], scoring, token_ids[1:]).item()
