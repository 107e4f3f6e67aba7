"""Welch's test against its formula, and Holm's correction against plain loops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.significance import holm, welch, welch_interval

FEW = st.lists(st.integers(0, 10_000).map(lambda n: n / 100), min_size=2, max_size=6)


@given(FEW, FEW)
def test_welch_from_its_formula(one: list[float], other: list[float]) -> None:
    from scipy.stats import t

    parts = []
    for values in (one, other):
        mean = sum(values) / len(values)
        parts.append((mean, sum((v - mean) ** 2 for v in values) / (len(values) - 1), len(values)))
    (m1, v1, n1), (m2, v2, n2) = parts
    error = v1 / n1 + v2 / n2
    if error < 1e-6 or min(v1, v2) < 1e-9:
        return
    freedom = error**2 / ((v1 / n1) ** 2 / (n1 - 1) + (v2 / n2) ** 2 / (n2 - 1))
    expected = 2 * t.sf(abs(m1 - m2) / math.sqrt(error), freedom)
    assert welch(one, other) == pytest.approx(expected, abs=1e-9)


def test_welch_where_it_says_nothing() -> None:
    assert math.isnan(welch([1.0], [2.0, 3.0]))
    assert math.isnan(welch([1.0, 2.0], []))
    assert math.isnan(welch([1.0, 1.0], [2.0, 2.0]))
    assert welch([1.0, 1.0], [2.0, 2.5]) < 1
    assert all(math.isnan(end) for end in welch_interval([1.0], [2.0, 3.0]))


@given(FEW, FEW)
def test_the_interval_ends_where_p_is_five_percent(one: list[float], other: list[float]) -> None:
    low, high = welch_interval(one, other)
    if math.isnan(low) or high - low < 1e-3:
        return
    for end in (low, high):
        assert welch(one, other, margin=-end) == pytest.approx(0.05, abs=1e-6)


# 6 s, in which statsmodels is imported
@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8))
def test_holm_in_plain_loops(values: list[float]) -> None:
    known = sorted(p for p in values if not math.isnan(p))
    expected, least = {}, 0.0
    for place, p in enumerate(known):
        least = max(least, min(1.0, (len(known) - place) * p))
        expected.setdefault(p, least)
    for p, corrected in zip(values, holm(values), strict=True):
        if math.isnan(p):
            assert math.isnan(corrected)
        else:
            assert corrected == pytest.approx(max(v for k, v in expected.items() if k <= p))
