"""The tests of the papers' claims: against plain loops, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from solo_hardneg.reproduce.claims import (
    CONFIRMED,
    NOT_CONFIRMED,
    UNDECIDED,
    evidence,
    judge,
)
from solo_hardneg.reproduce.experiment import Claim


@pytest.fixture(autouse=True)
def _leave_the_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at every call, which takes a tenth of a second."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def claim(kind: str = "greater", margin: float = 0.0, first: str = "a", second: str = "b") -> Claim:
    return Claim("A claim.", kind, first, second, margin, "section 1")


def welch(a: list[float], b: list[float], shift: float = 0.0) -> tuple[float, float]:
    """t and the degrees of freedom of Welch's test (Welch 1947), in plain loops."""

    def mean(x: list[float]) -> float:
        return sum(x) / len(x)

    def variance(x: list[float]) -> float:
        return sum((v - mean(x)) ** 2 for v in x) / (len(x) - 1)

    va, vb = variance(a) / len(a), variance(b) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return (mean(a) + shift - mean(b)) / math.sqrt(va + vb), freedom


A, B = [67.5, 67.9, 67.2], [62.0, 62.4, 61.9]


def test_greater_is_welchs_one_sided_test() -> None:
    verdict = judge([claim()], {"a": A, "b": B})[0]
    t, freedom = welch(A, B)
    assert verdict.p_for == pytest.approx(stats.t.sf(t, freedom))
    assert verdict.p_against == pytest.approx(stats.t.cdf(t, freedom))
    assert verdict.holm_for == verdict.p_for  # one claim: nothing to correct
    half = stats.t.ppf(0.975, freedom) * (np.mean(A) - np.mean(B)) / t
    assert verdict.low == pytest.approx(verdict.difference - half)
    assert verdict.high == pytest.approx(verdict.difference + half)
    assert verdict.verdict == CONFIRMED
    assert evidence(verdict).startswith("+5.43 points, 95 % interval +4.7")


def test_at_least_is_the_same_test_moved_by_the_margin() -> None:
    verdict = judge([claim("at_least", 0.5)], {"a": A, "b": B})[0]
    t, freedom = welch(A, B, 0.5)
    assert verdict.p_for == pytest.approx(stats.t.sf(t, freedom))
    slightly_worse = {"a": [66.6, 66.7, 66.65], "b": [66.8, 66.9, 66.85]}
    assert judge([claim("at_least", 0.5)], slightly_worse)[0].verdict == CONFIRMED
    assert judge([claim("greater")], slightly_worse)[0].verdict == NOT_CONFIRMED


def test_equal_is_two_one_sided_tests() -> None:
    near, far = {"a": [50.0, 50.1, 50.2], "b": [50.1, 50.2, 50.3]}, {"a": A, "b": B}
    verdict = judge([claim("equal", 1.0)], near)[0]
    up, freedom = welch(near["a"], near["b"], 1.0)
    down, _ = welch(near["a"], near["b"], -1.0)
    assert verdict.p_for == pytest.approx(max(stats.t.sf(up, freedom), stats.t.cdf(down, freedom)))
    assert verdict.verdict == CONFIRMED
    assert judge([claim("equal", 1.0)], far)[0].verdict == NOT_CONFIRMED
    assert judge([claim("equal", 9.0)], far)[0].verdict == CONFIRMED


def test_the_wrong_way_round_is_not_confirmed_and_noise_is_undecided() -> None:
    assert judge([claim()], {"a": B, "b": A})[0].verdict == NOT_CONFIRMED
    noise = judge([claim()], {"a": [50.0, 52.0], "b": [50.5, 51.0]})[0]
    assert noise.verdict == UNDECIDED
    assert "chance" in noise.why


def test_holms_correction_by_hand() -> None:
    rng = np.random.default_rng(0)
    rows = {
        name: list(50 + lift + rng.normal(0, 1, 3))
        for name, lift in zip("abcd", (0, 1, 2, 3), strict=True)
    }
    claims = [
        claim(first="b", second="a"),
        claim(first="c", second="a"),
        claim(first="d", second="a"),
    ]
    verdicts = judge([*claims, claim(first="d", second="nosuch")], rows)
    plain = [v.p_for for v in verdicts[:3]]
    order, highest, expected = sorted(range(3), key=plain.__getitem__), 0.0, [0.0] * 3
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (3 - rank) * plain[i]))
        expected[i] = highest
    assert [v.holm_for for v in verdicts[:3]] == pytest.approx(expected)
    assert math.isnan(verdicts[3].holm_for)  # what can't be tested isn't counted


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
