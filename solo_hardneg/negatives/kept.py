"""What a policy left to each query, in numbers: small, whatever the pool was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from solo_hardneg.negatives.pool import Pool


@dataclass(frozen=True)
class Kept:
    """The outcome of one loss.

    Attributes:
        counts: (N,) int, how many negatives each query has, synthetic ones included.
        candidates: how many candidates there were, synthetic ones included; 0 for an empty queue.
        backend: what computed it.
        hard_share: (M,) of how many of the queries each candidate is among the hardest; ``None``
            where no policy asks.
        notes: (N,) values worth logging, by name.
    """

    counts: Tensor
    candidates: int
    backend: str
    hard_share: Tensor | None
    notes: Mapping[str, Tensor]


def kept_of(pool: Pool) -> Kept:
    """The numbers of a pool, which is the dense way."""
    return Kept(pool.counts, pool.present.shape[1], "dense", pool.hard_share, pool.notes)
