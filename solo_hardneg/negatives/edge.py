"""Which candidate has a given rank, without sorting all of them.

The order is that of bands, (value, column) ascending, so ranks are exact where values are equal.
A stable sort would say the same, and takes nine times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edge:
    """One candidate of each row, which parts those below it from the others.

    Attributes:
        value: (n, 1) its value, and
        column: (n, 1) int, its column; ``None`` where no row has others of equal value below it,
            so that the value alone says who is at or above it.
    """

    value: Tensor
    column: Tensor | None

    def at_or_above(self, values: Tensor) -> Tensor:
        """(n, M) bool, which are the edge itself or come after it; ``values`` are those of it."""
        # What is no number is above everything, as in sorting, and shows in the loss.
        if self.column is None:
            return torch.lt(values, self.value).logical_not_()
        columns = torch.arange(values.shape[1], device=values.device)
        above = torch.le(values, self.value).logical_not_()
        return above | ((values == self.value) & (columns >= self.column))


def edge(values: Tensor, from_top: int | Tensor) -> Edge:
    """The candidate that comes in a given place, counted from the last.

    Args:
        values: (n, M) float.
        from_top: 1 for the largest (of equal ones, the last column), up to M; one number, or (n,)
            one for each row.
    """
    value, next_below = _neighbours(values, from_top)
    more = value == next_below
    if not bool(more.any()):
        return Edge(value, None)
    rows = more[:, 0].nonzero()[:, 0]
    column = torch.zeros_like(value, dtype=torch.long)
    of_rows, edges = values[rows], value[rows]
    wanted = torch.as_tensor(from_top, device=values.device).expand(len(values))[rows, None]
    # Of the candidates of this value, so many are still at or above the edge.
    needed = wanted - (of_rows > edges).sum(dim=1, keepdim=True)
    counted = (of_rows == edges).flip(1).cumsum(dim=1)
    column[rows] = values.shape[1] - 1 - (counted >= needed).int().argmax(dim=1, keepdim=True)
    return Edge(value, column)


def _neighbours(values: Tensor, from_top: int | Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) the value in that place and (n, 1) the one below it, NaN where there is none."""
    width = values.shape[1]
    padded = torch.nn.functional.pad
    if isinstance(from_top, Tensor):
        deepest = min(int(from_top.max()) + 1, width)
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
    if number == width:
        return torch.arange(width, device=values.device).expand(len(values), -1)
    found = values.topk(number + 1, dim=1, sorted=False)
    least = found.values.min(dim=1, keepdim=True)
    places = torch.arange(number, device=values.device).expand(len(values), -1)
    columns = found.indices.gather(1, places + (places >= least.indices))
    more = columns.new_zeros(0)
    if number:
        more = (found.values == least.values).sum(dim=1).gt(1).nonzero()[:, 0]
    if len(more):  # topk takes any of those that are equal
        exact = edge(values[more], number).at_or_above(values[more])
        columns[more] = exact.nonzero()[:, 1].view(len(more), number)
    return columns
