"""t-tests against their formulas, and Holm's correction against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t

from solo_hardneg.study.significance import holm, mean_and_std, student, welch, welch_interval

FEW = st.lists(st.integers(0, 10_000).map(lambda n: n / 100), min_size=2, max_size=6)


@given(FEW, FEW)
def test_welch_from_its_formula(one: list[float], other: list[float]) -> None:
    variances = [np.var(values, ddof=1) / len(values) for values in (one, other)]
    error = sum(variances)
    if error < 1e-6 or min(variances) < 1e-9:
        return
    freedom = error**2 / sum(
        v**2 / (len(values) - 1) for v, values in zip(variances, (one, other), strict=True)
    )
    t = abs(np.mean(one) - np.mean(other)) / math.sqrt(error)
    assert welch(one, other) == pytest.approx(2 * student_t.sf(t, freedom), abs=1e-9)


def test_student_from_its_formula() -> None:
    one, other = [0.5, 0.6, 0.55], [0.45, 0.5, 0.49]
    pooled = (np.var(one, ddof=1) + np.var(other, ddof=1)) / 2
    t = (np.mean(one) - np.mean(other)) / np.sqrt(pooled * 2 / 3)
    assert student(one, other) == pytest.approx(2 * student_t.sf(t, 4))


@pytest.mark.parametrize("test", [welch, student])
def test_values_that_cannot_be_tested_give_nan(test: Callable[..., float]) -> None:
    assert math.isnan(test([1.0], [2.0, 3.0]))
    assert math.isnan(test([1.0, 2.0], []))
    assert math.isnan(test([1.0, 1.0], [2.0, 2.0]))
    assert test([1.0, 1.0], [2.0, 2.5]) < 1
    assert all(math.isnan(end) for end in welch_interval([1.0], [2.0, 3.0]))


@given(FEW, FEW)
def test_the_interval_ends_where_p_is_five_percent(one: list[float], other: list[float]) -> None:
    low, high = welch_interval(one, other)
    if math.isnan(low) or high - low < 1e-3:
        return
    for end in (low, high):
        assert welch(one, other, margin=-end) == pytest.approx(0.05, abs=1e-6)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8))
def test_holm_from_its_definition(values: list[float]) -> None:
    """The k-th smallest of m p-values is multiplied by m - k + 1, and never falls below others."""
    known = sorted(p for p in values if not math.isnan(p))
    steps = [min(1.0, (len(known) - k) * p) for k, p in enumerate(known)]
    for p, corrected in zip(values, holm(values), strict=True):
        if math.isnan(p):
            assert math.isnan(corrected)
        else:
            expected = max(step for q, step in zip(known, steps, strict=True) if q <= p)
            assert corrected == pytest.approx(expected)


def test_mean_and_deviation_are_numpys_over_finite_values() -> None:
    values = np.random.default_rng(0).normal(size=(4, 6))
    mean, std = mean_and_std(values)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(std, values.std(0, ddof=1))
    values[1, 2], values[:, 3], values[1:, 4] = np.inf, np.nan, np.nan
    mean, std = mean_and_std(values)
    known = values[[0, 2, 3], 2]
    assert (mean[2], std[2]) == pytest.approx((known.mean(), known.std(ddof=1)))
    assert np.isnan([mean[3], std[3], std[4]]).all()
    assert mean[4] == values[0, 4]
    mean, std = mean_and_std([2.0])
    assert mean == 2.0
    assert np.isnan(std)
