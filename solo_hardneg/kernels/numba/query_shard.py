"""The sums and the gradient of the queries that one thread handles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels.chunked import OnlineSoftmax, SoftmaxWeights
from solo_hardneg.kernels.interface import blocks
from solo_hardneg.kernels.numba import loops
from solo_hardneg.kernels.numba.mix import Sources, SyntheticNegatives, hardest_positions
from solo_hardneg.kernels.numba.threads import parallel_map
from solo_hardneg.negatives.synthesis import RandomNumbers

_CANDIDATE_TILE = 1024  # candidates at a time, which stay in the cache


class InBatchPositives:
    """The candidates of each query's own image, which are its positives in SimCLR.

    Args:
        own: (N, v) int64 and (N, v) bool, see :class:`~solo_hardneg.kernels.interface.KernelInput`.
        rows: The n queries.

    Attributes:
        columns: (n, v) int64, ascending; the query itself is one of them.
        values: (n, v) their similarities.
        weights: (n, v) softmax(s/τ)/τ over the positives.
        log: (n,) log Σ exp(s/τ) over them.
    """

    def __init__(self, own: tuple[Tensor, Tensor], rows: slice) -> None:
        self.columns, self.itself = (part[rows] for part in own)
        self.values = torch.empty(self.columns.shape)

    def mask(self, tile: Tensor, start: int, width: int) -> None:
        """Moves their similarities out of a tile of columns from ``start``, leaving -inf."""
        loops.mask_own(tile.numpy(), self.columns.numpy(), start, width, self.values.numpy())

    def compute_sums(self, temperature: float) -> None:
        """Sets ``weights`` and ``log``, after all tiles."""
        softmax = SoftmaxWeights(self.values.masked_fill_(self.itself, -torch.inf), 1 / temperature)
        self.weights, self.log = softmax.weight.mul_(softmax.share / temperature), softmax.log


class SplitSum:
    """log Σ exp(scale·s) over listed, other and synthetic candidates.

    Attributes:
        log: (n,) the logarithm of all three together.
    """

    def __init__(
        self, listed: SoftmaxWeights, others: OnlineSoftmax | None, mixed: SoftmaxWeights | None
    ) -> None:
        self.listed, self.others, self.mixed = listed, others, mixed
        self.log = listed.log
        if others is not None:
            self.log = torch.logaddexp(self.log, others.log())
        if mixed is not None:
            self.log = torch.logaddexp(self.log, mixed.log)

    def share(self, log: Tensor) -> Tensor:
        """Returns the (n, 1) share that a part contributes, given its logarithm (n,)."""
        return (log - self.log).exp_()[:, None]

    def normalise_(self, part: SoftmaxWeights, factor: Tensor) -> Tensor:
        """Turns a part's weights into shares of the whole sum, times a factor (n, 1), in place."""
        return part.weight.mul_(factor * part.share * self.share(part.log))


class QueryShard:
    """Some queries of a block.

    Args:
        query: (n, D) contiguous.
        columns: (n, k) int32, ascending, the listed candidates that are kept.
        values: (n, k) their similarities.
        scales: Factor of the similarity in each exponent.
        others: Sums over candidates that are not listed, one for each exponent; empty if these
            are dropped.
        positives: Positives of these queries, if they are candidates.

    Attributes:
        sums: One for each exponent.
        weights: (n, k) weights of the listed candidates in the gradient.
    """

    def __init__(
        self,
        query: Tensor,
        columns: Tensor,
        values: Tensor,
        scales: Sequence[float],
        others: Sequence[OnlineSoftmax],
        positives: InBatchPositives | None,
    ) -> None:
        self.query, self.columns, self.values, self.scales = query, columns, values, scales
        self.others, self.positives = others, positives
        self.mixed: SyntheticNegatives | None = None

    def mix(self, sources: Sources, hardest: int, numbers: RandomNumbers) -> None:
        """Adds synthetic negatives, to be included in the sums."""
        self.mixed = SyntheticNegatives(
            self.query, sources, self.columns, self.values, hardest, numbers
        )

    def hardest(self, number: int) -> Tensor:
        """Returns (n, s) int64 columns of the hardest kept candidates, hardest first."""
        positions = torch.from_numpy(hardest_positions(self.values, number))
        return self.columns.gather(1, positions.long()).long()

    def compute_sums(self) -> None:
        """Sets ``sums``. Many small steps, which one thread does without interruption."""
        others: Sequence[OnlineSoftmax | None] = self.others or [None] * len(self.scales)
        self.sums = []
        for scale, other in zip(self.scales, others, strict=True):
            listed, mixed = SoftmaxWeights(self.values.clone(), scale), None
            if self.mixed is not None:
                mixed = SoftmaxWeights(self.mixed.similarity.clone(), scale)
            self.sums.append(SplitSum(listed, other, mixed))

    def compute_weights(self, factors: Sequence[Tensor], positive_factor: Tensor | None) -> None:
        """Turns the sums into weights of the gradient, again in one thread.

        Args:
            factors: (n, 1) factor of each sum's softmax in the gradient.
            positive_factor: (n,) derivative of the loss by ``positives.log``.
        """
        self.pulled = torch.zeros_like(self.query)
        self.weights = torch.zeros_like(self.values)
        self.mixed_weights = None
        if self.mixed is not None:
            self.mixed_weights = torch.zeros_like(self.mixed.similarity)
        for part, factor in zip(self.sums, factors, strict=True):
            self.weights += part.normalise_(part.listed, factor)
            if self.mixed_weights is not None and part.mixed is not None:
                self.mixed_weights += part.normalise_(part.mixed, factor)
            if part.others is not None:
                self.pulled += factor * part.share(part.others.log()) * part.others.mean()
        if self.positives is not None and positive_factor is not None:
            self.positives.weights *= positive_factor[:, None]

    def pull(self, vectors: Tensor) -> Tensor:
        """Returns (n, D) the gradient of the queries, given the candidates (M, D)."""
        weights = self.weights
        if self.mixed is not None and self.mixed_weights is not None:
            weights = weights.clone()  # the candidates get no gradient through synthetic negatives
            self.pulled += self.mixed.pull(self.mixed_weights, weights)
        lists = [(self.columns, weights)]
        if self.positives is not None:
            lists.append((self.positives.columns, self.positives.weights))
        add_weighted_sums(vectors, lists, self.pulled)
        return self.pulled


def add_weighted_sums(
    vectors: Tensor, lists: Sequence[tuple[Tensor, Tensor]], pulled: Tensor
) -> None:
    """Adds Σ weight·vector over listed candidates to ``pulled`` (n, D).

    Args:
        vectors: (M, D) candidates, of any strides.
        lists: Pairs of (n, k) ascending columns and (n, k) weights.
        pulled: (n, D), changed in place.
    """
    lists = [(columns, weights) for columns, weights in lists if columns.shape[1]]
    transposed = None
    if not vectors.is_contiguous():
        # No copy for a queue (D, K), as solo-learn stores it.
        transposed = vectors.T.contiguous()
        room = np.empty((_CANDIDATE_TILE, vectors.shape[1]), np.float32)
    cursors = [np.zeros(len(pulled), np.int64) for _ in lists]
    for start in range(0, len(vectors) if lists else 0, _CANDIDATE_TILE):
        end = min(start + _CANDIDATE_TILE, len(vectors))
        if transposed is None:
            tile = vectors[start:end].numpy()
        else:
            tile = room[: end - start]
            loops.transpose(transposed[:, start:end].numpy(), tile)
        for (columns, weights), cursor in zip(lists, cursors, strict=True):
            arrays = columns.numpy(), weights.numpy(), tile, start, cursor, pulled.numpy()
            loops.gather_add(*arrays)


def add_vectors_grad(shards: Sequence[QueryShard], vectors_grad: Tensor) -> None:
    """Adds the gradient of the candidates (M, D), after :meth:`QueryShard.compute_weights`."""
    lists = [(shard.query, shard.columns, shard.weights) for shard in shards]
    lists += [
        (shard.query, shard.positives.columns, shard.positives.weights)
        for shard in shards
        if shard.positives is not None
    ]

    def add_rows(rows: slice) -> None:
        for query, columns, weights in lists:
            arrays = columns.numpy(), weights.numpy(), query.numpy()
            loops.scatter_add(*arrays, rows.start, rows.stop, vectors_grad.numpy())

    width = len(vectors_grad)
    parallel_map(add_rows, list(blocks(width, -(-width // torch.get_num_threads()))))
