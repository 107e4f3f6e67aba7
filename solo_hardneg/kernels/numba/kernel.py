"""The fastest kernel on a CPU, for policies that ranks alone decide.

In column tiles that stay in the cache, PyTorch computes similarities and compiled loops list the
few candidates of each query that may decide: those between two bounds from a sample. Among them the
band is found exactly, by (similarity, column). A narrow band lies in its list. Of a wide one the
list holds what is dropped, and all other candidates enter an online softmax as they pass, as in
:class:`~solo_hardneg.kernels.chunked.EverythingKernel`.

If a list misses candidates (a sample can mislead), the chunked kernel takes over the block. So the
result never depends on luck.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from solo_hardneg.kernels.chunked import BlockKernel, OnlineSoftmax, add_tile, chunked_kernel
from solo_hardneg.kernels.formula import LogSums
from solo_hardneg.kernels.interface import Kernel, KernelInput, blocks
from solo_hardneg.kernels.numba.candidate_lists import CandidateLists, SampledBounds
from solo_hardneg.kernels.numba.listed_ranks import ListedRanks, choose_listed_ranks
from solo_hardneg.kernels.numba.mix import Sources, mix_sources
from solo_hardneg.kernels.numba.query_shard import InBatchPositives, QueryShard, add_vectors_grad
from solo_hardneg.kernels.numba.threads import parallel_map
from solo_hardneg.negatives.mix import Mix

_TILE = 2048  # columns
_SHARD_SIZE = 2**18  # similarities that a thread holds, which stay in its cache
_MIN_ROWS = 32  # matrix products with fewer rows are slow
_BLOCK_SIZE = 2**21  # candidates that the lists of a block keep


def numba_kernel(inputs: KernelInput) -> Kernel:
    """Makes the kernel for an input; the chunked one if lists would be long."""
    listed = choose_listed_ranks(inputs)
    if listed is None or (listed.others and not (inputs.constants and inputs.own is None)):
        return chunked_kernel(inputs)
    return ListKernel(inputs, listed)


class ListKernel(BlockKernel):
    """Finds bands in lists; threads share the queries of a block."""

    def __init__(self, inputs: KernelInput, listed: ListedRanks) -> None:
        super().__init__(inputs)
        self.listed = listed
        kept = 0 if listed.others else listed.past - listed.first
        self.block = min(len(self.query), max(512, _BLOCK_SIZE // max(1, kept)))
        self.bounds = SampledBounds(listed, self.vectors)
        self.fallback: Kernel | None = None
        self.sources: Sources | None = None
        mix = inputs.mix
        # A subclass may mix otherwise.
        if type(mix) is Mix and mix.detach and mix.adds == mix.pairs + mix.queries:
            self.sources = mix_sources(self.vectors)

    def reduce(self, rows: slice) -> LogSums:
        number = rows.stop - rows.start
        share = -(-number // torch.get_num_threads())
        size = max(_MIN_ROWS, min(_SHARD_SIZE // min(_TILE, len(self.vectors)), share))
        shards = parallel_map(
            self._make_shard,
            [slice(rows.start + p.start, rows.start + p.stop) for p in blocks(number, size)],
        )
        self.shards = [shard for shard in shards if shard is not None]
        self.fallback = None
        if len(self.shards) < len(shards):
            self.fallback = chunked_kernel(self.inputs)
            return self.fallback.reduce(rows)
        for shard in self.shards:
            shard.compute_sums()
            if shard.positives is not None:
                shard.positives.compute_sums(self.inputs.temperature)
        logs = zip(*([part.log for part in shard.sums] for shard in self.shards), strict=True)
        width, ranks, mixed = len(self.vectors), self.inputs.ranks, 0
        if self.sources is not None and self.inputs.mix is not None:
            mixed = self.inputs.mix.adds
        counts = torch.full((number,), mixed + (width if ranks is None else ranks.kept(width)))
        positives = [shard.positives.log for shard in self.shards if shard.positives is not None]
        hardest = None
        if self.inputs.hardest and self.sources is None:
            hardest = torch.cat([shard.hardest(self.inputs.hardest) for shard in self.shards])
        return self._log_sums(
            [torch.cat(log) for log in logs],
            counts,
            hardest=hardest,
            partners=torch.cat(positives) if positives else None,
            mixed=mixed,
        )

    def _make_shard(self, rows: slice) -> QueryShard | None:
        """Returns what lists find for some queries; ``None`` if a list misses candidates."""
        query = self.query[rows].contiguous()
        lists = CandidateLists(query, self.bounds)
        others, positives = [], None
        if self.listed.others:
            others = [OnlineSoftmax(query, scale, self.inputs.gradient) for scale in self.scales]
        if self.inputs.own is not None:
            positives = InBatchPositives(self.inputs.own, rows)
        self._scan(query, lists, others, positives)
        kept = lists.select()
        if kept is None:
            return None
        shard = QueryShard(query, *kept, self.scales, others, positives)
        if self.sources is not None and self.inputs.numbers is not None:
            shard.mix(self.sources, self.inputs.hardest, self.inputs.numbers.rows(rows))
        return shard

    def _scan(
        self,
        query: Tensor,
        lists: CandidateLists,
        others: list[OnlineSoftmax],
        positives: InBatchPositives | None,
    ) -> None:
        """Passes once over all candidates."""
        width = len(self.vectors)
        tile = min(_TILE, width)
        # Padded to a multiple of eight columns, which the loops check together.
        padded = query.new_zeros(len(query), -(-tile // 8) * 8)
        similarity = padded[:, :tile]
        for start in range(0, width, tile):
            # The last tile overlaps the one before, whose columns it skips. At full width it rounds
            # alike, so that equal vectors have equal similarities everywhere.
            at = min(start, width - tile)
            vectors = self.vectors[at : at + tile]
            torch.mm(query, vectors.T, out=similarity)
            if positives is not None:
                positives.mask(padded, at, tile)
            lists.add(padded, tile, start - at, start)
            add_tile(others, similarity, vectors)

    def pull(
        self,
        rows: slice,
        total: Tensor,
        weights: Tensor | None = None,
        partners: Tensor | None = None,
        vectors_grad: Tensor | None = None,
    ) -> Tensor:
        if self.fallback is not None:
            return self.fallback.pull(rows, total, weights, partners, vectors_grad)
        sizes = [len(shard.query) for shard in self.shards]
        split = (factor.split(sizes) for factor in self._softmax_factors(total, weights))
        none: Sequence[Tensor | None] = [None] * len(sizes)
        positives = none if partners is None else partners.split(sizes)
        for shard, factors, positive in zip(
            self.shards, zip(*split, strict=True), positives, strict=True
        ):
            shard.compute_weights(factors, positive)
        pulled = torch.cat(parallel_map(lambda shard: shard.pull(self.vectors), self.shards))
        if vectors_grad is not None:
            add_vectors_grad(self.shards, vectors_grad)
        return pulled
