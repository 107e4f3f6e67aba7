"""Which candidate has a given rank, without sorting all of them.

The order is that of bands, (value, column) ascending, so ranks are exact where values are equal.
A stable sort would say the same, and takes nine times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_hardneg import sync


@dataclass(frozen=True)
class Edge:
    """One candidate of each row, which parts those below it from the others.

    Attributes:
        value: (n, 1) its value, and
        column: (n, 1) int, its column; ``None`` where the value alone is known to say who is at
            or above it, because no row has others of that value below it.
    """

    value: Tensor
    column: Tensor | None

    def at_or_above(self, values: Tensor) -> Tensor:
        """(n, M) bool, which are the edge itself or come after it; ``values`` are those of it."""
        # NaN sorts last, so it propagates to the loss.
        if self.column is None:
            return torch.lt(values, self.value).logical_not_()
        columns = torch.arange(values.shape[1], device=values.device)
        above = torch.le(values, self.value).logical_not_()
        return above | ((values == self.value) & (columns >= self.column))


def edge(values: Tensor, from_top: int | Tensor, most: int | None = None) -> Edge:
    """The candidate that comes in a given place, counted from the last.

    Args:
        values: (n, M) float.
        from_top: 1 for the largest (of equal ones, the last column), up to M; one number, or (n,)
            one for each row.
        most: the largest of the numbers, or more; ``None`` for M.
    """
    if not sync.is_free(values):
        value, _ = _neighbours(values, from_top, most)
        return Edge(value, _column(values, value, from_top))
    if isinstance(from_top, Tensor):
        most = int(from_top.max())
    value, next_below = _neighbours(values, from_top, most)
    more = value == next_below
    if not bool(more.any()):
        return Edge(value, None)
    rows = more[:, 0].nonzero()[:, 0]
    column = torch.zeros_like(value, dtype=torch.long)
    wanted = from_top[rows] if isinstance(from_top, Tensor) else from_top
    column[rows] = _column(values[rows], value[rows], wanted)
    return Edge(value, column)


def _column(values: Tensor, value: Tensor, from_top: int | Tensor) -> Tensor:
    """(n, 1) the column from which on candidates of the edge's value are at or above it.

    Counts equal values by blocks of columns, then within one block of each row: a count along
    whole rows would be a large tensor, and slow on a GPU.
    """
    width = values.shape[1]
    wanted = from_top[:, None] if isinstance(from_top, Tensor) else from_top
    above = torch.le(values, value).logical_not_().sum(dim=1, keepdim=True)
    size = math.isqrt(width - 1) + 1
    equal = torch.nn.functional.pad(values == value, (0, -width % size)).unflatten(1, (-1, size))
    of_blocks = equal.sum(dim=2)
    passed = of_blocks.cumsum(dim=1)
    below = passed[:, -1:] - (wanted - above)  # so many of this value come before the edge
    block = torch.searchsorted(passed, below, right=True).clamp(max=passed.shape[1] - 1)
    before = (passed - of_blocks).gather(1, block)
    within = equal.gather(1, block[:, :, None].expand(-1, -1, size))[:, 0].cumsum(dim=1)
    return block * size + torch.searchsorted(within, below - before, right=True)


def _neighbours(values: Tensor, from_top: int | Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """(n, 1) the value in that place and (n, 1) the one below it, NaN where there is none."""
    width = values.shape[1]
    padded = torch.nn.functional.pad
    if isinstance(from_top, Tensor):
        deepest = width if most is None else min(most + 1, width)
        largest = padded(values.topk(deepest, dim=1).values, (0, 1), value=torch.nan)
        place = from_top[:, None]
        return largest.gather(1, place - 1), largest.gather(1, place)
    if from_top == width:
        return values.amin(dim=1, keepdim=True), values.new_full((len(values), 1), torch.nan)
    if from_top <= width // 2:
        next_below, value = _last_two(values.topk(from_top + 1, dim=1, sorted=False).values)
        return value, next_below
    found = values.topk(width - from_top + 1, dim=1, largest=False, sorted=False)
    value, next_below = (-v for v in _last_two(-found.values))
    return value, next_below


def _last_two(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) the smallest value and (n, 1) the smallest of the others."""
    least = values.min(dim=1, keepdim=True)
    others = values.scatter(1, least.indices, torch.inf)
    return least.values, others.amin(dim=1, keepdim=True)


def top(values: Tensor, number: int, ordered: bool = True) -> Tensor:
    """(n, number) int, the columns of the largest values; if ``ordered``, the largest first.

    Of equal values the last column counts as the largest.
    """
    columns = _top_in_any_order(values, number)
    if not ordered:
        return columns
    columns = columns.sort(dim=1, descending=True).values
    order = values.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, order)


def _top_in_any_order(values: Tensor, number: int) -> Tensor:
    width = values.shape[1]
    if number in (0, width):
        return torch.arange(number, device=values.device).expand(len(values), -1)
    if not sync.is_free(values):
        return _columns(edge(values, number).at_or_above(values), number)
    found = values.topk(number + 1, dim=1, sorted=False)
    least = found.values.min(dim=1, keepdim=True)
    places = torch.arange(number, device=values.device).expand(len(values), -1)
    columns = found.indices.gather(1, places + (places >= least.indices))
    more = (found.values == least.values).sum(dim=1).gt(1).nonzero()[:, 0]
    if len(more):  # topk takes any of those that are equal
        columns[more] = _columns(edge(values[more], number).at_or_above(values[more]), number)
    return columns


def _columns(mask: Tensor, number: int) -> Tensor:
    """(n, number) int, the columns that a mask names in each row, in any order."""
    return mask.byte().topk(number, dim=1, sorted=False).indices
