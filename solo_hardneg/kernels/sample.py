"""What a sample of the candidates says of a rank among all of them."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

SIGMAS = 5.0  # how far from what the sample says the bounds lie


CPU = torch.device("cpu")


@cache
def sample(width: int, number: int, device: torch.device = CPU) -> Tensor:
    """(number,) int, columns at random, one of each of as many pieces; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.arange(number + 1) * width // number
    within = torch.rand(number, generator=generator, dtype=torch.float64)
    return (edges[:-1] + (within * edges.diff()).long()).to(device)


def set_aside(share: float, number: int) -> float:
    """How far, as a share, a bound is set aside from the place ``share`` of a sample."""
    if not 0.0 < share < 1.0:
        return 0.0
    return SIGMAS * math.sqrt(share * (1 - share) / number) + 2 / number


def value_at_rank(values: Tensor, rank: int, outside: float) -> Tensor:
    """(n,) the value at a rank of each row, or ``outside`` where there is no such rank."""
    rows, width = values.shape
    if not 0 < rank < width:
        return values.new_full((rows,), outside)
    if rank >= width // 2:
        return values.topk(width - rank, dim=1, sorted=False).values.amin(dim=1)
    return values.topk(rank + 1, dim=1, largest=False, sorted=False).values.amax(dim=1)
