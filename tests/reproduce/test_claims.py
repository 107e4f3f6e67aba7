"""The tests of the papers' claims: against Welch's formulas in plain numpy, and by their logic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from solo_hardneg.reproduce.claims import CONFIRMED, NOT_CONFIRMED, UNDECIDED, evidence, judge
from solo_hardneg.reproduce.experiment import Claim


@pytest.fixture(autouse=True)
def _leave_the_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at every call, which takes a tenth of a second."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def claim(kind: str = "greater", margin: float = 0.0, first: str = "a", second: str = "b") -> Claim:
    return Claim("A claim.", kind, first, second, margin, "section 1")


def welch(a: list[float], b: list[float], shift: float = 0.0) -> tuple[float, float]:
    """P-values of a + shift > b and of a + shift < b (Welch 1947)."""
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
def test_each_kind_of_claim_is_welchs_test_with_its_margin(
    kind: str, margin: float, values: dict[str, list[float]], verdict: str
) -> None:
    found = judge([claim(kind, margin)], values)[0]
    a, b = values["a"], values["b"]
    above, below = welch(a, b, margin)
    p_for, p_against = above, below
    if kind == "equal":  # two one-sided tests; either of the opposite ones speaks against it
        above_the_margin, below_the_margin = welch(a, b, -margin)
        p_for, p_against = max(above, below_the_margin), 2 * min(below, above_the_margin)
    assert found.p_for == found.holm_for == pytest.approx(p_for)  # one claim: nothing to correct
    assert found.p_against == pytest.approx(min(1, p_against))
    assert found.verdict == verdict


def test_the_interval_and_the_evidence() -> None:
    found = judge([claim()], {"a": A, "b": B})[0]
    interval = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert evidence(found).startswith("+5.43 points, 95 % interval +4.7")
    assert "for it" in evidence(found)


def test_holms_correction_counts_the_claims_that_can_be_tested() -> None:
    rows = {"a": [50.0, 51.0, 52.0], "b": [52.5, 53.5, 54.5], "c": [53.0, 54.0, 55.0]}
    pairs = [("b", "a"), ("c", "a"), ("c", "nosuch")]
    close, clear, missing = judge([claim(first=x, second=y) for x, y in pairs], rows)
    assert clear.p_for < close.p_for < 0.05
    assert clear.holm_for == pytest.approx(2 * clear.p_for)
    assert close.holm_for == pytest.approx(max(close.p_for, 2 * clear.p_for))
    assert math.isnan(missing.holm_for)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"a": A}, "b has no result"),
        ({"b": B}, "a has no result"),
        ({"a": A, "b": [62.0]}, "one seed"),
        ({"a": [50.0, 50.0], "b": [49.0, 49.0]}, "no spread"),
    ],
)
def test_what_cant_be_tested_is_undecided_and_says_why(values: dict, why: str) -> None:
    verdict = judge([claim()], values)[0]
    assert verdict.verdict == UNDECIDED
    assert why in verdict.why
    assert why in evidence(verdict)


accuracies = st.lists(
    st.floats(0, 100, width=32).map(lambda x: round(x, 3)), min_size=2, max_size=5
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=accuracies, b=accuracies, margin=st.floats(0.1, 5))
def test_verdicts_are_sound(a: list[float], b: list[float], margin: float) -> None:
    values = {"a": a, "b": b}
    there = judge([claim()], values)[0]
    back = judge([claim(first="b", second="a")], values)[0]
    mirror = {CONFIRMED: NOT_CONFIRMED, NOT_CONFIRMED: CONFIRMED, UNDECIDED: UNDECIDED}
    assert back.verdict == mirror[there.verdict]
    if there.verdict == CONFIRMED:  # what is better is not worse
        assert judge([claim("at_least", margin)], values)[0].verdict == CONFIRMED
        assert there.difference > 0
    equal = [judge([claim("equal", m)], values)[0] for m in (margin, 2 * margin)]
    if equal[0].verdict == CONFIRMED:
        assert equal[1].verdict == CONFIRMED
    assert equal[0].verdict == judge([claim("equal", margin, "b", "a")], values)[0].verdict


def test_of_equal_rows_hardly_any_claim_is_confirmed() -> None:
    rng = np.random.default_rng(1)
    claims = [claim(first=x, second=y) for x, y in ("ab", "bc", "cd", "da")]
    wrong = 0
    for _ in range(200):
        rows = {name: list(rng.normal(50, 1, 3)) for name in "abcd"}
        wrong += any(v.verdict == CONFIRMED for v in judge(claims, rows))
    assert wrong <= 16  # 5 % of 200 is 10; beyond 16 is a chance of 2 %
    lifted = {name: list(rng.normal(50 + 10 * i, 1, 3)) for i, name in enumerate("dcba")}
    assert all(v.verdict == CONFIRMED for v in judge(claims[:3], lifted))
