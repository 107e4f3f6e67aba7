"""Synthetic negatives on a CPU without their vectors.

Of h = (α·nₐ + (1-α)·n_b)/‖·‖ the loss needs q·h, for which products of nₐ, n_b and q do, and the
gradient of the query is a sum over the hardest themselves. So N·k·D numbers are never written; with
s = k = 1024 (Dong et al. 2023, section 4.4) these would be more than the queue's similarities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels import numba_loops as loops
from solo_hardneg.kernels import numba_mix_loops as mix_loops
from solo_hardneg.negatives.mix import Uniform


@dataclass(frozen=True)
class Vectors:
    """The candidates (M, D), each in one piece, and their squared norms (M,)."""

    rows: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of(vectors: Tensor) -> Vectors:
        """Those of candidates of any strides."""
        rows = vectors.contiguous().numpy()
        squares = np.empty(len(rows), np.float32)
        mix_loops.squares(rows, squares)
        return Vectors(rows, squares)


def hardest_places(values: Tensor, number: int) -> np.ndarray:
    """(n, s) int32, where the hardest of each row stand, hardest first; ``number`` or all."""
    places = np.empty((len(values), min(number, values.shape[1])), np.int32)
    loops.order(values.numpy(), places)
    return places


class Mixture:
    """The synthetic negatives of n queries, constants but for the similarity.

    Attributes:
        similarity: (n, k + k′) of the query to each of them.
    """

    def __init__(
        self,
        query: Tensor,
        vectors: Vectors,
        columns: Tensor,
        values: Tensor,
        hardest: int,
        uniform: Uniform,
    ) -> None:
        """Mixes.

        Args:
            query: (n, D).
            vectors: the candidates.
            columns, values: (n, l) int32 and float32, listed candidates and their similarities.
            hardest: how many of them are mixed, s.
            uniform: what was drawn for these queries.
        """
        places = hardest_places(values, hardest)
        self.query = query
        made = uniform.pairs.shape[2] + uniform.queries.shape[2]
        self.similarity = torch.empty(len(query), made)
        self.norms = np.empty(self.similarity.shape, np.float32)
        self.drawn = places, _arrays(uniform.pairs), _arrays(uniform.queries)
        given = query.numpy(), vectors.rows, vectors.squares, columns.numpy(), values.numpy()
        mix_loops.mix(*given, *self.drawn, self.similarity.numpy(), self.norms)

    def pull(self, derivatives: Tensor, weights: Tensor) -> Tensor:
        """Adds the gradient of the queries to ``weights`` (n, l) of what is listed.

        Args:
            derivatives: (n, k + k′) of the loss to the similarities.
            weights: (n, l).

        Returns:
            (n, D) what comes to the gradient by the queries' own share.
        """
        own = torch.zeros(len(self.query))
        arrays = weights.numpy(), own.numpy()
        mix_loops.unmix(derivatives.numpy(), self.norms, *self.drawn, *arrays)
        return own[:, None] * self.query


def _arrays(drawn: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(numbers.numpy() for numbers in drawn)
