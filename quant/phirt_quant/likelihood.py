"""How likely a model finds a continuation of a context, counted as lm-evaluation-harness counts it.

Knows token ids, where a context ends and a continuation begins, and log-probabilities. Knows nothing of tasks
or models: a model is whatever scores.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from phirt_quant.evaluation import Logits, Scorer

Encode = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The sum of a continuation's log-probabilities in nats, and whether each of its tokens was the likeliest
    one.
    """

    nats: float
    is_greedy: bool


def leading_ids(tokenizer: Path) -> list[int]:
    """The ids that a tokenizer.json puts before every text: a beginning token, often none."""
    encoding = Tokenizer.from_file(str(tokenizer)).encode("a")
    marked = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return [token for token, _ in itertools.takewhile(lambda pair: pair[1], marked)]


def split_tokens(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what continues it. Both are encoded together and split where the context's own
    ids end; spaces at the end of the context belong to the continuation, whose words begin with them.
    """
    bare = context.rstrip()
    whole = list(encode(context + continuation))
    context_ids = list(encode(bare)) if bare else []
    return context_ids, whole[len(context_ids) :]


def continuation_likelihood(
    scorer: Scorer, context_ids: Sequence[int], continuation_ids: Sequence[int], longest: int
) -> Likelihood:
    """The likelihood of ids after others, of which there must be one at least. Where all together are longer
    than `longest` positions and the last one's prediction, the beginning is left out.
    """
    assert context_ids
    ids = [*context_ids, *continuation_ids][-(longest + 1) :]
    first = max(1, len(ids) - len(continuation_ids))
    nats, greedy = 0.0, True
    for logits, token in zip(scorer.score(ids, first), ids[first:], strict=True):
        nats += log_probability(logits, token)
        greedy &= int(logits.argmax()) == token
    return Likelihood(nats, greedy)


def rolling_windows(count: int, longest: int) -> list[tuple[int, int, int]]:
    """How `count` tokens behind a beginning one are predicted, each once, by windows of `longest` positions:
    for each window its first place, the first place that is predicted in it, and the one behind its last. The
    beginning is place 0. All windows are full where the text is long enough, the last one too, which then
    begins earlier.
    """
    windows, done = [], 1
    while done <= count:
        end = min(done + longest, count + 1)
        windows.append((max(0, end - 1 - longest), done, end))
        done = end
    return windows


def rolling_likelihood(scorer: Scorer, beginning: int, ids: Sequence[int], longest: int) -> float:
    """The log-likelihood in nats of a whole text after a beginning token."""
    whole = [beginning, *ids]
    nats = 0.0
    for start, first, end in rolling_windows(len(ids), longest):
        predicted = zip(scorer.score(whole[start:end], first - start), whole[first:end], strict=True)
        nats += sum(log_probability(logits, token) for logits, token in predicted)
    return nats


def log_probability(logits: Logits, token: int) -> float:
    """The log-probability of one token, summed in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
