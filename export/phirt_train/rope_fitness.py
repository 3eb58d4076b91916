"""What rotary factors are searched by: how well a model predicts text at a length that it was not trained at.

Knows the reference model and passages of token ids. A passage is predicted from `first` on: from its second
token for a document (LongRoPE), from the answer on for a needle (LongRoPE2, arXiv 2502.20082, whose
needle-driven perplexity looks at what needs the long context alone). Knows nothing of the search.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phirt.errors import ConfigError
from phirt_export.model_scorer import evaluating
from phirt_export.reference import Model
from phirt_export.reference.config import RopeConfig
from phirt_export.reference.decoder import rope_tables
from phirt_train.rope_search import Fitness

_LOGITS_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Passage:
    """Token ids, of which those from index `first` on are predicted from all before them."""

    token_ids: tuple[int, ...]
    first: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.first < len(self.token_ids):
            raise ConfigError(
                f"a passage of {len(self.token_ids)} tokens is predicted from {self.first} on; accepted: 1 "
                "to the last one's index"
            )


def long_passages(documents: Sequence[Sequence[int]], length: int, count: int = 5) -> list[Passage]:
    """The first `length` tokens of the first `count` documents that have as many.

    Raises:
        ConfigError: there are fewer documents so long.
    """
    found = [Passage(tuple(ids[:length])) for ids in documents if len(ids) >= length][:count]
    if len(found) < count:
        longest = max(map(len, documents), default=0)
        raise ConfigError(
            f"{count} documents of {length} tokens are needed, {len(found)} of {len(documents)} are so long, "
            f"the longest has {longest}; give longer ones, or search at a shorter length"
        )
    return found


def perplexity(
    model: Model, passages: Sequence[Passage], rope: RopeConfig | None = None, first_unscaled: int = 0
) -> float:
    """The perplexity of what is predicted, by token, with the model's rotary embedding or another, of which
    the first positions may go unscaled.
    """
    nats, count = 0.0, 0
    with evaluating(model), torch.no_grad(), _tables(model, rope, first_unscaled):
        for passage in passages:
            nats += _nats(model, passage)
            count += len(passage.token_ids) - passage.first
    mean = nats / count
    return math.exp(mean) if mean < math.log(1e300) else math.inf


def passage_fitness(model: Model, passages: Sequence[Passage]) -> Fitness:
    """Perplexity of these passages, as a search asks for it."""
    return lambda rope, first_unscaled: perplexity(model, passages, rope, first_unscaled)


def _nats(model: Model, passage: Passage) -> float:
    """Nats of what is predicted; few rows of logits exist at a time."""
    head = model.head_weight()
    ids = torch.tensor(passage.token_ids, device=head.device)
    hidden = model.hidden_states(ids[None, :-1])[0, passage.first - 1 :]
    rows = max(16, _LOGITS_BYTES // (4 * len(head)))
    parts = zip(hidden.split(rows), ids[passage.first :].split(rows), strict=True)
    return sum(F.cross_entropy(F.linear(h, head).float(), t, reduction="sum").item() for h, t in parts)


@contextlib.contextmanager
def _tables(model: Model, rope: RopeConfig | None, first_unscaled: int) -> Iterator[None]:
    """The model with another rotary embedding inside the block."""
    if rope is None:
        yield
        return
    backbone = model.model

    def rotary(length: int) -> tuple[Tensor, Tensor]:
        cos, sin = unscaled_first(rope, length, first_unscaled)
        device = backbone.embed_tokens.weight.device
        return cos.to(device), sin.to(device)

    backbone.rotary = rotary  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backbone.rotary


def unscaled_first(rope: RopeConfig, length: int, first_unscaled: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines as `rope_tables` has them, the first positions with factors of 1."""
    cos, sin = rope_tables(rope, length)
    if first_unscaled:
        ones = (1.0,) * (rope.rotary_dim // 2)
        plain = dataclasses.replace(rope, short_factor=ones, long_factor=ones)
        for table, source in zip((cos, sin), rope_tables(plain, min(length, first_unscaled)), strict=True):
            table[: len(source)] = source
    return cos, sin
