"""The papers' definitions as plain loops, short enough to check by reading."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any, NamedTuple


def exact(number: float) -> Fraction:
    """The decimal number that a float stands for: 0.29 is 29/100."""
    return Fraction(str(number))


def ranks(lo: float, hi: float, count: int) -> range:
    """The ranks ⌊lo·M⌋ … ⌊hi·M⌋-1."""
    return range(math.floor(exact(lo) * count), math.floor(exact(hi) * count))


def band(
    similarities: Sequence[float], lo: float, hi: float, present: list[int] | None = None
) -> set[int]:
    """The columns in a band, ranked by (similarity, index) among those present."""
    columns = list(range(len(similarities))) if present is None else present
    order = sorted(columns, key=lambda j: (similarities[j], j))
    return {order[r] for r in ranks(lo, hi, len(columns))}


def info_nce(positive: float, negatives: list[float], temperature: float) -> float:
    """-log( e^{s⁺/τ} / (e^{s⁺/τ} + Σ e^{s/τ}) ), Cai et al. 2020, section 2."""
    top = math.exp(positive / temperature)
    return -math.log(top / (top + sum(math.exp(s / temperature) for s in negatives)))


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Σ aᵢ·bᵢ."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def debiased_sum(
    positives: list[float],
    negatives: list[float],
    temperature: float,
    beta: float = 0.0,
    tau_plus: float = 0.0,
) -> tuple[float, float]:
    """G̃ and its floor, Robinson et al. 2021, eq. 4 with Chuang et al. 2020, eq. 8."""
    count = len(negatives)
    weights = [math.exp(beta * s / temperature) for s in negatives]
    mean_weight = sum(weights) / count
    total = 0.0
    for s, weight in zip(negatives, weights, strict=True):
        total += weight / mean_weight * math.exp(s / temperature)
    mean_positive = sum(math.exp(s / temperature) for s in positives) / len(positives)
    g = (total - tau_plus * count * mean_positive) / (1 - tau_plus)
    return g, count * math.exp(-1 / temperature)


def loss(
    positives: list[float],
    negatives: list[float],
    temperature: float,
    beta: float = 0.0,
    tau_plus: float = 0.0,
) -> float:
    """-log( Σe^{s⁺/τ} / (Σe^{s⁺/τ} + G) ); 0 without negatives."""
    if not negatives:
        return 0.0
    g = max(debiased_sum(positives, negatives, temperature, beta, tau_plus))
    return math.log1p(g / sum(math.exp(s / temperature) for s in positives))


def is_floored(
    positives: list[float],
    negatives: list[float],
    temperature: float,
    beta: float = 0.0,
    tau_plus: float = 0.0,
) -> bool:
    """Whether the floor replaces the debiased sum."""
    if not negatives or tau_plus == 0:
        return False
    g, floor = debiased_sum(positives, negatives, temperature, beta, tau_plus)
    return g <= floor


def mixture(share: float, one: Sequence[float], other: Sequence[float]) -> list[float]:
    """(α·one + (1-α)·other) / ‖·‖."""
    vector = [share * x + (1 - share) * y for x, y in zip(one, other, strict=True)]
    length = math.sqrt(dot(vector, vector))
    return [x / length for x in vector]


class Draws(NamedTuple):
    """Random draws of ``mix`` for one query.

    Attributes:
        pairs: (a, b, α) for each pair; a and b are places among the hardest, 0 is the hardest.
        partners: (a, γ) for each negative mixed with the query.
    """

    pairs: list[tuple[int, int, float]]
    partners: list[tuple[int, float]]


class Left(NamedTuple):
    """Similarities of the negatives left to one query, β and τ⁺."""

    negatives: list[float]
    beta: float
    tau_plus: float


def leave(
    config: dict[str, Any],
    query: list[float],
    candidates: list[list[float]],
    present: Collection[int],
    draws: Draws | None = None,
    same_class: Collection[int] = (),
    positive: float = 0.0,
) -> Left:
    """Applies the verbs from top to bottom to one query, ``positive`` similar to its positive."""
    similarities = [dot(query, c) for c in candidates]
    left = sorted(present)
    beta = tau_plus = 0.0
    for verb, arguments in config.items():
        if verb in ("keep", "drop"):
            named = set(range(len(similarities)))
            if "band" in arguments:
                named &= band(similarities, *arguments["band"], left)
            if "label" in arguments:
                named = {j for j in named if (j in same_class) == (arguments["label"] == "same")}
            for part, base in (("similarity", 0.0), ("margin", positive)):
                if part in arguments:
                    lo, hi = arguments[part]
                    hi += hi == {"similarity": 1, "margin": 2}[part]  # the end itself is included
                    named = {j for j in named if lo <= similarities[j] - base < hi}
            left = [j for j in left if (j in named) == (verb == "keep")]
        elif verb == "mix":
            order = sorted(left, key=lambda j: (similarities[j], j), reverse=True)
            hardest = order[: arguments["hardest"]]
            made = [
                mixture(alpha, candidates[hardest[a]], candidates[hardest[b]])
                for a, b, alpha in (draws.pairs if len(hardest) > 1 else [])
            ]
            made += [
                mixture(gamma, query, candidates[hardest[a]])
                for a, gamma in (draws.partners if hardest else [])
            ]
            left += range(len(similarities), len(similarities) + len(made))
            similarities += [dot(query, vector) for vector in made]
        elif verb == "reweight":
            beta = arguments["beta"]
        elif verb == "debias":
            tau_plus = arguments["tau_plus"]
    return Left([similarities[j] for j in left], beta, tau_plus)
