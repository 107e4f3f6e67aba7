"""What one thread found for some queries, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.kernels import numba_loops as loops
from solo_hardneg.kernels import numba_sums as summing
from solo_hardneg.kernels.chunked import Running, Weights
from solo_hardneg.kernels.numba_mix import Mixture, Vectors, hardest_places
from solo_hardneg.kernels.problem import Own, blocks
from solo_hardneg.kernels.threads import run_each
from solo_hardneg.negatives.mix import Uniform

_CANDIDATES = 1024  # at a time, so that they stay in the cache


class Positives:
    """The candidates of n queries' own images, which are their positives and no negatives.

    Attributes:
        columns: (n, v) int64, ascending; the query itself is one of them.
        values: (n, v) their similarities.
        weights: (n, v) softmax(s/τ) over the positives.
        log: (n,) log Σ exp(s/τ) over them.
    """

    def __init__(self, own: Own, rows: slice) -> None:
        self.columns, self.itself = own.columns[rows], own.itself[rows]
        self.values = torch.empty(self.columns.shape)

    def hide(self, tile: Tensor, start: int, width: int) -> None:
        """Puts -inf in their places in a tile of similarities, the columns from ``start`` on."""
        loops.hide_own(tile.numpy(), self.columns.numpy(), start, width, self.values.numpy())

    def sum_up(self, temperature: float) -> None:
        """Sets ``weights`` and ``log``, once all tiles are seen."""
        found = Weights(self.values.masked_fill_(self.itself, -torch.inf), 1 / temperature)
        self.weights, self.log = found.weight.mul_(found.share / temperature), found.log


class Part:
    """Some queries' sums.

    Attributes:
        query: (n, D).
        columns: (n, k) int32, the listed candidates that are kept, in ascending order.
        weights: (n, k) of the queries in the gradient of these candidates, set by :meth:`weigh`.
        sums: one for each exponent.
        positives: those of the queries, where they are among the candidates.
    """

    def __init__(
        self,
        query: Tensor,
        columns: Tensor,
        values: Tensor,
        scales: Sequence[float],
        running: Sequence[Running],
        positives: Positives | None,
    ) -> None:
        self.query, self.columns, self.values, self.scales = query, columns, values, scales
        self.running, self.positives = running, positives
        self.mixture: Mixture | None = None

    def sum_up(self) -> None:
        """Sets ``sums``. Its many small steps are for one thread, which nobody interrupts."""
        self.sums = [Sum(Weights(self.values.clone(), scale)) for scale in self.scales]
        for one, run in zip(self.sums, self.running, strict=False):
            one.add_others(run)
        if self.mixture is not None:
            for one, scale in zip(self.sums, self.scales, strict=True):
                one.add_mixed(Weights(self.mixture.similarity.clone(), scale))

    def hardest(self, number: int) -> Tensor:
        """(n, s) int64, the columns of the hardest kept ones, hardest first."""
        places = torch.from_numpy(hardest_places(self.values, number))
        return self.columns.gather(1, places.long()).long()

    def mix(self, vectors: Vectors, hardest: int, uniform: Uniform) -> None:
        """Makes synthetic negatives, for the sums."""
        args = self.query, vectors, self.columns, self.values, hardest, uniform
        self.mixture = Mixture(*args)

    def weigh(self, derivatives: Sequence[Tensor], of_positives: Tensor | None) -> None:
        """Turns the sums into the weights of the gradient, again in small steps.

        Args:
            derivatives: (n, 1) what the weights of each sum are multiplied by.
            of_positives: (n,) derivative of the loss to ``positives.log``.
        """
        self.pulled = pulled = torch.zeros_like(self.query)
        self.weights = torch.zeros_like(self.values)
        of_mixed = None if self.mixture is None else torch.zeros_like(self.mixture.similarity)
        for one, derivative in zip(self.sums, derivatives, strict=True):
            self.weights += one.weighted(one.listed, derivative)
            if of_mixed is not None and one.mixed is not None:
                of_mixed += one.weighted(one.mixed, derivative)
            if one.others is not None:
                pulled += derivative * one.share(one.others.log()) * one.others.pulled()
        self.of_mixed = of_mixed
        if self.positives is not None and of_positives is not None:
            self.positives.weights *= of_positives[:, None]

    def pull(self, vectors: Tensor) -> Tensor:
        """(n, D) the gradient of the queries; ``vectors`` (M, D) are the candidates."""
        weights = self.weights
        if self.mixture is not None and self.of_mixed is not None:
            weights = weights.clone()  # what synthetic negatives are made of is constant
            self.pulled += self.mixture.pull(self.of_mixed, weights)
        summed = [(self.columns, weights)]
        if self.positives is not None:
            summed.append((self.positives.columns, self.positives.weights))
        add_weighted(vectors, summed, self.pulled)
        return self.pulled


class Sum:
    """One exponent's sum over the listed, over the others, and over synthetic negatives.

    Attributes:
        log: (n,) the logarithm of all together.
    """

    def __init__(self, listed: Weights) -> None:
        self.listed, self.log = listed, listed.log
        self.others: Running | None = None
        self.mixed: Weights | None = None

    def add_others(self, others: Running) -> None:
        """Adds those that are not listed."""
        self.others, self.log = others, torch.logaddexp(self.log, others.log())

    def add_mixed(self, mixed: Weights) -> None:
        """Adds synthetic ones."""
        self.mixed, self.log = mixed, torch.logaddexp(self.log, mixed.log)

    def share(self, log: Tensor) -> Tensor:
        """(n, 1) the share of a part of the sum in it."""
        return (log - self.log).exp_()[:, None]

    def weighted(self, weights: Weights, derivative: Tensor) -> Tensor:
        """The weights of a part, which it overwrites, as shares of all, by ``derivative``."""
        return weights.weight.mul_(derivative * weights.share * self.share(weights.log))


def add_weighted(vectors: Tensor, summed: Sequence[tuple[Tensor, Tensor]], pulled: Tensor) -> None:
    """Adds Σ weight·vector over some of the candidates (M, D) to ``pulled`` (n, D).

    ``summed`` are pairs of columns (n, k), in ascending order, and weights (n, k).
    """
    summed = [(columns, weights) for columns, weights in summed if columns.shape[1]]
    turned = None
    if not vectors.is_contiguous():
        room = np.empty((_CANDIDATES, vectors.shape[1]), np.float32)
        turned = vectors.T.contiguous(), room  # nothing to do in a host's layout
    cursors = [np.zeros(len(pulled), np.int64) for _ in summed]
    for start in range(0, len(vectors) if summed else 0, _CANDIDATES):
        end = min(start + _CANDIDATES, len(vectors))
        if turned is None:
            tile = vectors[start:end].numpy()
        else:
            dimensions, room = turned
            tile = room[: end - start]
            summing.turn(dimensions[:, start:end].numpy(), tile)
        for (columns, weights), cursor in zip(summed, cursors, strict=True):
            arrays = columns.numpy(), weights.numpy(), tile, start, cursor, pulled.numpy()
            summing.gather(*arrays)


def scatter(parts: Sequence[Part], vectors_grad: Tensor) -> None:
    """Adds the gradient of the candidates (M, D), once :meth:`Part.weigh` has been called."""
    lists = [(part.query, part.columns, part.weights) for part in parts]
    lists += [
        (part.query, part.positives.columns, part.positives.weights)
        for part in parts
        if part.positives is not None
    ]

    def of_some(rows: slice) -> None:
        for query, columns, weights in lists:
            arrays = columns.numpy(), weights.numpy(), query.numpy()
            summing.scatter(*arrays, rows.start, rows.stop, vectors_grad.numpy())

    width = len(vectors_grad)
    run_each(of_some, list(blocks(width, -(-width // torch.get_num_threads()))))
