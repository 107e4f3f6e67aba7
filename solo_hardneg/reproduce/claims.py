"""Tests of a paper's claims on reproduced accuracies: Welch's t-tests with Holm's correction.

A claim is *confirmed* or *not confirmed* if the accuracies speak for or against it significantly
(5 % over all claims of an experiment, each way); otherwise it is *undecided*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from solo_hardneg.reproduce.experiment import Claim
from solo_hardneg.study.significance import LEVEL, can_be_tested, holm, welch, welch_interval

CONFIRMED, NOT_CONFIRMED, UNDECIDED = "confirmed", "not confirmed", "undecided"
COLUMNS = (
    *("claim", "kind", "first", "second", "margin", "difference", "low", "high"),
    *("seeds_first", "seeds_second", "p_for", "p_against", "holm_for", "holm_against"),
    *("verdict", "why", "source"),
)


def judge(claims: Sequence[Claim], accuracies: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Tests the claims of an experiment.

    Args:
        claims: Claims to test.
        accuracies: Top-1 accuracies in percent, one per seed, by row.

    Returns:
        A line per claim with ``COLUMNS``: ``difference`` of the mean accuracies in points, its 95 %
        interval from ``low`` to ``high``, p-values for and against the claim, the same after Holm's
        correction, ``verdict``, and ``why`` the claim is undecided. NaN where a row has no result
        or can't be tested.
    """
    tested = [_test(claim, *(accuracies.get(row, ()) for row in claim.rows)) for claim in claims]
    table = pd.DataFrame(tested, columns=COLUMNS)
    table["holm_for"] = holm(table["p_for"].tolist())
    table["holm_against"] = holm(table["p_against"].tolist())
    decided = [table["holm_for"] < LEVEL, table["holm_against"] < LEVEL]
    table["verdict"] = np.select(decided, [CONFIRMED, NOT_CONFIRMED], UNDECIDED)
    unexplained = (table["verdict"] == UNDECIDED) & (table["why"] == "")
    table.loc[unexplained, "why"] = f"not significant: p ≥ {LEVEL} both ways"
    return table


def _test(claim: Claim, first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    margin, why = claim.margin, ""
    difference = float(np.mean(first) - np.mean(second)) if first and second else math.nan
    p_for, p_against = math.nan, math.nan
    if not first or not second:
        why = f"{claim.rows[bool(first)]} has no result"
    elif min(len(first), len(second)) < 2:
        why = "a row has one seed, so its spread is unknown"
    elif not can_be_tested(first, second):
        why = "neither row has any spread over seeds"
    elif claim.kind == "equal":  # two one-sided tests
        p_for = max(welch(first, second, "greater", margin), welch(first, second, "less", -margin))
        below = welch(first, second, "less", margin)
        above = welch(first, second, "greater", -margin)
        p_against = min(1.0, 2 * min(below, above))
    else:
        p_for = welch(first, second, "greater", margin)
        p_against = welch(first, second, "less", margin)
    low, high = welch_interval(first, second)
    return {
        **{"claim": claim.text, "kind": claim.kind, "margin": margin, "source": claim.source},
        **{"first": claim.rows[0], "second": claim.rows[1], "difference": difference},
        **{"low": low, "high": high, "seeds_first": len(first), "seeds_second": len(second)},
        **{"p_for": p_for, "p_against": p_against, "why": why},
    }


def describe_evidence(verdict: Mapping[str, Any] | pd.Series) -> str:
    """Describes the numbers behind a verdict, a line of :func:`judge`'s table."""
    if math.isnan(verdict["difference"]):
        return str(verdict["why"])
    text = f"{verdict['difference']:+.2f} points"
    if math.isnan(verdict["low"]):
        return f"{text}; {verdict['why']}"
    sides = {CONFIRMED: ["for"], NOT_CONFIRMED: ["against"], UNDECIDED: ["for", "against"]}
    values = [f"{verdict[f'holm_{side}']:.2g} {side} it" for side in sides[verdict["verdict"]]]
    interval = f"95 % interval {verdict['low']:+.2f} to {verdict['high']:+.2f}"
    return f"{text}, {interval}, p = {' and '.join(values)} (Holm)"
