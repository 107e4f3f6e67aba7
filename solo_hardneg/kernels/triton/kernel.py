"""The fused kernel on a GPU, for policies that ranks alone decide; it never holds N×M similarities.

A band takes two passes over the candidates and its gradient a third. Each recomputes similarities
tile by tile, as FlashAttention does (Dao et al. 2022, arXiv 2205.14135):

1. For each edge of the band, a sample gives two bounds, and the few candidates between them are
   listed. Among these the edge is found exactly by radix selection, ties by column.
2. The exponentials of the candidates between the edges are summed.
3. The same, times the vectors, is the gradient of the query.

If a list misses the edge (a sample can mislead), all candidates are listed, for some queries at a
time. These kernels are always launched and skip the other queries, because asking which queries
need them would wait for the device.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solo_hardneg.kernels.chunked import chunked_kernel
from solo_hardneg.kernels.formula import LogSums
from solo_hardneg.kernels.interface import Kernel, KernelInput, widened
from solo_hardneg.kernels.rank_bounds import sample_columns, sample_ranks, value_at_rank
from solo_hardneg.kernels.triton import loops
from solo_hardneg.negatives.ranks import top_columns

Bounds = tuple[Tensor, Tensor, int]  # (n,) lower, (n,) upper, most candidates between them

WARPS, STAGES = 4, 2
_MAX_LISTED = 2**22  # candidates listed at a time if all candidates of a query are
_PROGRAMS = 264  # twice the number of multiprocessors of an H100 or H200


def tile_sizes(dimensions: int, half: bool) -> dict[str, int]:
    """Returns the sizes of a tile, for which the device code is compiled.

    A tile's queries, and its candidates twice, must fit into the shared memory of an A100, 163 KiB.

    Args:
        dimensions: D.
        half: Whether queries or candidates have 16 bits.
    """
    padded = max(16, 2 ** math.ceil(math.log2(dimensions)))
    number = 64 if half else 32
    if padded > 256:
        number = 32 if half and padded <= 512 else 16
    return {"D": dimensions, "PADDED": padded, "BN": number, "BM": number}


@dataclass(frozen=True)
class BandEdges:
    """The first candidate of a band and the first one behind it, for n queries.

    Attributes:
        values: (2, n) float32 similarities.
        columns: (2, n) int32 columns.
    """

    values: Tensor
    columns: Tensor


@dataclass(frozen=True)
class SplitLists:
    """Candidates of n queries between two bounds, one list for each split of the candidates.

    Attributes:
        values: (n, splits, capacity) float32 similarities.
        columns: (n, splits, capacity) int32 columns.
        sizes, above: (n, splits) int32 numbers of candidates between the bounds and above them.
    """

    values: Tensor
    columns: Tensor
    sizes: Tensor
    above: Tensor

    @property
    def capacity(self) -> int:
        """Maximum length of a list."""
        return self.values.shape[2]


def triton_kernel(inputs: KernelInput) -> Kernel:
    """Makes the kernel for an input; the chunked one if the hardest lie in two ranges of ranks."""
    ranks = inputs.ranks
    holed = ranks is not None and not ranks.inside and ranks.past < len(inputs.vectors)
    if holed and inputs.hardest:
        return chunked_kernel(inputs)
    return TritonKernel(inputs)


class TritonKernel(Kernel):
    """Computes bands, or all candidates, in three passes."""

    def __init__(self, inputs: KernelInput) -> None:
        self.inputs = inputs
        self.query, self.vectors = inputs.query, inputs.vectors
        if os.environ.get("TRITON_INTERPRET") == "1":  # which multiplies bfloat16 as integers
            self.query, self.vectors = widened(self.query), widened(self.vectors)
        self.width, self.dimensions = self.vectors.shape
        self.block = max(1, min(len(self.query), 4096))
        half = max(self.query.element_size(), self.vectors.element_size()) == 2
        self.tile = tile_sizes(self.dimensions, half)
        self.scales = [(1 + inputs.beta) / inputs.temperature, inputs.beta / inputs.temperature]
        ranks = inputs.ranks
        self.first = 0 if ranks is None else ranks.first
        self.past = self.width if ranks is None else ranks.past
        self.inside = ranks is None or ranks.inside

    # ------------------------------------------------------------------ the two stages

    def reduce(self, rows: slice) -> LogSums:
        query = self.query[rows]
        number = len(query)
        self.edges = self._edges(query, self.first, self.past)
        splits = self._splits(number)
        shape = 2, splits, number
        tops, totals = (torch.empty(shape, device=query.device) for _ in range(2))
        self._launch(loops.sum_exponentials, query, splits, (tops, totals))
        self.logs = torch.logsumexp(totals.log() + tops, dim=1)
        weights = self.logs[1] if self.inputs.beta else None
        kept = self.width if self.inputs.ranks is None else self.inputs.ranks.kept(self.width)
        counts = torch.full((number,), kept, device=query.device)
        hardest = self._hardest(query) if self.inputs.hardest else None
        return LogSums(self.logs[0], weights, counts, hardest=hardest)

    def pull(
        self,
        rows: slice,
        total: Tensor,
        weights: Tensor | None = None,
        partners: Tensor | None = None,
        vectors_grad: Tensor | None = None,
    ) -> Tensor:
        query = self.query[rows]
        if weights is None:
            weights = torch.zeros_like(total)
        factors = torch.stack([total * self.scales[0], weights * self.scales[1]])
        splits = self._splits(len(query))
        pulled = torch.empty(splits, len(query), self.dimensions, device=query.device)
        self._launch(loops.pull_gradient, query, splits, (self.logs.contiguous(), factors, pulled))
        return pulled.sum(dim=0)

    # ------------------------------------------------------------------ edges

    def _edges(self, query: Tensor, first: int, past: int) -> BandEdges:
        """Returns the candidates at two ranks; undefined at the ranks 0 and M."""
        shape = 2, len(query)
        found = BandEdges(
            torch.zeros(shape, device=query.device),
            torch.zeros(shape, dtype=torch.int32, device=query.device),
        )
        for place, rank in enumerate((first, past)):
            if 0 < rank < self.width:
                self._find_edge(query, rank, found.values[place], found.columns[place])
        return found

    def _find_edge(self, query: Tensor, rank: int, values: Tensor, columns: Tensor) -> None:
        """Writes the candidates at a rank to ``values`` and ``columns`` (n,)."""
        done = torch.zeros(len(query), dtype=torch.int32, device=query.device)
        bounds = self._bounds(query, rank)
        if bounds is not None:
            done = self._find_in_lists(query, rank, bounds, values, columns, done)
        at_a_time = max(1, _MAX_LISTED // self.width)
        for start in range(0, len(query), at_a_time):
            some = slice(start, start + at_a_time)
            self._find_in_lists(query[some], rank, None, values[some], columns[some], done[some])

    def _find_in_lists(
        self,
        query: Tensor,
        rank: int,
        bounds: Bounds | None,
        values: Tensor,
        columns: Tensor,
        done: Tensor,
    ) -> Tensor:
        """Lists candidates and writes those at a rank, except for queries that are ``done`` (n,).

        Returns:
            (n,) int, 1 if the lists held the rank, and 0 if the result is wrong.
        """
        lists = self._list(query, bounds, done)
        from_top = (self.width - rank) - lists.above.sum(dim=1)
        held = (from_top >= 1) & (from_top <= lists.sizes.sum(dim=1))
        held &= (lists.sizes <= lists.capacity).all(dim=1)
        loops.find_edge[(len(query),)](
            lists.values, lists.columns, lists.sizes, from_top.int(), values, columns, done,
            lists.sizes.shape[1], lists.capacity, BLOCK=256, num_warps=WARPS,
        )  # fmt: skip
        return held.int()

    def _bounds(self, query: Tensor, rank: int) -> Bounds | None:
        """Returns bounds on the similarity at a rank; ``None`` if M is too small for a sample."""
        number = max(512, min(4096, self.width // 8))
        if number >= self.width:
            return None
        columns = sample_columns(self.width, number, query.device)
        similarity = widened(query) @ widened(self.vectors[columns].to(query)).T
        lower, upper, between = sample_ranks(rank, rank + 1, self.width, number)
        low = value_at_rank(similarity, lower, -math.inf)
        return low, value_at_rank(similarity, upper, math.inf), between

    def _list(self, query: Tensor, bounds: Bounds | None, done: Tensor) -> SplitLists:
        """Lists the candidates between the bounds, or all without.

        Lists of queries that are ``done`` (n,) may stay empty.
        """
        splits = self._splits(len(query))
        per_split = self._per_split(splits)
        if bounds is None:
            lower = torch.full((len(query),), -math.inf, device=query.device)
            upper, capacity = -lower, per_split
        else:
            # A split may hold twice its share of them, and five standard deviations more.
            lower, upper, between = bounds
            share = between / splits
            capacity = min(per_split, math.ceil(2 * share + 5 * math.sqrt(share)) + 16)
        shape = len(query), splits
        lists = SplitLists(
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
        """Returns (n, s) int64 columns of the hardest kept candidates, hardest first."""
        past = self.past if self.inside else self.first
        least = max(0, past - self.inputs.hardest)
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
        # Sorted by column, so that top_columns breaks ties by column.
        columns, order = columns.sort(dim=1)
        return columns.gather(1, top_columns(values.gather(1, order), number)).long()

    # ------------------------------------------------------------------ launching

    def _launch(self, loop: Any, query: Tensor, splits: int, tensors: tuple[Tensor, ...]) -> None:
        """Launches a pass over the kept candidates."""
        loop[self._grid(len(query), splits)](
            query, self.vectors, self.edges.values, self.edges.columns, *tensors,
            len(query), self.width, self._per_split(splits), splits, *self.scales,
            *query.stride(), *self.vectors.stride(),
            HAS_FIRST=self.first > 0, HAS_PAST=self.past < self.width, INSIDE=self.inside,
            TWO=self.inputs.beta > 0, **self._sizes(),
        )  # fmt: skip

    def _sizes(self) -> dict[str, int]:
        return {**self.tile, "num_warps": WARPS, "num_stages": STAGES}

    def _splits(self, queries: int) -> int:
        """Returns the number of splits of the candidates, enough to occupy all multiprocessors."""
        wanted = max(1, _PROGRAMS // math.ceil(queries / self.tile["BN"]))
        return min(wanted, math.ceil(self.width / self.tile["BM"]))

    def _per_split(self, splits: int) -> int:
        return math.ceil(math.ceil(self.width / self.tile["BM"]) / splits) * self.tile["BM"]

    def _grid(self, queries: int, splits: int) -> tuple[int, int]:
        return math.ceil(queries / self.tile["BN"]), splits
