"""Bands of difficulty: which negatives lie between two ranks.

The M negatives of a query are sorted by (similarity, index) ascending; the band [lo, hi] holds the
ranks ⌊lo·M⌋ … ⌊hi·M⌋-1. So [0, 0.95] and [0.95, 1] share out all negatives, ties break by index,
and the number held is exact (Cai et al. 2020, sections 2 and 3: segments by difficulty).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.negatives.edge import edge, top
from solo_hardneg.negatives.numbers import is_number
from solo_hardneg.negatives.pool import Pool

# 0.29 · 100 is 28.999… in binary; nobody means a share that lies so close below a whole rank.
GUARD = 1e-6

Band = tuple[float, float]


class TooFewNegativesError(ConfigError):
    """There are not enough negatives for what a policy is to do with them."""


class EmptyBandError(TooFewNegativesError):
    """A band holds nothing for the number of negatives there are."""


def parse(value: Any, key: str) -> Band:
    """Reads ``[lo, hi]`` with 0 ≤ lo < hi ≤ 1, shares of the negatives from easiest to hardest.

    Raises:
        ConfigError: anything else; ``key`` is the name of the setting in the message.
    """
    allowed = "must be two numbers [lo, hi] with 0 <= lo < hi <= 1, from easiest (0) to hardest (1)"
    do = "The hardest 5 % are [0.95, 1.0], the easiest 95 % are [0.0, 0.95]."
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
    if numbers is None or len(numbers) != 2:
        raise bad_value(key, value, allowed, do)
    if not all(map(is_number, numbers)):
        raise bad_value(key, value, allowed, do)
    lo, hi = float(numbers[0]), float(numbers[1])
    if not (0.0 <= lo <= 1.0 and 0.0 <= hi <= 1.0):
        raise bad_value(key, value, f"lies outside [0, 1]; it {allowed}", do)
    if lo >= hi:
        raise bad_value(key, value, f"is upside down or empty; it {allowed}", do)
    return lo, hi


def ranks(band: Band, count: int) -> tuple[int, int]:
    """The first rank in the band and the first one past it, for ``count`` negatives."""
    lo, hi = band
    return math.floor(lo * count + GUARD), math.floor(hi * count + GUARD)


def held(band: Band, count: int, key: str) -> int:
    """How many of ``count`` negatives the band holds.

    Raises:
        EmptyBandError: none, although there are negatives.
    """
    first, past = ranks(band, count)
    if count > 0 and past == first:
        raise EmptyBandError(
            f"{key}={list(band)}: holds none of M={count} negatives, because both ends fall on "
            f"rank {first}. Widen the band to at least 1/M = {1 / count:.2g}, or have more "
            "negatives (a longer queue, a larger batch)."
        )
    return past - first


def mask(pool: Pool, band: Band, key: str) -> tuple[Tensor, int | None]:
    """Which candidates of each query lie in the band.

    Ranks are taken among the negatives that are present. A key of the reserve lies in the band if
    its similarity lies between the thresholds that the present negatives set: from that of the
    first rank inside, up to but without that of the first rank past it. So bands that share out
    the negatives share out the reserve too.

    Returns:
        (N, M) bool, and how many negatives it holds for every query where that is one number.

    Raises:
        EmptyBandError: all queries have the same number of negatives, and it holds none of so
            many. Where the numbers differ, with the data, a query may be left with none.
    """
    holds = None if pool.count is None else held(band, pool.count, key)
    values = _of_present(pool)
    first, below = _at_or_above(values, pool, band[0])
    past, above = _at_or_above(values, pool, band[1])
    inside = pool.present if first is None else pool.present & first
    if past is not None:
        inside = inside & ~past
    if pool.reserve is not None:
        similarity = pool.similarity.detach()
        inside = inside | (pool.reserve & (similarity >= below) & (similarity < above))
    return inside, holds


def hardest(pool: Pool, number: int) -> Tensor:
    """(N, number) int, the columns of the ``number`` hardest negatives, hardest first.

    A row with fewer negatives has others at its end. Ties break as in bands.
    """
    return top(_of_present(pool), min(number, pool.similarity.shape[1]))


def _of_present(pool: Pool) -> Tensor:
    """(N, M) similarities; those of the absent come before all others."""
    return pool.similarity.detach().masked_fill(~pool.present, -torch.inf)


def _at_or_above(values: Tensor, pool: Pool, share: float) -> tuple[Tensor | None, Tensor | float]:
    """Which candidates come at or after the rank ⌊share·M⌋ of the present ones, and its value.

    Returns:
        (N, M) bool, ``None`` for all; and (N, 1) or a number, the similarity at that rank: -inf
        at the first one, +inf behind the last.
    """
    if share == 0.0 or values.shape[1] == 0:
        return None, -torch.inf
    if pool.count is not None:
        rank = math.floor(share * pool.count + GUARD)
        if rank == 0:
            return None, -torch.inf
        if rank == pool.count:
            return torch.zeros_like(pool.present), torch.inf
        found = edge(values, pool.count - rank)
        return found.at_or_above(values), found.value
    counts = pool.counts
    ranks = (share * counts.double() + GUARD).floor().long()
    none, some = (ranks == counts)[:, None], (ranks == 0)[:, None]
    most = values.shape[1] - math.floor(share * values.shape[1] + GUARD)
    found = edge(values, (counts - ranks).clamp(min=1), max(most, 1))
    after = some | (found.at_or_above(values) & ~none)
    return after, found.value.masked_fill(some, -torch.inf).masked_fill(none, torch.inf)
