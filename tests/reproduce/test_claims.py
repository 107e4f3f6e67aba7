"""Tests of claims: against Welch's formulas in plain NumPy, and by their logic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from solo_hardneg.reproduce.claims import (
    CONFIRMED,
    NOT_CONFIRMED,
    UNDECIDED,
    describe_evidence,
    judge,
)
from solo_hardneg.reproduce.experiment import Claim


def make_claim(
    kind: str = "greater", margin: float = 0.0, first: str = "a", second: str = "b"
) -> Claim:
    rows = {kind: [first, second]}
    return Claim(text="A claim.", margin=margin, source="section 1", **rows)


def judge_one(claim: Claim, accuracies: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    [verdict] = judge([claim], accuracies).to_dict("records")
    return verdict


def welch(a: list[float], b: list[float], shift: float = 0.0) -> tuple[float, float]:
    """Returns the p-values of a + shift > b and of a + shift < b (Welch 1947)."""
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    t = (np.mean(a) + shift - np.mean(b)) / math.sqrt(va + vb)
    return float(stats.t.sf(t, freedom)), float(stats.t.cdf(t, freedom))


A, B = [67.5, 67.9, 67.2], [62.0, 62.4, 61.9]
NEAR = {"a": [66.6, 66.7, 66.65], "b": [66.8, 66.9, 66.85]}  # 0.2 points less


@pytest.mark.parametrize(
    ("kind", "margin", "values", "verdict"),
    [
        ("greater", 0.0, {"a": A, "b": B}, CONFIRMED),
        ("greater", 0.0, {"a": B, "b": A}, NOT_CONFIRMED),
        ("greater", 0.0, NEAR, NOT_CONFIRMED),
        ("greater", 0.0, {"a": [50.0, 52.0], "b": [50.5, 51.0]}, UNDECIDED),
        ("at_least", 0.5, NEAR, CONFIRMED),
        ("at_least", 0.5, {"a": B, "b": A}, NOT_CONFIRMED),
        ("equal", 1.0, NEAR, CONFIRMED),
        ("equal", 1.0, {"a": A, "b": B}, NOT_CONFIRMED),
        ("equal", 9.0, {"a": A, "b": B}, CONFIRMED),
    ],
)
def test_each_kind_of_claim_is_a_welch_test_with_a_margin(
    kind: str, margin: float, values: dict[str, list[float]], verdict: str
) -> None:
    found = judge_one(make_claim(kind, margin), values)
    a, b = values["a"], values["b"]
    above, below = welch(a, b, margin)
    p_for, p_against = above, below
    if kind == "equal":  # two one-sided tests; either opposite one speaks against it
        above_the_margin, below_the_margin = welch(a, b, -margin)
        p_for, p_against = max(above, below_the_margin), 2 * min(below, above_the_margin)
    assert found["p_for"] == found["holm_for"] == pytest.approx(p_for)  # a single claim
    assert found["p_against"] == pytest.approx(min(1, p_against))
    assert found["verdict"] == verdict


def test_interval_and_evidence() -> None:
    found = judge_one(make_claim(), {"a": A, "b": B})
    interval = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    text = describe_evidence(found)
    assert text.startswith("+5.43 points, 95 % interval +4.7")
    assert "for it" in text


def test_holms_correction_counts_testable_claims() -> None:
    rows = {"a": [50.0, 51.0, 52.0], "b": [52.5, 53.5, 54.5], "c": [53.0, 54.0, 55.0]}
    pairs = [("b", "a"), ("c", "a"), ("c", "nosuch")]
    table = judge([make_claim(first=x, second=y) for x, y in pairs], rows)
    close, clear, missing = table["p_for"]
    assert clear < close < 0.05
    assert math.isnan(missing)
    corrected = [max(close, 2 * clear), 2 * clear, math.nan]
    assert table["holm_for"].tolist() == pytest.approx(corrected, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"a": A}, "b has no result"),
        ({"b": B}, "a has no result"),
        ({"a": A, "b": [62.0]}, "one seed"),
        ({"a": [50.0, 50.0], "b": [49.0, 49.0]}, "spread over seeds"),
    ],
)
def test_untestable_claims_are_undecided_and_say_why(values: dict, why: str) -> None:
    verdict = judge_one(make_claim(), values)
    assert verdict["verdict"] == UNDECIDED
    assert why in verdict["why"]
    assert why in describe_evidence(verdict)


accuracies = st.lists(
    st.floats(0, 100, width=32).map(lambda x: round(x, 3)), min_size=2, max_size=5
)


@given(a=accuracies, b=accuracies, margin=st.floats(0.1, 5))
def test_verdicts_are_sound(a: list[float], b: list[float], margin: float) -> None:
    values = {"a": a, "b": b}
    claim = judge_one(make_claim(), values)
    swapped = judge_one(make_claim(first="b", second="a"), values)
    mirror = {CONFIRMED: NOT_CONFIRMED, NOT_CONFIRMED: CONFIRMED, UNDECIDED: UNDECIDED}
    assert swapped["verdict"] == mirror[claim["verdict"]]
    if claim["verdict"] == CONFIRMED:  # better is not worse
        assert judge_one(make_claim("at_least", margin), values)["verdict"] == CONFIRMED
        assert claim["difference"] > 0
    near, wide, swapped = (
        judge_one(each, values)["verdict"]
        for each in (
            make_claim("equal", margin),
            make_claim("equal", 2 * margin),
            make_claim("equal", margin, "b", "a"),
        )
    )
    assert near == swapped
    assert wide == CONFIRMED or near != CONFIRMED


def test_claims_about_equal_rows_are_rarely_confirmed() -> None:
    rng = np.random.default_rng(1)
    claims = [make_claim(first=x, second=y) for x, y in ("ab", "bc", "cd", "da")]
    wrong = 0
    for _ in range(200):
        rows = {name: list(rng.normal(50, 1, 3)) for name in "abcd"}
        wrong += judge(claims, rows)["verdict"].eq(CONFIRMED).any()
    assert wrong <= 16  # 5 % of 200 is 10; the chance of more than 16 is 2 %
    lifted = {name: list(rng.normal(50 + 10 * i, 1, 3)) for i, name in enumerate("dcba")}
    assert judge(claims[:3], lifted)["verdict"].eq(CONFIRMED).all()
