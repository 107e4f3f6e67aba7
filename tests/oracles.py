"""The papers' definitions in plain loops: slow, and short enough to be checked by reading."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any, NamedTuple


def share(number: float) -> Fraction:
    """The number that a person meant: 0.29 is 29/100, not the binary float next to it."""
    return Fraction(str(number))


def ranks(lo: float, hi: float, count: int) -> range:
    """The ranks ⌊lo·M⌋ … ⌊hi·M⌋-1."""
    return range(math.floor(share(lo) * count), math.floor(share(hi) * count))


def band(
    similarities: Sequence[float], lo: float, hi: float, present: list[int] | None = None
) -> set[int]:
    """The columns in the band, ranked by (similarity, index) among the present ones."""
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


def at_the_floor(
    positives: list[float],
    negatives: list[float],
    temperature: float,
    beta: float = 0.0,
    tau_plus: float = 0.0,
) -> bool:
    """Whether the debiased sum is at its floor."""
    if not negatives or tau_plus == 0:
        return False
    g, floor = debiased_sum(positives, negatives, temperature, beta, tau_plus)
    return g <= floor


def mixed(share_of_one: float, one: Sequence[float], other: Sequence[float]) -> list[float]:
    """(α·one + (1-α)·other) / ‖·‖."""
    vector = [share_of_one * x + (1 - share_of_one) * y for x, y in zip(one, other, strict=True)]
    length = math.sqrt(dot(vector, vector))
    return [x / length for x in vector]


class Draws(NamedTuple):
    """What was drawn for one query: (a, b, α) for each pair, (a, γ) for each of the second kind.

    a and b are places among its hardest, 0 the very hardest.
    """

    pairs: list[tuple[int, int, float]]
    partners: list[tuple[int, float]]


class Left(NamedTuple):
    """What the verbs leave to one query."""

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
) -> Left:
    """The verbs, from top to bottom, for one query."""
    similarities = [dot(query, c) for c in candidates]
    there = sorted(present)
    beta = tau_plus = 0.0
    for verb, arguments in config.items():
        if verb in ("keep", "drop"):
            named = set(range(len(similarities)))
            if "band" in arguments:
                named &= band(similarities, *arguments["band"], there)
            if "label" in arguments:
                named = {j for j in named if (j in same_class) == (arguments["label"] == "same")}
            there = [j for j in there if (j in named) == (verb == "keep")]
        elif verb == "mix":
            order = sorted(there, key=lambda j: (similarities[j], j), reverse=True)
            hardest = order[: arguments["hardest"]]
            made = [
                mixed(alpha, candidates[hardest[a]], candidates[hardest[b]])
                for a, b, alpha in (draws.pairs if len(hardest) > 1 else [])
            ]
            made += [
                mixed(gamma, query, candidates[hardest[a]])
                for a, gamma in (draws.partners if hardest else [])
            ]
            there += range(len(similarities), len(similarities) + len(made))
            similarities += [dot(query, vector) for vector in made]
        elif verb == "reweight":
            beta = arguments["beta"]
        elif verb == "debias":
            tau_plus = arguments["tau_plus"]
    return Left([similarities[j] for j in there], beta, tau_plus)
