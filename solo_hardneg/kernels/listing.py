"""Which ranks a list of candidates must hold, so that a band can be found in it."""

from __future__ import annotations

from dataclasses import dataclass

from solo_hardneg.kernels.problem import Problem, Ranks

_LISTED = 0.2  # the largest share of the candidates that goes into lists
_FEW = 2048  # so many of each query go in any case


@dataclass(frozen=True)
class Listing:
    """Which ranks the lists must hold, and what becomes of them.

    Attributes:
        first, past: the ranks to be listed; none, if they are equal.
        ranks: those among them that are kept, or dropped.
        others: whether the candidates that are not listed are kept.
    """

    first: int
    past: int
    ranks: Ranks
    others: bool


def listing_of(problem: Problem) -> Listing | None:
    """What to list; ``None`` where it would be too much."""
    width, ranks = len(problem.vectors), problem.ranks
    if ranks is not None and is_narrow(ranks, width):
        return Listing(ranks.first, ranks.past, ranks, others=False)
    hole = _hole(ranks, width)
    if hole is None:
        return None
    first = hole.first
    if problem.hardest:
        if hole.past < width:
            return None
        first = hole.first - problem.hardest
    return Listing(first, hole.past, hole, True) if hole.past - first <= _most(width) else None


def _hole(ranks: Ranks | None, width: int) -> Ranks | None:
    """The ranks that are not kept; ``None`` if they are not one range."""
    if ranks is None:
        return Ranks(width, width, inside=False)
    if not ranks.inside:
        return ranks
    if ranks.first == 0:
        return Ranks(ranks.past, width, inside=False)
    return Ranks(0, ranks.first, inside=False) if ranks.past == width else None


def is_narrow(ranks: Ranks | None, width: int) -> bool:
    """Whether so few of the candidates are kept that these are listed."""
    return ranks is not None and ranks.inside and ranks.past - ranks.first <= _most(width)


def _most(width: int) -> float:
    return max(_LISTED * width, min(_FEW, width // 2))
