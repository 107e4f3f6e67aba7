"""Lists the candidates that may decide a band: those between two bounds from a sample."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels.numba import loops
from solo_hardneg.kernels.numba.listed_ranks import ListedRanks
from solo_hardneg.kernels.rank_bounds import sample_columns, sample_ranks

_MAX_WIDTH = 1024  # candidates; up to this number all are listed, without a sample


class SampledBounds:
    """Bounds on the similarity that enclose the ranks to list, for any query.

    Attributes:
        capacity: Maximum length of a list.
    """

    def __init__(self, listed: ListedRanks, vectors: Tensor) -> None:
        width, self.listed = len(vectors), listed
        self.empty = listed.first == listed.past
        self.unbounded = width <= _MAX_WIDTH and not listed.others
        number = min(width, max(512, min(2048, width // 8)))
        self.lower, self.upper, between = sample_ranks(listed.first, listed.past, width, number)
        self.capacity = min(width, between + 64)
        if self.unbounded:
            self.capacity = width
        if self.empty:
            self.capacity = 0
        if not self.empty and not self.unbounded:
            self.sample = vectors[sample_columns(width, number)]

    def of(self, query: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n,) float32 lower and upper bounds for some queries (n, D)."""
        if self.empty or self.unbounded:
            infinite = np.full(len(query), np.inf, np.float32)
            return -infinite, infinite
        similarity = query @ self.sample.T
        lower = _value_at_rank(similarity, self.lower, -math.inf)
        return lower, _value_at_rank(similarity, self.upper, math.inf)


def _value_at_rank(similarity: Tensor, rank: int, outside: float) -> np.ndarray:
    """Compiled :func:`~solo_hardneg.kernels.rank_bounds.value_at_rank`."""
    rows, width = similarity.shape
    if not 0 < rank < width:
        return np.full(rows, outside, np.float32)
    values = np.empty(rows, np.float32)
    loops.values_at_rank(similarity.numpy().view(np.uint32), rank, values.view(np.uint32))
    return values


class CandidateLists:
    """The candidates of n queries that lie between two bounds.

    Attributes:
        keys: (n, capacity) uint64, see :mod:`~solo_hardneg.kernels.numba.loops`.
        sizes: (n,) int64, number of candidates between the bounds.
        below: (n,) int64, number of candidates below them.
    """

    def __init__(self, query: Tensor, bounds: SampledBounds) -> None:
        self.bounds, self.listed, self.queries = bounds, bounds.listed, len(query)
        self.lower, self.upper = bounds.of(query)
        self.keys = np.empty((self.queries, bounds.capacity), np.uint64)
        self.sizes, self.below = (np.zeros(self.queries, np.int64) for _ in range(2))

    def add(self, tile: Tensor, width: int, skip: int, start: int) -> None:
        """Adds a tile of similarities; see :func:`~solo_hardneg.kernels.numba.loops.list_tile`.

        Sets what is listed or skipped to -inf if all other candidates are kept.
        """
        if self.bounds.empty:
            tile[:, :skip] = -math.inf
            return
        place = width, skip, start, self.lower, self.upper
        lists = self.keys, self.sizes, self.below
        loops.list_tile(tile.numpy(), *place, *lists, self.listed.others)

    def select(self) -> tuple[Tensor, Tensor] | None:
        """Returns the kept candidates of each list, in the order of columns.

        Returns:
            (n, k) int32 columns and (n, k) similarities. A shorter list is filled with an invalid
            column and -inf. ``None`` if a list misses candidates.
        """
        listed, ranks = self.listed, self.listed.ranks
        in_range = ranks.past - ranks.first
        width = in_range if ranks.inside else max(0, int(self.sizes.max(initial=0)) - in_range)
        columns = torch.empty(self.queries, width, dtype=torch.int32)
        values = torch.empty(self.queries, width)
        if self.bounds.empty:
            return columns, values
        which = listed.first, listed.past, ranks.first, ranks.past, ranks.inside
        lists = self.keys, self.sizes, self.below
        missed = loops.select_kept(*lists, *which, columns.numpy(), values.numpy())
        return None if missed else (columns, values)
