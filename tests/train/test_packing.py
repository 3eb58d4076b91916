"""Packed rows: what shares a row does not see each other, nothing is lost, and every document gets the logits
that it gets alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt_export.reference import (
    DecoderConfig,
    Documents,
    Model,
    ModelConfig,
    RopeConfig,
    TokenConfig,
    initialize,
)
from phirt_train.data.packing import PackedText, RunningText, pack
from phirt_train.data.token_store import TokenSequences

LENGTHS = (5, 1, 20, 33, 40, 3)  # of documents; the last two are longer than the short regime


def sequences(*lengths: int) -> TokenSequences:
    starts = np.cumsum([0, *lengths])
    token_ids = np.arange(1, starts[-1] + 1, dtype=np.int32)
    return TokenSequences(token_ids, np.ones(len(token_ids), bool), starts, [()] * len(lengths), Path("x"))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_rows_hold_every_piece_once_and_are_full(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    fills = sorted(sum(lengths[piece] for piece in row) for row in rows)
    assert fills[-1] <= 20
    # A piece would have gone into a row that had room: no two rows are both at most half full.
    assert len(fills) < 2 or fills[0] + fills[1] > 20


def test_best_fit_decreasing_by_hand() -> None:
    # 7 and 6 open rows of 11; 4 fits both and fills the fuller; 3, 2 and no more go to the other; 1 is left.
    assert pack([3, 7, 1, 6, 4, 2], 11) == [[1, 4], [3, 0, 5], [2]]


@pytest.mark.parametrize("cuts", [True, False])
def test_an_epoch_has_every_token_once(cuts: bool) -> None:
    lengths = [3, 30, 11, 1, 8, 21] * 20
    source = sequences(*lengths)
    packed = PackedText(source, np.arange(len(lengths)), 10, cuts, 0, 1, "a")
    rows = [packed.row(number) for number in range(300)]
    again = PackedText(source, np.arange(len(lengths)), 10, cuts, 0, 1, "a")
    np.testing.assert_array_equal(again.row(250).token_ids, rows[250].token_ids)
    shown, number = 0, 0
    predicted: set[int] = set()
    while shown < packed.total_tokens:
        row = rows[number]
        shown += int((row.numbers >= 0).sum())
        number += 1
        assert packed.tokens(number) == shown
        same = (row.numbers[1:] == row.numbers[:-1]) & (row.numbers[1:] >= 0)
        assert (np.diff(row.token_ids)[same] == 1).all()  # a document's own tokens, in order
        predicted |= set(row.token_ids[1:][same].tolist())
        assert (row.token_ids[row.numbers < 0] == 0).all() and not row.loss_mask[row.numbers < 0].any()
    firsts = set((source.starts[:-1] + 1).tolist())
    everything = set(source.token_ids.tolist())
    if cuts:  # the tail of a long document is kept: all tokens but each document's first are predicted
        for row in rows[number : number + 80]:  # an epoch ends within a group of pieces
            same = (row.numbers[1:] == row.numbers[:-1]) & (row.numbers[1:] >= 0)
            predicted |= set(row.token_ids[1:][same].tolist())
        assert predicted == everything - firsts


def test_token_ids_above_65535_are_kept_in_rows() -> None:
    """Phi-4-mini's vocabulary has 200,064 tokens."""
    source = sequences(9, 40)
    large = dataclasses.replace(source, token_ids=source.token_ids + 200_000)
    rows = [PackedText(large, np.arange(2), 16, True, 199_999, 1, "a").row(n) for n in range(2)]
    rows += [RunningText(large, 16, 1, "a").row(0)]
    assert all(row.token_ids.min() >= 199_999 and row.token_ids.dtype == np.int64 for row in rows)
    assert max(row.token_ids.max() for row in rows) > 200_009


def test_windows_of_running_text_show_everything_once_an_epoch() -> None:
    text = RunningText(sequences(95), 10, 3, "a")
    rows = [text.row(number).token_ids for number in range(20)]
    assert {len(row) for row in rows} == {11}
    for epoch in (rows[:10], rows[10:]):
        assert {int(token) for row in epoch for token in row[:-1]} == set(range(1, 96))
    assert text.tokens(10) == 95 and text.tokens(12) == 115
    tiny = RunningText(sequences(4), 10, 3, "a")
    assert set(tiny.row(0).token_ids.tolist()) == {1, 2, 3, 4}


def decoder(window: int | None = None, context: int = 64) -> ModelConfig:
    pairs = 4
    rope = RopeConfig(1e4, 2 * pairs, 32, context, (1.0,) * pairs, (1.5, 2.0, 2.5, 3.0))
    sizes = DecoderConfig(2, 32, 2, 1, 16, 48, 200, 1e-5, rope, sliding_window=window)
    return ModelConfig(sizes, TokenConfig(0, 0, (0,), None, None), None, None, {})


@pytest.fixture
def rows() -> tuple[torch.Tensor, np.ndarray]:
    """One row of documents, and one of a single document and a gap."""
    rng = np.random.default_rng(0)
    token_ids = torch.from_numpy(rng.integers(1, 200, (2, sum(LENGTHS))))
    numbers = np.stack([np.repeat(np.arange(len(LENGTHS)), LENGTHS), np.zeros(sum(LENGTHS), np.int64)])
    numbers[1, 50:] = -1
    return token_ids, numbers


@pytest.mark.parametrize("window", [None, 7])
def test_a_packed_rows_logits_are_those_of_each_document_alone(
    rows: tuple[torch.Tensor, np.ndarray], window: int | None
) -> None:
    """Also where a row is longer than the short regime of LongRoPE, and documents are not."""
    token_ids, numbers = rows
    model = Model(decoder(window))
    initialize(model, 3)
    with torch.no_grad():
        packed = model(token_ids, mask=Documents.of(numbers))
        for row in range(2):
            for number in np.unique(numbers[row]):
                own = torch.from_numpy(numbers[row] == number)
                alone = model(token_ids[row, own][None])[0]
                assert (packed[row, own] - alone).abs().max() < 1e-5, (row, number)


def test_the_mask_and_the_documents_see_the_same(rows: tuple[torch.Tensor, np.ndarray]) -> None:
    token_ids, numbers = rows
    config = decoder()
    rope = dataclasses.replace(config.decoder.rope, original_context=64, long_factor=(1.0,) * 4)
    model = Model(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, rope=rope)))
    initialize(model, 3)
    documents = Documents.of(numbers)
    mask = documents.mask()
    assert int(mask[0].sum()) == sum(n * (n + 1) // 2 for n in LENGTHS)
    with torch.no_grad():
        assert (model(token_ids, mask=mask) - model(token_ids, mask=documents)).abs().max() < 1e-5


def test_no_gradient_crosses_documents(rows: tuple[torch.Tensor, np.ndarray]) -> None:
    token_ids, numbers = rows
    model = Model(decoder())
    initialize(model, 3)
    documents = Documents.of(numbers)
    cos, sin = model.model.packed_rotary(documents)
    for number in (0, 2, 4):
        x = torch.randn(2, token_ids.shape[1], 32, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        y = x
        for layer in model.model.layers:
            y = layer(y, cos, sin, documents, None)
        own = torch.from_numpy(numbers[0] == number)
        y[0, own].square().sum().backward()
        assert x.grad is not None
        assert (x.grad[0, ~own] == 0).all() and (x.grad[1] == 0).all() and (x.grad[0, own] != 0).any()


@settings(max_examples=20)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 99))
def test_attention_in_documents_is_the_masked_one(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, sum(lengths), 8, generator=generator) for _ in range(3))
    documents = Documents.of(np.repeat(np.arange(len(lengths)), lengths)[None])
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=documents.mask())
    assert (documents.attend(q, k, v) - expected).abs().max() < 1e-5
