"""Whether a paper's claims hold in one's own numbers: Welch's t-tests, corrected by Holm's method.

A claim is *confirmed* if the numbers speak for it, *not confirmed* if they speak against it, both
beyond chance (5 % over all claims of an experiment, each way), and else *undecided*: at this
scale, or with so few seeds, nobody can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solo_hardneg.reproduce.experiment import Claim
from solo_hardneg.significance import LEVEL, holm, welch, welch_interval

CONFIRMED, NOT_CONFIRMED, UNDECIDED = "confirmed", "not confirmed", "undecided"


@dataclass(frozen=True)
class Verdict:
    """What one's own numbers say of a claim.

    Attributes:
        claim: which.
        difference: of the first row's mean top-1 accuracy to the second's, in points; NaN where a
            row has no number.
        low, high: its 95 % interval by Welch's method; NaN with fewer than two seeds a row.
        seeds: of the two rows.
        p_for, p_against: of the tests whose rejection speaks for the claim, and against it.
        holm_for, holm_against: the same, corrected for the number of claims.
        verdict: ``confirmed``, ``not confirmed`` or ``undecided``.
        why: in words, why it is undecided; else empty.
    """

    claim: Claim
    difference: float
    low: float
    high: float
    seeds: tuple[int, int]
    p_for: float
    p_against: float
    holm_for: float = math.nan
    holm_against: float = math.nan
    verdict: str = UNDECIDED
    why: str = ""


def judge(claims: Sequence[Claim], values: Mapping[str, Sequence[float]]) -> list[Verdict]:
    """Tests all claims of an experiment.

    Args:
        claims: what to test.
        values: top-1 accuracies in percent over seeds, by row; rows without any may be missing.
    """
    tested = [
        _test(claim, values.get(claim.first, ()), values.get(claim.second, ())) for claim in claims
    ]
    speaking_for = holm([verdict.p_for for verdict in tested])
    against = holm([verdict.p_against for verdict in tested])
    return [
        _decide(replace(verdict, holm_for=f, holm_against=a))
        for verdict, f, a in zip(tested, speaking_for, against, strict=True)
    ]


def _test(claim: Claim, first: Sequence[float], second: Sequence[float]) -> Verdict:
    a, b = list(map(float, first)), list(map(float, second))
    seeds, nan = (len(a), len(b)), math.nan
    if not len(a) or not len(b):
        missing = claim.second if len(a) else claim.first
        return Verdict(claim, nan, nan, nan, seeds, nan, nan, why=f"{missing} has no result")
    difference = float(np.mean(a) - np.mean(b))
    if min(seeds) < 2:
        why = "a row has one seed, so its spread isn't known"
        return Verdict(claim, difference, nan, nan, seeds, nan, nan, why=why)
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        why = "the seeds of each row agree to the last digit, so there is no spread to test with"
        return Verdict(claim, difference, nan, nan, seeds, nan, nan, why=why)
    low, high = welch_interval(a, b)
    m = claim.margin
    if claim.kind == "equal":  # two one-sided tests
        p_for = max(welch(a, b, "greater", m), welch(a, b, "less", -m))
        p_against = min(1.0, 2 * min(welch(a, b, "less", m), welch(a, b, "greater", -m)))
    else:
        p_for, p_against = welch(a, b, "greater", m), welch(a, b, "less", m)
    return Verdict(claim, difference, low, high, seeds, p_for, p_against)


def _decide(verdict: Verdict) -> Verdict:
    if verdict.holm_for < LEVEL:
        return replace(verdict, verdict=CONFIRMED)
    if verdict.holm_against < LEVEL:
        return replace(verdict, verdict=NOT_CONFIRMED)
    chance = "chance may have made it: p ≥ 0.05 both ways"
    return replace(verdict, why=verdict.why or chance)


def evidence(verdict: Verdict) -> str:
    """The numbers behind a verdict, in words."""
    if math.isnan(verdict.difference):
        return verdict.why
    text = f"{verdict.difference:+.2f} points"
    if math.isnan(verdict.low):
        return f"{text}; {verdict.why}"
    interval = f"95 % interval {verdict.low:+.2f} to {verdict.high:+.2f}"
    sides = {CONFIRMED: f"{verdict.holm_for:.2g} for it"}
    sides[NOT_CONFIRMED] = f"{verdict.holm_against:.2g} against it"
    sides[UNDECIDED] = " and ".join([sides[CONFIRMED], sides[NOT_CONFIRMED]])
    return f"{text}, {interval}, p = {sides[verdict.verdict]} (Holm)"
