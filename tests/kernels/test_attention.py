"""Grouped-query attention beside onnxruntime's operator: all sizes, caches and places of rows; the same bits
with any number of threads; nodes that are taken, and those that are left.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from attention_cases import OUTPUTS, Array, Attention, run_in_place, session, without_leftovers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phirt.runtime.kernels import with_kernels

OURS = "phirt.kernels"
# Sums of some hundred products in float32, in another order, and what rotation and the exponential round off.
TOLERANCE = 5e-6
HEADS = ((9, 3), (24, 8), (12, 12), (4, 1))
SETS = ("generic", "avx2", "avx512-vnni", "neon-dotprod")  # one that a CPU lacks: its best one

attentions = st.builds(
    lambda heads, rotary, **rest: Attention(heads[0], heads[1], rotary=rotary, **rest),
    st.sampled_from(HEADS),
    st.sampled_from((0, 16, 32)),
    head_dim=st.sampled_from((32, 64, 96, 128)),
    window=st.sampled_from((-1, 1, 50, 200)),
    scale=st.sampled_from((0.0, 0.07)),
    packed=st.booleans(),
    cache=st.sampled_from(("float32", "int8")),
    scales=st.sampled_from(("PER_CHANNEL", "PER_TENSOR")),
)


def known(fed: dict[str, Array], present: Array) -> Array:
    """What of keys or values has been written."""
    return present[:, :, : int(fed["total_sequence_length"])]


def assert_same(fed: dict[str, Array], got: list[Array], right: list[Array]) -> None:
    greatest = np.abs(right[0]).max()
    np.testing.assert_allclose(got[0], right[0], rtol=0, atol=TOLERANCE * greatest)
    for one, other in zip(got[1:], right[1:], strict=True):
        one, other = known(fed, one), known(fed, other)
        assert one.shape == other.shape and one.dtype == other.dtype
        if one.dtype == np.int8:  # a rotated key in the middle between two codes may be rounded to either
            assert np.abs(one.astype(int) - other).max() <= 1 and (one != other).mean() < 1e-3
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attention=attentions,
    past=st.sampled_from((0, 1, 63, 64, 65, 130, 300, 700)),
    rows=st.sampled_from((1, 2, 7, 9, 130)),
    spare=st.sampled_from((0, 5, 100)),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_attend_as_onnxruntime_has_it(library, monkeypatch, name, attention, past, rows, spare, seed):
    monkeypatch.setenv("PHIRT_KERNELS", name)
    fed = attention.feed(past, rows, spare, seed)
    right = run_in_place(session(attention.model(fed)), fed)
    clean = without_leftovers(fed)
    results = [run_in_place(session(attention.model(fed, OURS), library, n), clean) for n in (1, 2, 3)]
    assert_same(fed, results[0], right)
    for result in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("past", (1000, 1100, 2500))
@pytest.mark.parametrize("rows", (1, 8, 60))
def test_long_caches_are_read_in_longer_pieces(library, past, rows):
    attention = Attention(rotary=64, window=2048)
    fed = attention.feed(past, rows, 3, seed=past + rows)
    got = run_in_place(session(attention.model(fed, OURS), library, 2), fed)
    assert_same(fed, got, run_in_place(session(attention.model(fed)), fed))


@pytest.mark.parametrize("cache", ("float32", "int8"))
def test_past_and_present_of_their_own(library, cache):
    """A growing cache: present has room for the new rows, past has not."""
    attention = Attention(cache=cache, packed=False)
    fed = attention.feed(past=40, rows=3, spare=0, seed=1)
    for name in ("past_key", "past_value"):
        fed[name] = fed[name][:, :, :40].copy()
    got, right = (session(*a).run(list(OUTPUTS), fed) for a in both(attention, fed, library))
    assert_same(fed, got, right)
    assert got[1].shape == (1, 3, 43, 64)


def both(attention: Attention, fed: dict[str, Array], library) -> list[tuple[Any, ...]]:
    return [(attention.model(fed, OURS), library), (attention.model(fed),)]


@pytest.mark.parametrize("past", (0, 20))
def test_rows_of_the_rotary_tables_may_be_named(library, past):
    """The first rows of a sequence count on from the first that is named."""
    attention = Attention(rotary=32, positions=True)
    fed = attention.feed(past, rows=5, spare=2, seed=3)
    fed["position_ids"][0, 1:] = fed["position_ids"][0, 1:][::-1].copy()
    got = run_in_place(session(attention.model(fed, OURS), library), fed)
    assert_same(fed, got, run_in_place(session(attention.model(fed)), fed))


def test_a_larger_total_is_no_first_prompt(library):
    """A prompt in chunks may announce its whole length: `seqlens_k` says where the rows lie."""
    attention = Attention(rotary=32)
    fed = attention.feed(past=0, rows=4, spare=60, seed=4) | {"total_sequence_length": np.array(50, np.int32)}
    got, right = (run_in_place(session(*a), fed) for a in both(attention, fed, library))
    fed["total_sequence_length"] = np.array(4, np.int32)  # rows that were written
    assert_same(fed, got, right)


def test_several_sequences(library):
    attention = Attention(batch=3, rotary=16)
    fed = attention.feed(past=70, rows=1, spare=9, seed=5)
    fed["seqlens_k"] = np.array([70, 3, 64], np.int32)
    got, right = (run_in_place(session(*a), fed) for a in both(attention, fed, library))
    np.testing.assert_allclose(got[0], right[0], atol=2e-6)


def test_a_cache_of_float16(library):
    """onnxruntime has none for float32 queries: beside the same numbers in float32."""
    attention = Attention(cache="float16")
    for rows in (1, 40):
        fed = attention.feed(past=90, rows=rows, spare=4, seed=6)
        got = run_in_place(session(attention.model(fed, OURS), library), fed)
        assert got[1].dtype == np.float16
        query = fed["query"].reshape(rows, -1, 64)
        rounded = query.copy()
        rounded[:, attention.heads :] = rounded[:, attention.heads :].astype(np.float16)
        wide = dataclasses.replace(attention, cache="float32")
        as_wide = fed | {"query": rounded.reshape(1, rows, -1)}
        as_wide |= {name: fed[name].astype(np.float32) for name in ("past_key", "past_value")}
        right = run_in_place(session(wide.model(as_wide)), as_wide)
        np.testing.assert_allclose(got[0], right[0], atol=5e-6)
        np.testing.assert_array_equal(known(fed, got[1]), known(fed, right[1]).astype(np.float16))


def test_scores_far_apart_stay_numbers(library):
    """Scores in the thousands: all weight lies on one position."""
    attention = Attention(scale=300.0)
    for rows in (1, 64):
        fed = attention.feed(past=100, rows=rows, spare=0, seed=7)
        got, right = (run_in_place(session(*a), fed) for a in both(attention, fed, library))
        assert np.isfinite(got[0]).all()
        np.testing.assert_allclose(got[0], right[0], atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seqlens_k": np.array([90], np.int32)}, "do not fit"),
        ({"seqlens_k": np.array([-5], np.int32)}, "do not fit"),
        ({"position_ids": np.array([[1000, 0]])}, "tables"),
        ({"position_ids": np.zeros((1, 0), np.int64)}, "position_ids have not the size"),
        ({"total_sequence_length": np.zeros(0, np.int32)}, "no single number"),
    ],
)
def test_places_that_are_not_there_are_refused(library, change, message):
    attention = Attention(rotary=32, positions=True)
    fed = attention.feed(past=10, rows=2, spare=4, seed=8)
    opened = session(attention.model(fed, OURS), library)
    with pytest.raises(Exception, match=message):
        opened.run(None, fed | change)


def test_keys_that_are_no_numbers_are_not_hidden(library):
    attention = Attention(rotary=32)
    for rows in (1, 40):
        fed = attention.feed(past=10, rows=rows, spare=0, seed=3)
        fed["past_key"][0, 0, 3] = np.nan
        group = attention.heads // attention.kv_heads * attention.head_dim
        out = session(attention.model(fed, OURS), library).run(None, fed)[0]
        assert np.isnan(out[..., :group]).all() and np.isfinite(out[..., group:]).all()


def test_heads_without_end_are_refused(library):
    attention = Attention(rotary=32)
    fed = attention.feed(past=4, rows=1, spare=0, seed=0)
    graph = onnx.load_from_string(attention.model(fed, OURS))
    for attribute in graph.graph.node[0].attribute:
        if attribute.name in ("num_heads", "kv_num_heads"):
            attribute.i = 2**58
    with pytest.raises(Exception, match="numbers of heads"):
        session(graph.SerializeToString(), library)


def taken(attention: Attention, **attributes: Any) -> bool:
    fed = attention.feed(past=4, rows=1, spare=0, seed=0)
    changed = with_kernels(attention.model(fed, **attributes))
    return changed is not None and onnx.load_from_string(changed).graph.node[0].domain == OURS


def test_attention_is_taken_where_nothing_is_asked_that_the_operator_lacks():
    plain = Attention(rotary=32)
    assert taken(plain) and taken(Attention(rotary=32, window=8, cache="int8", packed=False))
    assert taken(plain, softcap=0.0, smooth_softmax=0)
    for attributes in (
        {"softcap": 30.0}, {"smooth_softmax": 1}, {"rotary_interleaved": 1}, {"qk_output": 1},
        {"sliding_window_cache": 1}, {"causal": 0}, {"an_attribute_of_later": 0},
    ):  # fmt: skip
        assert not taken(plain, **attributes), attributes
    assert not taken(dataclasses.replace(plain, cache="float16"))
    assert not taken(dataclasses.replace(plain, head_dim=576)), "more than the operator takes"
    assert not taken(Attention()), "heads of any size"


def test_attention_with_sinks_or_a_bias_is_left():
    attention = Attention(rotary=32)
    fed = attention.feed(past=4, rows=1, spare=0, seed=0)
    for extra in (
        {"head_sink": np.zeros(9, np.float32)},
        {"attention_bias": np.zeros((1, 1, 1, 5), np.float32)},
    ):
        assert with_kernels(attention.model(fed | extra)) is None
