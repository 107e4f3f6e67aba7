"""Bands of difficulty: the negatives between two ranks.

The M negatives of a query are sorted by (similarity, index), ascending; the band [lo, hi] holds the
ranks ⌊lo·M⌋ … ⌊hi·M⌋-1 (Cai et al. 2020, sections 2 and 3). So [0, 0.95] and [0.95, 1] partition
the negatives, ties break by index, and the number in a band is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from solo_hardneg import devices
from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.validate import is_number

# 0.29 · 100 is 28.999… in binary, and means rank 29.
GUARD = 1e-6

Band = tuple[float, float]
Intervals = list[tuple[int, int]]  # of ranks, ends excluded, ascending


class TooFewNegativesError(ConfigError):
    """There are fewer negatives than a policy needs."""


class EmptyBandError(TooFewNegativesError):
    """A band holds none of the negatives."""


# ---------------------------------------------------------------------- bands


def parse_band(value: Any, key: str) -> Band:
    """Reads ``[lo, hi]`` with 0 ≤ lo < hi ≤ 1, shares of the negatives from easiest to hardest.

    Args:
        value: The band in the config.
        key: Its key, for messages.

    Raises:
        ConfigError: It is anything else.
    """
    allowed = "must be two numbers [lo, hi] with 0 <= lo < hi <= 1, from easiest (0) to hardest (1)"
    do = "The hardest 5 % are [0.95, 1.0], the easiest 95 % are [0.0, 0.95]."
    return parse_interval(value, key, 0.0, 1.0, allowed, do)


def parse_interval(
    value: Any, key: str, least: float, most: float, allowed: str, do: str
) -> tuple[float, float]:
    """Reads ``[lo, hi]`` with least ≤ lo < hi ≤ most.

    Args:
        value: The interval in the config.
        key: Its key, for messages.
        least, most: Ends of the range.
        allowed: What is allowed, for messages.
        do: Advice, for messages.

    Raises:
        ConfigError: It is anything else.
    """
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 2 or not all(map(is_number, numbers)):
        raise bad_value(key, value, allowed, do)
    lo, hi = float(numbers[0]), float(numbers[1])
    if not (least <= lo <= most and least <= hi <= most):
        raise bad_value(key, value, f"lies outside [{least:g}, {most:g}]; it {allowed}", do)
    if lo >= hi:
        raise bad_value(key, value, f"is upside down or empty; it {allowed}", do)
    return lo, hi


def band_ranks(band: Band, count: int) -> tuple[int, int]:
    """Returns the first rank in the band and the first one past it, of ``count`` negatives."""
    lo, hi = band
    return math.floor(lo * count + GUARD), math.floor(hi * count + GUARD)


def band_count(band: Band, count: int, key: str) -> int:
    """Returns how many of ``count`` negatives the band holds.

    Raises:
        EmptyBandError: It holds none of them.
    """
    first, past = band_ranks(band, count)
    if count > 0 and past == first:
        raise EmptyBandError(
            f"{key}={list(band)}: holds none of M={count} negatives, because both ends fall on "
            f"rank {first}. Widen the band to at least 1/M = {1 / count:.2g}, or have more "
            "negatives (a longer queue, a larger batch)."
        )
    return past - first


def compose_ranks(outer: Intervals, inner: Intervals) -> Intervals:
    """Returns the ranks left if ``inner`` selects among the negatives that ``outer`` left."""
    return [part for start, end in inner for part in _subintervals(outer, start, end)]


def _subintervals(intervals: Intervals, start: int, end: int) -> Intervals:
    """Elements ``start`` … ``end``-1 of the union of intervals."""
    found: Intervals = []
    passed = 0
    for first, past in intervals:
        low, high = max(start - passed, 0), min(end - passed, past - first)
        if low < high:
            found.append((first + low, first + high))
        passed += past - first
    return found


def band_mask(pool: Pool, band: Band, key: str) -> tuple[Tensor, int | None]:
    """Finds the candidates of each query in a band, ranked among the negatives present.

    A key of the reserve is in the band if its similarity is at least that of the band's first rank
    and less than that of the first rank past it. So bands that partition the negatives partition
    the reserve, too.

    Args:
        pool: N queries and M candidates.
        band: The band.
        key: Its key in the config, for messages.

    Returns:
        (N, M) bool; and the number of negatives in the band, ``None`` if it may differ between
        queries.

    Raises:
        EmptyBandError: The band is empty and all queries have the same number of negatives. If
            that depends on the data, a query may be left with none.
    """
    number = None if pool.count is None else band_count(band, pool.count, key)
    values = _present_similarity(pool)
    first, low = _threshold(values, pool, band[0])
    past, high = _threshold(values, pool, band[1])
    inside = pool.present if first is None else pool.present & first
    if past is not None:
        inside = inside & ~past
    if pool.reserve is not None:
        similarity = pool.similarity.detach()
        inside = inside | (pool.reserve & (similarity >= low) & (similarity < high))
    return inside, number


def hardest_columns(pool: Pool, number: int) -> Tensor:
    """(N, number) int, columns of the ``number`` hardest negatives, hardest first.

    A row with fewer negatives has other columns at its end. Ties break as in bands.
    """
    return top_columns(_present_similarity(pool), min(number, pool.similarity.shape[1]))


def _present_similarity(pool: Pool) -> Tensor:
    """(N, M) similarities, -inf for absent candidates, so that they sort first."""
    return pool.similarity.detach().masked_fill(~pool.present, -torch.inf)


def _threshold(values: Tensor, pool: Pool, share: float) -> tuple[Tensor | None, Tensor | float]:
    """Finds the candidates at or above the rank ⌊share·M⌋ of those present.

    Returns:
        (N, M) bool, ``None`` for all of them; and (N, 1) or a number, the similarity at that rank,
        -inf for the first rank and inf past the last.
    """
    if share == 0.0 or values.shape[1] == 0:
        return None, -torch.inf
    if pool.count is not None:
        rank = math.floor(share * pool.count + GUARD)
        if rank == 0:
            return None, -torch.inf
        if rank == pool.count:
            return torch.zeros_like(pool.present), torch.inf
        found = kth_largest(values, pool.count - rank)
        return found.at_or_above(values), found.value
    counts = pool.counts
    ranks = (share * counts.double() + GUARD).floor().long()
    empty, full = (ranks == counts)[:, None], (ranks == 0)[:, None]
    largest_k = values.shape[1] - math.floor(share * values.shape[1] + GUARD)
    found = kth_largest_per_row(values, (counts - ranks).clamp(min=1), max(largest_k, 1))
    above = full | (found.at_or_above(values) & ~empty)
    return above, found.value.masked_fill(full, -torch.inf).masked_fill(empty, torch.inf)


# ---------------------------------------------------------------------- order statistics


@dataclass(frozen=True)
class KthLargest:
    """The k-th largest candidate of each row, in the order (value, column).

    Attributes:
        value: (n, 1) its value.
        column: (n, 1) int, its column; ``None`` if no row has an equal value below it, so that the
            value alone decides.
    """

    value: Tensor
    column: Tensor | None

    def at_or_above(self, values: Tensor) -> Tensor:
        """(n, M) bool, the k largest of each row of the same ``values``."""
        # NaN sorts last, so it propagates to the loss.
        if self.column is None:
            return torch.lt(values, self.value).logical_not_()
        columns = torch.arange(values.shape[1], device=values.device)
        above = torch.le(values, self.value).logical_not_()
        return above | ((values == self.value) & (columns >= self.column))


def kth_largest(values: Tensor, k: int) -> KthLargest:
    """Finds the k-th largest candidate of each row.

    Args:
        values: (n, M) float.
        k: 1 … M; 1 is the largest, of equal ones the last column.
    """
    return _break_ties(values, k, *_kth_and_next(values, k))


def kth_largest_per_row(values: Tensor, k: Tensor, largest_k: int) -> KthLargest:
    """Finds the k-th largest candidate of each row, with a k for each.

    Args:
        values: (n, M) float.
        k: (n,) int, 1 … M.
        largest_k: Upper bound of ``k`` that is known without waiting for the device.
    """
    if devices.reads_are_free(values):
        largest_k = int(k.max())
    top = values.topk(min(largest_k + 1, values.shape[1]), dim=1).values
    top = pad(top, (0, 1), value=torch.nan)
    return _break_ties(values, k, top.gather(1, k[:, None] - 1), top.gather(1, k[:, None]))


def _break_ties(values: Tensor, k: int | Tensor, value: Tensor, below: Tensor) -> KthLargest:
    """Finds the column of the k-th largest ``value`` (n, 1), where the next ``below`` equals it.

    Where reads are not free, it does so for all rows.
    """
    if not devices.reads_are_free(values):
        return KthLargest(value, _tied_column(values, value, k))
    tied = value == below
    if not bool(tied.any()):
        return KthLargest(value, None)
    rows = tied[:, 0].nonzero()[:, 0]
    column = torch.zeros_like(value, dtype=torch.long)
    k = k[rows] if isinstance(k, Tensor) else k
    column[rows] = _tied_column(values[rows], value[rows], k)
    return KthLargest(value, column)


def _tied_column(values: Tensor, value: Tensor, k: int | Tensor) -> Tensor:
    """(n, 1) the column of the k-th largest among those of equal ``value``.

    Counts equal values by blocks of columns, then within one block of each row: a count along
    whole rows would be a large tensor, and slow on a GPU.
    """
    width = values.shape[1]
    k = k[:, None] if isinstance(k, Tensor) else k
    above = torch.le(values, value).logical_not_().sum(dim=1, keepdim=True)
    size = math.isqrt(width - 1) + 1
    equal = pad(values == value, (0, -width % size)).unflatten(1, (-1, size))
    per_block = equal.sum(dim=2)
    passed = per_block.cumsum(dim=1)
    below = passed[:, -1:] - (k - above)  # number of equal values in earlier columns
    block = torch.searchsorted(passed, below, right=True).clamp(max=passed.shape[1] - 1)
    before = (passed - per_block).gather(1, block)
    within = equal.gather(1, block[:, :, None].expand(-1, -1, size))[:, 0].cumsum(dim=1)
    return block * size + torch.searchsorted(within, below - before, right=True)


def _kth_and_next(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns (n, 1) the k-th largest value and (n, 1) the next smaller one, NaN without one."""
    width = values.shape[1]
    if k == width:
        return values.amin(dim=1, keepdim=True), values.new_full((len(values), 1), torch.nan)
    if k <= width // 2:
        below, value = _two_smallest(values.topk(k + 1, dim=1, sorted=False).values)
        return value, below
    smallest = values.topk(width - k + 1, dim=1, largest=False, sorted=False).values
    value, below = _two_smallest(-smallest)
    return -value, -below


def _two_smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) the smallest value, and (n, 1) the second smallest."""
    least = values.min(dim=1, keepdim=True)
    others = values.scatter(1, least.indices, torch.inf)
    return least.values, others.amin(dim=1, keepdim=True)


def top_columns(values: Tensor, number: int, ordered: bool = True) -> Tensor:
    """(n, number) int, columns of the largest values of each row.

    Args:
        values: (n, M) float. Of equal values the last column counts as the largest.
        number: 0 … M.
        ordered: Whether the largest comes first; otherwise the order is arbitrary.
    """
    columns = _unordered_top_columns(values, number)
    if not ordered:
        return columns
    columns = columns.sort(dim=1, descending=True).values
    order = values.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, order)


def _unordered_top_columns(values: Tensor, number: int) -> Tensor:
    width = values.shape[1]
    if number in (0, width):
        return torch.arange(number, device=values.device).expand(len(values), -1)
    if not devices.reads_are_free(values):
        return _exact_top_columns(values, number)
    found = values.topk(number + 1, dim=1, sorted=False)
    least = found.values.min(dim=1, keepdim=True)
    places = torch.arange(number, device=values.device).expand(len(values), -1)
    columns = found.indices.gather(1, places + (places >= least.indices))
    tied = (found.values == least.values).sum(dim=1).gt(1).nonzero()[:, 0]
    if len(tied):  # topk takes any of equal values
        columns[tied] = _exact_top_columns(values[tied], number)
    return columns


def _exact_top_columns(values: Tensor, number: int) -> Tensor:
    """Unordered top columns, ties broken by column."""
    mask = kth_largest(values, number).at_or_above(values)
    return mask.byte().topk(number, dim=1, sorted=False).indices
