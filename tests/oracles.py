"""The papers' definitions in plain loops: slow, and short enough to be checked by reading."""

from __future__ import annotations

import math
from fractions import Fraction


def share(number: float) -> Fraction:
    """The number that a person meant: 0.29 is 29/100, not the binary float next to it."""
    return Fraction(str(number))


def ranks(lo: float, hi: float, count: int) -> range:
    """The ranks ⌊lo·M⌋ … ⌊hi·M⌋-1."""
    return range(math.floor(share(lo) * count), math.floor(share(hi) * count))


def band(similarities: list[float], lo: float, hi: float, present: list[int] | None = None) -> set:
    """The columns in the band, ranked by (similarity, index) among the present ones."""
    columns = list(range(len(similarities))) if present is None else present
    order = sorted(columns, key=lambda j: (similarities[j], j))
    return {order[r] for r in ranks(lo, hi, len(columns))}


def info_nce(positive: float, negatives: list[float], temperature: float) -> float:
    """-log( e^{s⁺/τ} / (e^{s⁺/τ} + Σ e^{s/τ}) ), Cai et al. 2020, section 2."""
    top = math.exp(positive / temperature)
    return -math.log(top / (top + sum(math.exp(s / temperature) for s in negatives)))


def dot(a: list[float], b: list[float]) -> float:
    """Σ aᵢ·bᵢ."""
    return sum(x * y for x, y in zip(a, b, strict=True))
