"""Portions by hand, and against the shares and epochs that Phi-4's report prints."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_train.curate.mixture import MixtureConfig, portions, table


def test_shares_make_epochs() -> None:
    web, code = portions({"web": 1000, "code": 100}, MixtureConfig(tokens=800, shares={"web": 3, "code": 1}))
    assert (web.tokens, web.share, web.epochs) == (600, 0.75, 0.6)
    assert (code.tokens, code.share, code.epochs) == (200, 0.25, 2.0)


def test_epochs_make_shares_as_phi_4s_report_has_them() -> None:
    """Table 5 of Phi-4's report: share, epochs and, from them, unique tokens in billions of 10 trillion."""
    published = {
        "web": (15, 1.2),
        "rewrites": (15, 5.2),
        "synthetic": (40, 13.8),
        "code": (20, 2.4),
        "acquired": (10, 1.7),
    }
    unique = {name: round(10_000e9 * share / 100 / epochs) for name, (share, epochs) in published.items()}
    found = portions(unique, MixtureConfig(epochs={name: epochs for name, (_, epochs) in published.items()}))
    assert [round(100 * one.share) for one in found] == [share for share, _ in published.values()]
    by_shares = portions(
        unique, MixtureConfig(tokens=1e13, shares={name: share for name, (share, _) in published.items()})
    )
    assert [round(one.epochs, 1) for one in by_shares] == [epochs for _, epochs in published.values()]


def test_without_a_total_nothing_is_seen_twice() -> None:
    found = portions({"web": 1000, "code": 100}, MixtureConfig(shares={"web": 1, "code": 1}))
    assert [one.tokens for one in found] == [100, 100]
    assert [one.epochs for one in portions({"web": 1000, "code": 100}, MixtureConfig())] == [1.0, 1.0]


def test_what_a_source_cannot_give_the_others_give() -> None:
    config = MixtureConfig(tokens=1000, shares={"a": 5, "b": 3, "c": 2}, most_epochs=2)
    found = {one.source: one.tokens for one in portions({"a": 100, "b": 1000, "c": 1000}, config)}
    assert found == pytest.approx({"a": 200, "b": 480, "c": 320})


def test_long_documents_are_weighed_up() -> None:
    available = {"web": 900, "web.long": 100, "code": 500}
    config = MixtureConfig(tokens=1000, shares={"web": 0.5, "code": 0.5}, long_share=0.3)
    found = {one.source: (one.tokens, one.epochs) for one in portions(available, config)}
    assert found == {"web": (350, 350 / 900), "web.long": (150, 1.5), "code": (500, 1.0)}
    as_they_are = MixtureConfig(tokens=1000, shares={"web": 0.5, "code": 0.5})
    assert portions(available, as_they_are)[1].tokens == 50


@settings(deadline=None)
@given(
    unique=st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
    shares=st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
    fraction=st.floats(0.01, 1),
    most=st.floats(0.5, 20),
)
def test_portions_add_up_and_keep_their_limit(
    unique: list[int], shares: list[float], fraction: float, most: float
) -> None:
    available = {f"s{number}": count for number, count in enumerate(unique)}
    total = fraction * sum(unique) * most
    if total < 1:
        return
    given_shares = dict(zip(available, shares, strict=False))
    found = portions(available, MixtureConfig(tokens=total, shares=given_shares, most_epochs=most))
    assert sum(one.tokens for one in found) == pytest.approx(total)
    assert sum(one.share for one in found) == pytest.approx(1)
    assert all(one.epochs <= most * (1 + 1e-9) for one in found)


def test_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match="asks for 500 tokens, and its sources give 200 in 2 epochs"):
        portions({"a": 100}, MixtureConfig(tokens=500, most_epochs=2))
    with pytest.raises(ConfigError, match="names 'b', which is no source, accepted: a"):
        portions({"a": 100}, MixtureConfig(shares={"b": 1}))


def test_the_table() -> None:
    assert table(portions({"web": 1000}, MixtureConfig(tokens=2500))).splitlines()[-1] == (
        "| web | 100.0% | 1,000 | 2,500 | 2.50 |"
    )
