"""Connectionist temporal classification (Graves et al., ICML 2006) over recordings: its loss, its best path,
and the words that this gets wrong.

Knows log-probabilities whose last class is the blank. Knows nothing of what the other classes stand for, or
of how a recording is heard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from phirt_quant.word_errors import word_errors
from phirt_train.objective import Loss


class Transcribed(Protocol):
    """Recordings and what is said in each."""

    @property
    def paths(self) -> Sequence[Path]:
        """Where they lie."""

    @property
    def texts(self) -> Sequence[str]:
        """Plain words."""


def ctc_loss(log_probabilities: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> Loss:
    """Over the recordings, of each its loss per class that is said.

    Args:
        log_probabilities: [B, T, classes + 1].
        lengths: of each recording, of T.
        targets: the classes that are said in each.
    """
    said = torch.tensor(list(itertools.chain.from_iterable(targets)), device=log_probabilities.device)
    mean = F.ctc_loss(
        log_probabilities.transpose(0, 1),
        said,
        lengths,
        torch.tensor([len(target) for target in targets]),
        blank=log_probabilities.shape[2] - 1,
        zero_infinity=True,
    )
    return Loss(mean * len(targets), len(targets), len(targets))


def best_path(log_probabilities: Tensor) -> list[int]:
    """The likeliest classes of one recording [T, classes + 1], repeats joined and without blanks."""
    blank = log_probabilities.shape[1] - 1
    best = log_probabilities.argmax(-1).tolist()
    return [one for one, _ in itertools.groupby(best) if one != blank]


def word_error_rates(held_out: Mapping[str, Transcribed], heard: Callable[[Path], str]) -> dict[str, float]:
    """Of what is heard in each file of recordings, by the file's name."""
    figures = {}
    for label, clips in held_out.items():
        errors = words = 0
        for path, text in zip(clips.paths, clips.texts, strict=True):
            errors += word_errors(text, heard(path))
            words += len(text.split())
        figures[f"{label} word error rate"] = errors / max(1, words)
    return figures
