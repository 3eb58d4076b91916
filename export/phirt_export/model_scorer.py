"""The reference model as `phirt_quant` scores models: logits along ids, and greedy answers.

Knows ids in and logits out. Knows nothing of text, files or tasks. Nothing is kept from one call to the next:
every step is a pass over all ids before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phirt_export.reference import Model
from phirt_export.reference.model import Route
from phirt_quant.evaluation import Logits, likeliest

_LOGITS_BYTES = 64 << 20


class ModelScorer:
    """A model on any device, of which answers end with one of `eos` or after `context` positions; see
    `phirt_quant.evaluation.Scorer`.
    """

    def __init__(self, model: Model, eos: Sequence[int], context: int) -> None:
        self._model, self._eos, self._context = model, frozenset(eos), context
        media = (model.config.tokens.image, model.config.tokens.audio)
        self._placeholders = [token for token in media if token is not None]

    def score(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See `phirt_quant.evaluation.Scorer`."""
        with torch.no_grad():
            yield from self.logits(ids[:-1], None, "none", first - 1)

    def answer(self, ids: Sequence[int], draft: Sequence[int] = ()) -> Iterator[int]:
        """See `phirt_quant.evaluation.Scorer`. A pass covers the rest of the draft, so as many are needed as
        the draft has faults.
        """
        known, rest = list(ids), list(draft)
        with torch.no_grad():
            while len(known) < self._context:
                rest = rest[: self._context - len(known)]
                rows = self.logits([*known, *rest], None, "none", len(known) - 1)
                for place, logits in enumerate(rows):
                    token = likeliest(logits, self._placeholders)
                    if token in self._eos or len(known) == self._context:
                        return
                    yield token
                    known.append(token)
                    if place < len(rest) and rest[place] != token:
                        break
                rest = rest[place + 1 :]

    def continued(self, ids: Sequence[int], media: Tensor | None, route: Route) -> Iterator[int]:
        """The greedy answer to ids with rows of media features, on a route."""
        known = list(ids)
        with torch.no_grad():
            while len(known) < self._context:
                (logits,) = self.logits(known, media, route, len(known) - 1)
                token = likeliest(logits, self._placeholders)
                if token in self._eos:
                    return
                yield token
                known.append(token)

    def logits(
        self, token_ids: Sequence[int], media: Tensor | None, route: Route, first: int
    ) -> Iterator[Logits]:
        """Logits after each position from `first` on; only a few rows of them exist at a time. Gradients are
        the caller's to switch off.
        """
        head = self._model.head_weight()
        ids = torch.tensor([list(token_ids)], device=head.device)
        hidden = self._model.hidden_states(ids, media, route)[0, first:]
        for rows in hidden.split(max(16, _LOGITS_BYTES // (4 * len(head)))):
            yield from F.linear(rows, head).float().cpu().numpy()


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model without dropout and moving statistics; which parts train is as before afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
