"""The fused way on a GPU, for what ranks alone decide: N×M similarities are never held.

A band takes two passes over the candidates, and the gradient a third; each recomputes similarities
tile by tile, as FlashAttention does (Dao et al. 2022, arXiv 2205.14135):

1. For each edge of the band, a sample gives two bounds, and the few candidates between them are
   listed. Among these the edge is found exactly, digit by digit, ties by column.
2. The exponentials of what lies between the edges are summed up.
3. The same, times the vectors, is the gradient of the query.

Where a list turns out not to hold the edge (a sample can mislead), all candidates are listed
instead, of some queries at a time. Those kernels are always launched, and do nothing for the other
queries: to ask which there are would be to wait for the device.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_hardneg.kernels import triton_loops as loops
from solo_hardneg.kernels.chunked import chunked
from solo_hardneg.kernels.problem import Kernel, Problem, Pulls, Sums, widened
from solo_hardneg.kernels.sample import sample, set_aside, value_at_rank
from solo_hardneg.negatives import edge as edges

WARPS, STAGES = 4, 2
_LISTED = 2**22  # so many candidates are listed at a time where all of a query are
_PROGRAMS = 264  # twice as many as an H100 or an H200 has processors


def tile_sizes(dimensions: int, half: bool) -> dict[str, int]:
    """The sizes that the device code is compiled for: dimensions, queries and candidates of a tile.

    A tile's vectors must fit, twice for candidates, into what an A100 shares: 163 KiB.
    """
    padded = max(16, 2 ** math.ceil(math.log2(dimensions)))
    number = 64 if half else 32
    if padded > 256:
        number = 32 if half and padded <= 512 else 16
    return {"D": dimensions, "PADDED": padded, "BN": number, "BM": number}


@dataclass(frozen=True)
class Edges:
    """(2, n) the similarities and columns of the band's first candidate and the first behind it."""

    values: Tensor
    columns: Tensor


def triton_kernel(problem: Problem) -> Kernel:
    """The kernel for a problem; the chunked one for bands whose hardest lie in two pieces."""
    ranks = problem.ranks
    holed = ranks is not None and not ranks.inside and ranks.past < len(problem.vectors)
    if holed and problem.hardest:
        return chunked(problem)
    return TritonKernel(problem)


class TritonKernel:
    """Bands, and everything, in three passes."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.query, self.vectors = problem.query, problem.vectors
        if os.environ.get("TRITON_INTERPRET") == "1":  # which multiplies bfloat16's bits
            self.query, self.vectors = widened(self.query), widened(self.vectors)
        self.width, self.dimensions = self.vectors.shape
        self.block = max(1, min(len(self.query), 4096))
        half = max(self.query.element_size(), self.vectors.element_size()) == 2
        self.tile = tile_sizes(self.dimensions, half)
        self.scales = [(1 + problem.beta) / problem.temperature, problem.beta / problem.temperature]
        ranks = problem.ranks
        self.first = 0 if ranks is None else ranks.first
        self.past = self.width if ranks is None else ranks.past
        self.inside = ranks is None or ranks.inside

    # ------------------------------------------------------------------ the two stages

    def reduce(self, rows: slice) -> Sums:
        """A and B of a block of queries."""
        query = self.query[rows]
        number = len(query)
        self.edges = self._edges(query, self.first, self.past)
        splits = self._splits(number)
        shape = 2, splits, number
        tops, totals = (torch.empty(shape, device=query.device) for _ in range(2))
        self._launch("sum_up", query, splits, (tops, totals))
        self.logs = torch.logsumexp(totals.log() + tops, dim=1)
        weights = self.logs[1] if self.problem.beta else None
        kept = self.width if self.problem.ranks is None else self.problem.ranks.kept(self.width)
        counts = torch.full((number,), kept, device=query.device)
        hardest = self._hardest(query) if self.problem.hardest else None
        return Sums(self.logs[0], weights, counts, hardest=hardest)

    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        """The gradient of the block that was reduced last, (n, D) float32."""
        query = self.query[rows]
        by_b = torch.zeros_like(pulls.total) if pulls.weights is None else pulls.weights
        derivatives = torch.stack([pulls.total * self.scales[0], by_b * self.scales[1]])
        splits = self._splits(len(query))
        pulled = torch.empty(splits, len(query), self.dimensions, device=query.device)
        self._launch("pull", query, splits, (self.logs.contiguous(), derivatives, pulled))
        return pulled.sum(dim=0)

    # ------------------------------------------------------------------ edges

    def _edges(self, query: Tensor, first: int, past: int) -> Edges:
        """The candidates of two ranks; anything for those that all, or none, lie behind."""
        shape = 2, len(query)
        found = Edges(
            torch.zeros(shape, device=query.device),
            torch.zeros(shape, dtype=torch.int32, device=query.device),
        )
        for place, rank in enumerate((first, past)):
            if 0 < rank < self.width:
                self._find(query, rank, found.values[place], found.columns[place])
        return found

    def _find(self, query: Tensor, rank: int, values: Tensor, columns: Tensor) -> None:
        """Sets one edge (n,): the candidate of a rank."""
        done = torch.zeros(len(query), dtype=torch.int32, device=query.device)
        bounds = self._bounds(query, rank)
        if bounds is not None:
            done = self._find_in(query, rank, bounds, values, columns, done)
        at_a_time = max(1, _LISTED // self.width)
        for start in range(0, len(query), at_a_time):
            some = slice(start, start + at_a_time)
            self._find_in(query[some], rank, None, values[some], columns[some], done[some])

    def _find_in(
        self,
        query: Tensor,
        rank: int,
        bounds: _Bounds | None,
        values: Tensor,
        columns: Tensor,
        done: Tensor,
    ) -> Tensor:
        """Lists, and finds the rank in the lists, but for queries that are ``done`` (n,).

        Returns:
            (n,) int, 1 where the list held the rank, and 0 where what was found is wrong.
        """
        lists = self._list(query, bounds, done)
        from_top = (self.width - rank) - lists.above.sum(dim=1)
        held = (from_top >= 1) & (from_top <= lists.sizes.sum(dim=1))
        held &= (lists.sizes <= lists.capacity).all(dim=1)
        loops.select[(len(query),)](
            lists.values, lists.columns, lists.sizes, from_top.int(), values, columns, done,
            lists.sizes.shape[1], lists.capacity, BLOCK=256, num_warps=WARPS,
        )  # fmt: skip
        return held.int()

    def _bounds(self, query: Tensor, rank: int) -> _Bounds | None:
        """Bounds (n,) between which the candidate of a rank almost surely lies."""
        number = max(512, min(4096, self.width // 8))
        if number >= self.width:
            return None
        columns = sample(self.width, number, query.device)
        similarity = widened(query) @ widened(self.vectors[columns].to(query)).T
        low, high = rank / self.width, (rank + 1) / self.width
        below, above = set_aside(low, number), set_aside(high, number)
        lower = value_at_rank(similarity, math.floor((low - below) * number), -math.inf)
        upper = value_at_rank(similarity, math.ceil((high + above) * number), math.inf)
        off = below + above + set_aside(low - below, number) + set_aside(high + above, number)
        return lower, upper, math.ceil((high - low + off) * self.width)

    def _list(self, query: Tensor, bounds: _Bounds | None, done: Tensor) -> _Lists:
        """The candidates of each query that lie between its bounds; all of them without.

        Lists of queries that are ``done`` (n,) may stay empty.
        """
        splits = self._splits(len(query))
        per_split = self._per_split(splits)
        if bounds is None:
            lower = torch.full((len(query),), -math.inf, device=query.device)
            upper, capacity = -lower, per_split
        else:
            # A piece of the candidates holds its part of them, twice as many, and five sigmas.
            lower, upper, expected = bounds
            share = expected / splits
            capacity = min(per_split, math.ceil(2 * share + 5 * math.sqrt(share)) + 16)
        shape = len(query), splits
        lists = _Lists(
            torch.empty(*shape, capacity, device=query.device),
            torch.empty(*shape, capacity, dtype=torch.int32, device=query.device),
            torch.empty(shape, dtype=torch.int32, device=query.device),
            torch.empty(shape, dtype=torch.int32, device=query.device),
        )
        loops.list_candidates[self._grid(len(query), splits)](
            query, self.vectors, lower, upper,
            lists.values, lists.columns, lists.sizes, lists.above, done,
            len(query), self.width, per_split, splits, capacity,
            *query.stride(), *self.vectors.stride(), **self._sizes(),
        )  # fmt: skip
        return lists

    def _hardest(self, query: Tensor) -> Tensor:
        """(n, s) int64, the columns of the hardest kept ones, hardest first."""
        past = self.past if self.inside else self.first
        least = max(0, past - self.problem.hardest)
        number, splits = past - least, self._splits(len(query))
        found = self._edges(query, least, past)
        values = torch.zeros(len(query), number, device=query.device)
        columns = torch.zeros(values.shape, dtype=torch.int32, device=query.device)
        sizes = torch.zeros(len(query), dtype=torch.int32, device=query.device)
        loops.list_between[self._grid(len(query), splits)](
            query, self.vectors, found.values, found.columns, values, columns, sizes,
            len(query), self.width, self._per_split(splits), number,
            *query.stride(), *self.vectors.stride(),
            HAS_FIRST=least > 0, HAS_PAST=past < self.width, **self._sizes(),
        )  # fmt: skip
        # In the order of columns, ties by place are ties by column.
        columns, order = columns.sort(dim=1)
        return columns.gather(1, edges.top(values.gather(1, order), number)).long()

    # ------------------------------------------------------------------ launching

    def _launch(self, name: str, query: Tensor, splits: int, tensors: tuple[Tensor, ...]) -> None:
        """Runs one of the passes over what is kept."""
        getattr(loops, name)[self._grid(len(query), splits)](
            query, self.vectors, self.edges.values, self.edges.columns, *tensors,
            len(query), self.width, self._per_split(splits), splits, *self.scales,
            *query.stride(), *self.vectors.stride(),
            HAS_FIRST=self.first > 0, HAS_PAST=self.past < self.width, INSIDE=self.inside,
            TWO=self.problem.beta > 0, **self._sizes(),
        )  # fmt: skip

    def _sizes(self) -> dict[str, int]:
        return {**self.tile, "num_warps": WARPS, "num_stages": STAGES}

    def _splits(self, queries: int) -> int:
        """Into how many pieces the candidates are divided, to keep all processors busy."""
        wanted = max(1, _PROGRAMS // math.ceil(queries / self.tile["BN"]))
        return min(wanted, math.ceil(self.width / self.tile["BM"]))

    def _per_split(self, splits: int) -> int:
        return math.ceil(math.ceil(self.width / self.tile["BM"]) / splits) * self.tile["BM"]

    def _grid(self, queries: int, splits: int) -> tuple[int, int]:
        return math.ceil(queries / self.tile["BN"]), splits


_Bounds = tuple[Tensor, Tensor, int]  # lower, upper (n,), and how many lie between them, at most


@dataclass(frozen=True)
class _Lists:
    """(n, splits, capacity) similarities and columns; (n, splits) how many, and how many above."""

    values: Tensor
    columns: Tensor
    sizes: Tensor
    above: Tensor

    @property
    def capacity(self) -> int:
        return self.values.shape[2]
