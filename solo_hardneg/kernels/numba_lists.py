"""Lists of the candidates that may decide a band: those between two bounds from a sample."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels import numba_loops as loops
from solo_hardneg.kernels.listing import Listing
from solo_hardneg.kernels.sample import sample, set_aside

_WHOLE = 1024  # up to so many, all of them are listed, without a sample


class Bounds:
    """What a sample of the candidates says of the ranks to be listed, for any query.

    Attributes:
        capacity: how long a list may become.
    """

    def __init__(self, listing: Listing, vectors: Tensor) -> None:
        self.width, self.listing = len(vectors), listing
        self.empty = listing.first == listing.past
        self.whole = self.width <= _WHOLE and not listing.others
        self.number = min(self.width, max(512, min(2048, self.width // 8)))
        low, high = listing.first / self.width, listing.past / self.width
        self.low, self.high = low - self._off(low), high + self._off(high)
        # A bound is set aside from the rank that it is for, and lies elsewhere by chance itself.
        room = self.high + self._off(self.high) - self.low + self._off(self.low)
        self.capacity = min(self.width, math.ceil(room * self.width) + 64)
        if self.whole:
            self.capacity = self.width
        if self.empty:
            self.capacity = 0
        if not self.empty and not self.whole:
            self.vectors = vectors[sample(self.width, self.number)]

    def _off(self, share: float) -> float:
        return 0.0 if self.number == self.width else set_aside(share, self.number)

    def of(self, query: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(n,) float32 lower and upper bounds of what is to be listed."""
        if self.empty or self.whole:
            infinite = np.full(len(query), np.inf, np.float32)
            return -infinite, infinite
        similarity = query @ self.vectors.T
        lower = math.floor(self.low * self.number)
        upper = math.ceil(self.high * self.number)
        return _at_rank(similarity, lower, -math.inf), _at_rank(similarity, upper, math.inf)


def _at_rank(sample: Tensor, rank: int, outside: float) -> np.ndarray:
    """(n,) float32, the value at a rank of each row, or ``outside`` where there is no such rank."""
    rows, width = sample.shape
    if not 0 < rank < width:
        return np.full(rows, outside, np.float32)
    values = np.empty(rows, np.float32)
    loops.at_rank(sample.numpy().view(np.uint32), rank, values.view(np.uint32))
    return values


class Lists:
    """The candidates of n queries that lie between two bounds of each.

    Attributes:
        keys: (n, capacity) uint64, see :mod:`~solo_hardneg.kernels.numba_loops`.
        sizes, below: (n,) how many are listed, and how many are below them.
    """

    def __init__(self, query: Tensor, bounds: Bounds) -> None:
        self.bounds, self.listing, self.queries = bounds, bounds.listing, len(query)
        self.lower, self.upper = bounds.of(query)
        self.keys = np.empty((self.queries, bounds.capacity), np.uint64)
        self.sizes, self.below = (np.zeros(self.queries, np.int64) for _ in range(2))

    def add(self, tile: Tensor, width: int, skip: int, start: int) -> None:
        """Takes up a tile of similarities (n, w).

        Puts -inf in the place of what is listed, where the others are kept, for whom they remain.
        """
        hide = self.listing.others
        if self.bounds.empty:
            tile[:, :skip] = -math.inf
            return
        how = width, skip, start, self.lower, self.upper
        loops.list_tile(tile.numpy(), *how, self.keys, self.sizes, self.below, hide)

    def kept(self) -> tuple[Tensor, Tensor] | None:
        """(n, k) the columns, int32, and similarities of what of the lists is kept.

        They are in the order of columns. Behind those of a query that keeps fewer: no column and
        -inf. ``None`` where a list doesn't hold what it should.
        """
        listing, ranks = self.listing, self.listing.ranks
        named = ranks.past - ranks.first
        width = named if ranks.inside else max(0, int(self.sizes.max(initial=0)) - named)
        columns = torch.empty(self.queries, width, dtype=torch.int32)
        values = torch.empty(self.queries, width)
        if self.bounds.empty:
            return columns, values
        which = listing.first, listing.past, ranks.first, ranks.past, ranks.inside
        lists = self.keys, self.sizes, self.below
        missed = loops.kept(*lists, *which, columns.numpy(), values.numpy())
        return None if missed else (columns, values)
