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

from collections.abc import Sequence

import torch
from torch import Tensor

from solo_hardneg.kernels.chunked import Block, Running, chunked
from solo_hardneg.kernels.listing import Listing, listing_of
from solo_hardneg.kernels.numba_lists import Bounds, Lists
from solo_hardneg.kernels.numba_mix import Vectors
from solo_hardneg.kernels.numba_part import Part, Positives, scatter
from solo_hardneg.kernels.problem import Problem, Pulls, Sums, blocks
from solo_hardneg.kernels.threads import run_each

_TILE = 2048  # columns of similarities at a time
_AT_ONCE = 2**18  # similarities that a thread holds, which stay in its cache
_LEAST_ROWS = 32  # fewer make matrix products slow
_KEPT = 2**21  # numbers that a block may keep


def numba_kernel(problem: Problem) -> Block:
    """The kernel for a problem; the chunked one where lists would be long."""
    listing = listing_of(problem)
    if listing is None or (listing.others and not (problem.constants and problem.own is None)):
        return chunked(problem)
    return ListKernel(problem, listing)


class ListKernel(Block):
    """Bands by lists; threads share out the queries of a block."""

    def __init__(self, problem: Problem, listing: Listing) -> None:
        super().__init__(problem)
        self.listing = listing
        kept = 0 if listing.others else listing.past - listing.first
        self.block = min(len(self.query), max(512, _KEPT // max(1, kept)))
        self.bounds = Bounds(listing, self.vectors)
        self.other: Block | None = None  # what a block is left to where lists fail
        self.mixed: Vectors | None = None
        if problem.mix is not None and problem.mix.detach:
            self.mixed = Vectors.of(self.vectors)

    def reduce(self, rows: slice) -> Sums:
        number = rows.stop - rows.start
        share = -(-number // torch.get_num_threads())
        size = max(_LEAST_ROWS, min(_AT_ONCE // min(_TILE, len(self.vectors)), share))
        within = [slice(rows.start + p.start, rows.start + p.stop) for p in blocks(number, size)]
        parts = run_each(self._part, within)
        self.parts = [part for part in parts if part is not None]
        self.other = None
        if len(self.parts) < len(parts):
            self.other = chunked(self.problem)
            return self.other.reduce(rows)
        for part in self.parts:
            part.sum_up()
            if part.positives is not None:
                part.positives.sum_up(self.problem.temperature)
        logs = zip(*([one.log for one in part.sums] for part in self.parts), strict=True)
        width, ranks, made = len(self.vectors), self.problem.ranks, 0
        if self.mixed is not None and self.problem.mix is not None:
            made = self.problem.mix.pairs + self.problem.mix.queries
        counts = torch.full((number,), made + (width if ranks is None else ranks.kept(width)))
        positives = [part.positives.log for part in self.parts if part.positives is not None]
        hardest = None
        if self.problem.hardest and self.mixed is None:
            hardest = torch.cat([part.hardest(self.problem.hardest) for part in self.parts])
        return self._sums(
            [torch.cat(log) for log in logs],
            counts,
            hardest=hardest,
            partners=torch.cat(positives) if positives else None,
            mixed=made,
        )

    def _part(self, rows: slice) -> Part | None:
        """What is found for some queries; ``None`` where lists fail."""
        query = self.query[rows].contiguous()
        lists = Lists(query, self.bounds)
        running, positives = [], None
        if self.listing.others:
            running = [Running(query, scale, self.problem.gradient) for scale in self.scales]
        if self.problem.own is not None:
            positives = Positives(self.problem.own, rows)
        self._pass(query, lists, running, positives)
        kept = lists.kept()
        if kept is None:
            return None
        part = Part(query, *kept, self.scales, running, positives)
        if self.mixed is not None and self.problem.uniform is not None:
            part.mix(self.mixed, self.problem.hardest, self.problem.uniform.rows(rows))
        return part

    def _pass(
        self, query: Tensor, lists: Lists, running: list[Running], positives: Positives | None
    ) -> None:
        """Goes once through all candidates."""
        width = len(self.vectors)
        tile = min(_TILE, width)
        # Room for whole eights, which the loops look at together.
        room = query.new_zeros(len(query), -(-tile // 8) * 8)
        similarity = room[:, :tile]
        for start in range(0, width, tile):
            # The last tile is as wide as the others, so that equal vectors have equal similarities
            # wherever they stand; what it repeats is skipped.
            at = min(start, width - tile)
            vectors = self.vectors[at : at + tile]
            torch.mm(query, vectors.T, out=similarity)
            if positives is not None:
                positives.hide(room, at, tile)
            lists.add(room, tile, start - at, start)
            for run in running[1:]:
                run.add(similarity.clone(), vectors)
            for run in running[:1]:
                run.add(similarity, vectors)

    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        if self.other is not None:
            return self.other.pull(rows, pulls, vectors_grad)
        sizes = [len(part.query) for part in self.parts]
        derivatives = zip(*(d.split(sizes) for d in self._derivatives(pulls)), strict=True)
        none: Sequence[Tensor | None] = [None] * len(sizes)
        positives = none if pulls.partners is None else pulls.partners.split(sizes)
        for part, of_sums, of_positives in zip(self.parts, derivatives, positives, strict=True):
            part.weigh(of_sums, of_positives)
        pulled = torch.cat(run_each(lambda part: part.pull(self.vectors), self.parts))
        if vectors_grad is not None:
            scatter(self.parts, vectors_grad)
        return pulled
