"""Synthetic negatives on a CPU without their vectors.

Of h = (α·nₐ + (1-α)·n_b)/‖·‖ the loss needs q·h, for which products of nₐ, n_b and q do, and the
gradient of the query is a sum over the hardest themselves. So N·k·D numbers are never written; with
s = k = 1024 (Dong et al. 2023, section 4.4) these would be more than the queue's similarities.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels import chunked
from solo_hardneg.kernels import numba_loops as loops
from solo_hardneg.negatives.mix import Mix, Uniform


class NumbaMixture:
    """The synthetic negatives of n queries; see :class:`~solo_hardneg.kernels.problem.Mixture`."""

    def __init__(
        self,
        query: Tensor,
        vectors: Tensor,
        columns: Tensor,
        counts: Tensor,
        mix: Mix,
        uniform: Uniform,
    ) -> None:
        self.query, self.vectors, self.columns = query, vectors, columns
        self.present = mix.present(counts)
        drawn = mix.draw(counts, uniform)
        none = torch.zeros(len(query), 0, dtype=torch.int64)
        first, second, alpha = drawn.pairs or (none, none, none.float())
        partner, gamma = drawn.queries or (none, none.float())
        self.drawn = [t.numpy() for t in (first, second, alpha, partner, gamma)]
        self.similarity = torch.empty(len(query), self.present.shape[1])
        self.norms = np.empty(self.similarity.shape, np.float32)
        arrays = columns.numpy(), *self.drawn, self.similarity.numpy(), self.norms
        loops.mix(query.numpy(), vectors.numpy(), *arrays)

    def pull(self, derivatives: Tensor) -> Tensor:
        """(n, D) the gradient of the queries, from (n, k) that of the similarities."""
        weights, own = torch.zeros(self.columns.shape), torch.zeros(len(self.query))
        loops.unmix(derivatives.numpy(), self.norms, *self.drawn, weights.numpy(), own.numpy())
        return weighted_sum(self.vectors, self.columns, weights) + own[:, None] * self.query


def weighted_sum(vectors: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """(n, D) Σ weight·vector over some columns (n, k) of the candidates."""
    if columns.shape[1] == 0:
        return weights.new_zeros(len(weights), vectors.shape[1])
    if vectors.is_contiguous():
        return chunked.weighted_sum(vectors, columns, weights)
    dimensions = vectors.T.contiguous()  # as a host keeps its queue, and then nothing to do
    out = weights.new_empty(len(weights), vectors.shape[1])
    loops.gather(*(array.numpy() for array in (columns, weights, dimensions, out)))
    return out
