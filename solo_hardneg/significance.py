"""The tests by which accuracies over seeds are compared, in ``report`` and ``reproduce`` alike.

Welch's t-test, which doesn't take both sides' spread for equal, corrected by Holm's method for the
number of comparisons that are made together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVEL = 0.05


def welch(
    one: Sequence[float],
    other: Sequence[float],
    alternative: str = "two-sided",
    margin: float = 0.0,
) -> float:
    """Returns the p of Welch's test of ``one`` + ``margin`` against ``other``.

    NaN with fewer than two values on a side, or without any spread.
    """
    return (
        float(_test(one, other, alternative, margin).pvalue)
        if can_be_tested(one, other)
        else math.nan
    )


def welch_interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of the means; NaN as in :func:`welch`."""
    if not can_be_tested(one, other):
        return math.nan, math.nan
    interval = _test(one, other).confidence_interval(1 - LEVEL)
    return float(interval.low), float(interval.high)


def can_be_tested(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether there are two values on each side, and any spread."""
    return min(len(one), len(other)) > 1 and not len({*one}) == len({*other}) == 1


def holm(values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number by Holm's method; NaN stays and isn't counted."""
    from statsmodels.stats.multitest import multipletests

    corrected = np.array(values, dtype=float)
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected.tolist()


def _test(
    one: Sequence[float], other: Sequence[float], alternative: str = "two-sided", margin: float = 0
) -> Any:
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():  # of nearly equal values: p tells
        warnings.simplefilter("ignore", RuntimeWarning)
        return ttest_ind(
            np.add(one, margin), np.asarray(other), equal_var=False, alternative=alternative
        )
