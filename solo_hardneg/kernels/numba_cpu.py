"""The fast way on a CPU, for what ranks alone decide.

In column tiles that stay in the cache, similarities are made by PyTorch, and compiled loops list
the few candidates of each query that may decide: those between two bounds that a sample gives.
Among them the band is found exactly, by (similarity, column). A narrow band lies in its list; of a
wide one the list holds what is *not* kept, and all others are summed up as they pass, as in
:class:`~solo_hardneg.kernels.chunked.EverythingKernel`.

Where a list turns out not to hold what it should (a sample can mislead), the block goes the
chunked way. So the result never depends on luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels import numba_loops as loops
from solo_hardneg.kernels.chunked import Block, Running, Weights, chunked
from solo_hardneg.kernels.numba_mix import NumbaMixture, weighted_sum
from solo_hardneg.kernels.problem import Problem, Pulls, Ranks, Sums
from solo_hardneg.kernels.sample import sample, set_aside
from solo_hardneg.negatives.mix import Mix, Uniform

_LISTED = 0.2  # the largest share of the candidates that goes into lists
_FEW = 2048  # so many of each query go in any case
_TILE = 2048


def numba_kernel(problem: Problem) -> Block:
    """The kernel for a problem; the chunked one where lists would be long."""
    listing = listing_of(problem)
    return chunked(problem) if listing is None else ListKernel(problem, listing)


# ---------------------------------------------------------------------- what is listed


@dataclass(frozen=True)
class Listing:
    """Which ranks the lists must hold, and what becomes of them.

    Attributes:
        first, past: the ranks to be listed; none, if they are equal.
        ranks: those among them that are kept, or dropped.
        others: whether the candidates that are not listed are kept.
    """

    first: int
    past: int
    ranks: Ranks
    others: bool


def listing_of(problem: Problem) -> Listing | None:
    """What to list; ``None`` where it would be too much."""
    width, ranks = len(problem.vectors), problem.ranks
    most = max(_LISTED * width, min(_FEW, width // 2))
    if ranks is not None and ranks.inside and ranks.past - ranks.first <= most:
        return Listing(ranks.first, ranks.past, ranks, others=False)
    hole = _hole(ranks, width)
    if hole is None:
        return None
    first = hole.first
    if problem.hardest:
        if hole.past < width:
            return None
        first = max(0, hole.first - problem.hardest)
    return Listing(first, hole.past, hole, True) if hole.past - first <= most else None


def _hole(ranks: Ranks | None, width: int) -> Ranks | None:
    """The ranks that are not kept; ``None`` if they are not one range."""
    if ranks is None:
        return Ranks(width, width, inside=False)
    if not ranks.inside:
        return ranks
    if ranks.first == 0:
        return Ranks(ranks.past, width, inside=False)
    return Ranks(0, ranks.first, inside=False) if ranks.past == width else None


# ---------------------------------------------------------------------- the kernel


class ListKernel(Block):
    """Bands by lists."""

    def __init__(self, problem: Problem, listing: Listing) -> None:
        super().__init__(problem)
        self.listing = listing
        self.block = min(len(self.query), 512)
        self.other: Block | None = None  # what a block is left to where lists fail
        most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        numba.set_num_threads(min(torch.get_num_threads(), most))

    def reduce(self, rows: slice) -> Sums:
        query = self.query[rows].contiguous()
        lists = Lists(len(query), len(self.vectors), self.listing)
        lists.bracket(query, self.vectors)
        running = []
        if self.listing.others:
            running = [Running(query, scale, self.problem.gradient) for scale in self.scales]
        self._pass(query, lists, running)
        if not lists.arrange():
            self.other = chunked(replace(self.problem, query=query))
            self.other.block = len(query)
            return self.other.reduce(slice(0, len(query)))
        self.other = None
        self.columns, values = lists.kept()
        copies = [values.clone() for _ in self.scales[1:]]
        of_lists = zip([values, *copies], self.scales, strict=True)
        self.sums = [
            _Sum(Weights(of_list, scale), running[place] if running else None)
            for place, (of_list, scale) in enumerate(of_lists)
        ]
        width, ranks, hardest = len(self.vectors), self.problem.ranks, None
        if self.problem.hardest:
            hardest = lists.hardest(self.problem.hardest)
        counts = torch.full((len(query),), width if ranks is None else ranks.kept(width))
        return self._sums([one.log for one in self.sums], counts, hardest=hardest)

    def _pass(self, query: Tensor, lists: Lists, running: list[Running]) -> None:
        """Goes once through all candidates."""
        width = len(self.vectors)
        tile = min(_TILE, width)
        # Room for whole eights, which the loops look at together.
        room = query.new_zeros(len(query), math.ceil(tile / 8) * 8)
        similarity = room[:, :tile]
        for start in range(0, width, tile):
            # The last tile is as wide as the others, so that equal vectors have equal similarities
            # wherever they stand; what it repeats is skipped.
            at = min(start, width - tile)
            vectors = self.vectors[at : at + tile]
            torch.mm(query, vectors.T, out=similarity)
            lists.add(room, tile, start - at, start, hide=bool(running))
            for run in running[1:]:
                run.add(similarity.clone(), vectors)
            for run in running[:1]:
                run.add(similarity, vectors)

    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        if self.other is not None:
            return self.other.pull(slice(0, self.other.block), pulls)
        weights: Tensor | None = None
        pulled = torch.zeros_like(self.query[rows])
        for one, derivative in zip(self.sums, self._derivatives(pulls), strict=True):
            weight = one.listed.weight.mul_(derivative * one.of_listed)
            weights = weight if weights is None else weights.add_(weight)
            if one.running is not None:
                pulled += derivative * one.of_running * one.running.pulled()
        assert weights is not None  # there is always A
        return pulled + weighted_sum(self.vectors, self.columns, weights)

    def mixture(self, rows: slice, mix: Mix, sums: Sums, uniform: Uniform) -> NumbaMixture:
        """The synthetic negatives of the block that was reduced last."""
        assert sums.hardest is not None  # asked for with the mix
        query = self.query[rows].contiguous()
        return NumbaMixture(query, self.vectors, sums.hardest, sums.counts, mix, uniform)


class _Sum:
    """One exponent's sum over the listed and over the others.

    Attributes:
        log: (n,) the logarithm of both together.
        of_listed: (n, 1) what makes the listed weights shares of that, and
        of_running: (n, 1) the share of the others.
    """

    def __init__(self, listed: Weights, running: Running | None) -> None:
        self.listed, self.running = listed, running
        self.log, self.of_listed = listed.log, listed.share
        if running is not None:
            others = running.log()
            self.log = torch.logaddexp(listed.log, others)
            self.of_running = (others - self.log).exp()[:, None]
            self.of_listed = listed.share * (listed.log - self.log).exp()[:, None]


class Lists:
    """The candidates of n queries that lie between two bounds of each.

    Attributes:
        keys: (n, capacity) uint64, see :mod:`~solo_hardneg.kernels.numba_loops`.
        sizes, below: (n,) how many are listed, and how many are below them.
    """

    def __init__(self, queries: int, width: int, listing: Listing) -> None:
        self.queries, self.width, self.listing = queries, width, listing
        self.sample = min(width, max(512, min(2048, width // 8)))
        low, high = listing.first / width, listing.past / width
        # A bound is set aside from the rank that it is for, and lies elsewhere by chance itself.
        off = self._off(low) + self._off(low - self._off(low))
        off += self._off(high) + self._off(high + self._off(high))
        room = high - low + off
        capacity = 0 if self._is_empty else min(width, math.ceil(room * width) + 64)
        self.keys = np.empty((queries, capacity), np.uint64)
        self.sizes, self.below = np.zeros(queries, np.int64), np.zeros(queries, np.int64)

    @property
    def _is_empty(self) -> bool:
        return self.listing.first == self.listing.past

    @property
    def _all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.keys, self.sizes, self.below

    def _off(self, share: float) -> float:
        return 0.0 if self.sample == self.width else set_aside(share, self.sample)

    def bracket(self, query: Tensor, vectors: Tensor) -> None:
        """Sets the bounds (n,) from a sample of the candidates."""
        if self._is_empty:
            return
        low, high = self.listing.first / self.width, self.listing.past / self.width
        similarity = query @ vectors[sample(self.width, self.sample)].T
        lower = math.floor((low - self._off(low)) * self.sample)
        upper = math.ceil((high + self._off(high)) * self.sample)
        self.lower = _at_rank(similarity, lower, -math.inf)
        self.upper = _at_rank(similarity, upper, math.inf)

    def add(self, tile: Tensor, width: int, skip: int, start: int, hide: bool) -> None:
        """Takes up a tile of similarities (n, w); ``hide`` puts -inf where one is listed."""
        if self._is_empty:
            tile[:, :skip] = -math.inf
            return
        bounds = self.lower, self.upper
        loops.list_tile(tile.numpy(), width, skip, start, *bounds, *self._all, hide)

    def arrange(self) -> bool:
        """Whether each list holds all that it should; then its ranks are in their places."""
        listing, ranks = self.listing, self.listing.ranks
        if self._is_empty:
            return True
        if loops.select(*self._all, listing.first, listing.past):
            return False
        if (listing.first, listing.past) == (ranks.first, ranks.past):
            return True
        return not loops.select(*self._all, ranks.first, ranks.past)

    def kept(self) -> tuple[Tensor, Tensor]:
        """(n, k) the columns, int32, and similarities of what of the lists is kept.

        Behind those of a query that keeps fewer: -inf, in column 0.
        """
        ranks = self.listing.ranks
        named = ranks.past - ranks.first
        width = named if ranks.inside else int(self.sizes.max(initial=0)) - named
        columns = torch.empty(self.queries, width, dtype=torch.int32)
        values = torch.empty(self.queries, width)
        which = ranks.first, ranks.past, ranks.inside
        loops.kept(*self._all, *which, columns.numpy(), values.numpy())
        return columns, values

    def hardest(self, number: int) -> Tensor:
        """(n, s) int64, the columns of the hardest kept ones, hardest first."""
        ranks = self.listing.ranks
        past = ranks.past if ranks.inside else ranks.first
        first = max(ranks.first if ranks.inside else 0, past - number)
        columns = torch.empty(self.queries, past - first, dtype=torch.int64)
        loops.select(*self._all, first, past)
        loops.hardest(self.keys, self.below, first, past, columns.numpy())
        return columns


def _at_rank(sample: Tensor, rank: int, outside: float) -> np.ndarray:
    """(n,) float32, the value at a rank of each row, or ``outside`` where there is no such rank."""
    rows, width = sample.shape
    if not 0 < rank < width:
        return np.full(rows, outside, np.float32)
    values = np.empty(rows, np.float32)
    loops.at_rank(sample.numpy().view(np.uint32), rank, values.view(np.uint32))
    return values
