"""Statistics over seeds: mean and deviation, t-tests by SciPy, Holm's correction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.05


def mean_and_std(values: ArrayLike) -> tuple[Any, Any]:
    """Mean and standard deviation between seeds (n - 1), over the first axis.

    Values that are not finite are left out; the deviation of fewer than two others is NaN.
    """
    values = np.asarray(values, dtype=float)
    known = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():  # NumPy warns where it returns NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(known, axis=0), np.nanstd(known, axis=0, ddof=1)


def welch(
    one: Sequence[float],
    other: Sequence[float],
    alternative: str = "two-sided",
    margin: float = 0.0,
) -> float:
    """Welch's t-test, which allows unequal variances.

    Args:
        one: Values, one per seed.
        other: Values to compare with.
        alternative: ``two-sided``, ``less`` or ``greater``, as in SciPy.
        margin: Added to every value of ``one``.

    Returns:
        p, or NaN with fewer than two values on a side or without any variance.
    """
    shifted = np.add(one, margin).tolist()
    return _p_value(shifted, other, equal_var=False, alternative=alternative)


def student(one: Sequence[float], other: Sequence[float]) -> float:
    """Student's two-sided unpaired t-test (Cai et al. 2020, section 4); NaN as :func:`welch`."""
    return _p_value(one, other, equal_var=True)


def welch_interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the difference of the means; NaN as :func:`welch`."""
    if not can_be_tested(one, other):
        return math.nan, math.nan
    interval = _ttest(one, other, equal_var=False).confidence_interval(1 - LEVEL)
    return float(interval.low), float(interval.high)


def holm(values: Sequence[float]) -> list[float]:
    """Holm-corrected p-values (Holm 1979). NaN stays NaN and doesn't count as a test."""
    p = np.asarray(values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    tests_left = np.arange(len(order), 0, -1)
    corrected = np.full_like(p, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * tests_left), 1.0)
    return corrected.tolist()


def can_be_tested(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether both sides have two values or more, and any of them differ within a side."""
    return min(len(one), len(other)) > 1 and not len({*one}) == len({*other}) == 1


def _p_value(one: Sequence[float], other: Sequence[float], **settings: Any) -> float:
    if not can_be_tested(one, other):
        return math.nan
    return float(_ttest(one, other, **settings).pvalue)


def _ttest(one: Sequence[float], other: Sequence[float], **settings: Any) -> Any:
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():  # SciPy warns of nearly equal values; p shows them anyway
        warnings.simplefilter("ignore", RuntimeWarning)
        return ttest_ind(one, other, **settings)
