"""Mixes synthetic negatives on a CPU without making their vectors.

Of h = (α·nₐ + (1-α)·n_b)/‖·‖ the loss needs only q·h, which follows from products of nₐ, n_b and q;
and the gradient of the query is a sum over the hardest negatives. So N·k·D numbers are never
written; with s = k = 1024 (Dong et al. 2023, section 4.4) they would outnumber the similarities to
the queue.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels.numba import loops, mix_loops
from solo_hardneg.negatives.synthesis import RandomNumbers

Sources = tuple[np.ndarray, np.ndarray]  # contiguous candidates (M, D), squared norms (M,)


def mix_sources(vectors: Tensor) -> Sources:
    """Prepares candidates (M, D) of any strides to be mixed."""
    rows = vectors.contiguous().numpy()
    squares = np.empty(len(rows), np.float32)
    mix_loops.squared_norms(rows, squares)
    return rows, squares


def hardest_positions(values: Tensor, number: int) -> np.ndarray:
    """Returns (n, s) int32 positions of the largest values in each row, largest first.

    s is ``number``, or the length of a row if that is less.
    """
    positions = np.empty((len(values), min(number, values.shape[1])), np.int32)
    loops.sort_hardest(values.numpy(), positions)
    return positions


class SyntheticNegatives:
    """Synthetic negatives of n queries, constant except for their similarity.

    Args:
        query: (n, D) queries.
        sources: The candidates.
        columns, values: (n, l) int32 and float32, listed candidates and their similarities.
        hardest: s, number of hardest ones to mix.
        numbers: Random numbers for these queries.

    Attributes:
        similarity: (n, k + k′) similarities of the query to them.
    """

    def __init__(
        self,
        query: Tensor,
        sources: Sources,
        columns: Tensor,
        values: Tensor,
        hardest: int,
        numbers: RandomNumbers,
    ) -> None:
        self.query = query
        pairs, queries = numbers.uniform["pairs"], numbers.uniform["queries"]
        number = pairs.shape[2] + queries.shape[2]
        self.similarity = torch.empty(len(query), number)
        self.norms = np.empty(self.similarity.shape, np.float32)
        positions = hardest_positions(values, hardest)
        self.drawn = positions, _arrays(pairs), _arrays(queries)
        given = query.numpy(), *sources, columns.numpy(), values.numpy()
        mix_loops.mix(*given, *self.drawn, self.similarity.numpy(), self.norms)

    def pull(self, derivatives: Tensor, weights: Tensor) -> Tensor:
        """Adds their part of the query's gradient to the weights of listed candidates.

        Args:
            derivatives: (n, k + k′) of the loss by the similarities.
            weights: (n, l), changed in place.

        Returns:
            (n, D) the rest of the gradient, through the query's own share in them.
        """
        own = torch.zeros(len(self.query))
        arrays = weights.numpy(), own.numpy()
        mix_loops.unmix(derivatives.numpy(), self.norms, *self.drawn, *arrays)
        return own[:, None] * self.query


def _arrays(drawn: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(numbers.numpy() for numbers in drawn)
