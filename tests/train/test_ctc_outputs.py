"""What objectives over recordings share, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from phirt_train.ctc_outputs import best_path, ctc_loss, word_error_rates


def test_the_loss_is_that_of_all_paths() -> None:
    """Of two frames: a a, a blank, blank a; of one frame alone, a."""
    shares = torch.tensor([[[0.6, 0.4], [0.3, 0.7]], [[0.9, 0.1], [0.5, 0.5]]])
    loss = ctc_loss(shares.log(), torch.tensor([2, 1]), [[0], [0]])
    wanted = -math.log(0.6 * 0.3 + 0.6 * 0.7 + 0.4 * 0.3) - math.log(0.9)
    assert loss.total.item() == pytest.approx(wanted, rel=1e-6)
    assert (loss.weight, loss.units) == (2, 2)


def test_a_best_path_has_neither_repeats_nor_blanks() -> None:
    path = torch.tensor([2, 0, 0, 2, 0, 1, 1, 2])
    assert best_path(torch.eye(3)[path]) == [0, 0, 1]


def test_words_are_counted_over_a_file() -> None:
    clips = SimpleNamespace(paths=[Path("a"), Path("b")], texts=["one two three", "four"])
    silent = SimpleNamespace(paths=[Path("c")], texts=[""])
    heard = {Path("a"): "one too three", Path("b"): "four", Path("c"): ""}
    rates = word_error_rates({"digits": clips, "silence": silent}, lambda path: heard[path])
    assert rates == {"digits word error rate": 0.25, "silence word error rate": 0.0}
