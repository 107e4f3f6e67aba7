"""Statistics of a loss, small whatever the size of the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from solo_hardneg.negatives.pool import Pool


@dataclass(frozen=True)
class LossStats:
    """Statistics of the negatives that a policy left.

    Attributes:
        counts: (N,) int, number of negatives per query, synthetic ones included.
        candidates: Number of candidates, synthetic ones included; 0 for an empty queue.
        hard_share: (M,) share of the queries for which each candidate is among the hardest;
            ``None`` if no policy asks.
        notes: (N,) values to log, by name.
        backend: Name of the backend that computed the loss.
    """

    counts: Tensor
    candidates: int
    hard_share: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    backend: str = "dense"


def stats_of(pool: Pool) -> LossStats:
    """Returns the statistics of a pool."""
    return LossStats(pool.counts, pool.present.shape[1], pool.hard_share, pool.notes)
