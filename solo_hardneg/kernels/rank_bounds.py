"""Bounds on the similarity at a rank, estimated from a sample of the candidates."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

SIGMAS = 5.0  # standard deviations between an estimate and its bound
CPU = torch.device("cpu")


@cache
def sample_columns(width: int, number: int, device: torch.device = CPU) -> Tensor:
    """Returns (number,) int64 columns, one drawn from each of ``number`` equal pieces of a range.

    They are the same in every call.
    """
    generator = torch.Generator().manual_seed(0)
    edges = torch.arange(number + 1) * width // number
    within = torch.rand(number, generator=generator, dtype=torch.float64)
    return (edges[:-1] + (within * edges.diff()).long()).to(device)


def sample_ranks(first: int, past: int, width: int, number: int) -> tuple[int, int, int]:
    """Returns ranks in a sample between which all candidates of some ranks almost surely lie.

    Args:
        first, past: Ranks [first, past) among all candidates.
        width: Number of candidates, M.
        number: Size of the sample; exact bounds if it is M.

    Returns:
        Lower and upper rank in the sample, not in [1, number) if there is no bound; and the maximum
        number of candidates between them.
    """

    def margin(share: float) -> float:
        return rank_margin(share, number) if number < width else 0.0

    low, high = first / width, past / width
    low, high = low - margin(low), high + margin(high)
    # A bound is itself an estimate, and may lie another margin away.
    between = high + margin(high) - low + margin(low)
    return math.floor(low * number), math.ceil(high * number), math.ceil(between * width)


def rank_margin(share: float, number: int) -> float:
    """Returns how far to move a bound away from a rank in a sample, both as shares of all ranks."""
    if not 0.0 < share < 1.0:
        return 0.0
    return SIGMAS * math.sqrt(share * (1 - share) / number) + 2 / number


def value_at_rank(values: Tensor, rank: int, outside: float) -> Tensor:
    """Returns (n,) the value at a rank of each row, or ``outside`` unless 0 < rank < width."""
    rows, width = values.shape
    if not 0 < rank < width:
        return values.new_full((rows,), outside)
    if rank >= width // 2:
        return values.topk(width - rank, dim=1, sorted=False).values.amin(dim=1)
    return values.topk(rank + 1, dim=1, largest=False, sorted=False).values.amax(dim=1)
