"""Chooses which ranks go into candidate lists, so that a band can be found in them."""

from __future__ import annotations

from dataclasses import dataclass

from solo_hardneg.kernels.interface import KernelInput, Ranks

_MAX_SHARE = 0.2  # of the candidates, that lists may hold
_ALWAYS_LISTED = 2048  # candidates per query that lists may hold in any case


@dataclass(frozen=True)
class ListedRanks:
    """Ranks that lists must hold, and how they decide what is kept.

    Attributes:
        first, past: Ranks [first, past) to be listed; none if they are equal.
        ranks: Ranks among these that are kept, or dropped.
        others: Whether candidates that are not listed are kept.
    """

    first: int
    past: int
    ranks: Ranks
    others: bool


def choose_listed_ranks(inputs: KernelInput) -> ListedRanks | None:
    """Returns the ranks to list; ``None`` if they are too many."""
    width, ranks = len(inputs.vectors), inputs.ranks
    if ranks is not None and is_narrow(ranks, width):
        return ListedRanks(ranks.first, ranks.past, ranks, others=False)
    dropped = _dropped_range(ranks, width)
    if dropped is None:
        return None
    first = dropped.first
    if inputs.hardest:
        if dropped.past < width:
            return None
        first = dropped.first - inputs.hardest
    if dropped.past - first > _max_listed(width):
        return None
    return ListedRanks(first, dropped.past, dropped, others=True)


def _dropped_range(ranks: Ranks | None, width: int) -> Ranks | None:
    """Returns the ranks that are dropped; ``None`` if they are not one range."""
    if ranks is None:
        return Ranks(width, width, inside=False)
    if not ranks.inside:
        return ranks
    if ranks.first == 0:
        return Ranks(ranks.past, width, inside=False)
    return Ranks(0, ranks.first, inside=False) if ranks.past == width else None


def is_narrow(ranks: Ranks | None, width: int) -> bool:
    """Whether all kept candidates fit into lists."""
    return ranks is not None and ranks.inside and ranks.past - ranks.first <= _max_listed(width)


def _max_listed(width: int) -> float:
    return max(_MAX_SHARE * width, min(_ALWAYS_LISTED, width // 2))
