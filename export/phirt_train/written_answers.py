"""What a model in training writes by itself where an answer is known, and how it is measured: ROUGE-L of
summaries, BLEU of translations, word errors of transcripts.

Answers are greedy, of several prompts at once and without a cache: each token is a pass over all before it,
which answers of a few dozen tokens bear. Knows rows of token ids and the reference model's hidden states.
Knows nothing of files, media or chat templates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from phirt.fields import Length, Range
from phirt_export.reference import Model
from phirt_quant.metrics import Answer, Outcome, Transcript, estimate
from phirt_quant.word_errors import spoken_words, word_errors
from phirt_train.chunked_loss import IGNORED
from phirt_train.conversation_rows import Rows

Measure = Literal["rouge_l", "bleu", "wer"]
_SPARE = 8  # tokens that an answer may be longer than twice the known one


@dataclasses.dataclass(frozen=True)
class WrittenAnswers:
    """A file of conversations whose last answers the model writes itself.

    Attributes:
        file: conversations.
        measures: what is taken of the answers.
        most: conversations that are asked at most, from the beginning of the file on.
    """

    file: str
    measures: Annotated[tuple[Measure, ...], Length(1, 3)]
    most: Annotated[int, Range(1, 1 << 20)] = 100


Written = Annotated[Mapping[str, WrittenAnswers], Length(0, 64)]


@dataclasses.dataclass(frozen=True)
class Asked:
    """The ids of a prompt, and the ids of the answer that is known."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def asked(rows: Rows) -> list[Asked]:
    """Of each row its last answer, without the token that ends it, and all that stands before."""
    found = []
    for ids, targets in zip(rows.token_ids.tolist(), rows.targets.tolist(), strict=True):
        end = max(place for place, target in enumerate(targets) if target != IGNORED)
        begin = end
        while begin and targets[begin - 1] != IGNORED:
            begin -= 1
        found.append(Asked(tuple(ids[: begin + 1]), tuple(targets[begin:end])))
    return found


@torch.no_grad()
def answers(
    questions: Sequence[Asked], model: Model, hidden_states: Callable[[Tensor], Tensor], device: torch.device
) -> list[list[int]]:
    """The greedy answer to each question: up to an end token, to a few tokens more than twice the known
    answer, or to the end of the context.

    Args:
        hidden_states: final hidden states [B, T, hidden] of ids [B, T], right-padded.
    """
    media = [one for one in (model.config.tokens.image, model.config.tokens.audio) if one is not None]
    context, ends = model.config.decoder.rope.context, frozenset(model.config.tokens.eos)
    lengths = [len(one.prompt) for one in questions]
    limits = [min(context, len(one.prompt) + 2 * len(one.answer) + _SPARE) for one in questions]
    ids = torch.full((len(questions), max(limits)), model.config.tokens.pad)
    for row, one in zip(ids, questions, strict=True):
        row[: len(one.prompt)] = torch.tensor(one.prompt)
    ids = ids.to(device)
    head, open_rows = model.head_weight(), [n for n, length in enumerate(lengths) if length < limits[n]]
    while open_rows:
        hidden = hidden_states(ids[:, : max(lengths)])  # of all rows: their media belong to all
        last = torch.tensor([lengths[n] - 1 for n in open_rows], device=device)
        logits = F.linear(hidden[open_rows, last].float(), head.float())
        logits[:, media] = -torch.inf  # what stands for a picture's rows is no word
        chosen = logits.argmax(-1).tolist()
        for n, token in zip(open_rows, chosen, strict=True):
            if token in ends:
                limits[n] = lengths[n]
            else:
                ids[n, lengths[n]] = token
                lengths[n] += 1
        open_rows = [n for n in open_rows if lengths[n] < limits[n]]
    rows = zip(ids.tolist(), questions, lengths, strict=True)
    return [row[len(one.prompt) : length] for row, one, length in rows]


def measured(measure: Measure, pairs: Sequence[tuple[str, str]]) -> float:
    """A measure of texts that are wanted beside those that are written."""
    outcomes: list[Outcome] = []
    for wanted, said in pairs:
        if measure == "wer":
            known, heard = spoken_words(wanted), spoken_words(said)
            outcomes.append(Transcript(heard, word_errors(known, heard), len(known.split())))
        else:
            outcomes.append(Answer(said, said == wanted, wanted=wanted))
    return estimate(measure, outcomes).value
