"""Statistics by difficulty: the ranks of negatives, and sums over percentiles of rank.

Difficulty is the rank of a negative's similarity among those of its query, as in
:mod:`solo_hardneg.negatives.ranks`: percentile b of B is the band [b/B, (b+1)/B]. Sums come with
the number of values, so that those of several batches and processes add up. NaN means unknown, and
is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_hardneg.negatives.ranks import band_ranks

HARD = 0.05  # Cai et al. 2020, section 3: the hardest 5 % are called hard, the others easy

# Per number c of negatives: (n,) the queries with c negatives, and their (n, c) values, easiest
# negative first.
Ordered = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ranking:
    """The negatives of N queries by difficulty.

    Attributes:
        columns: (N, M) int, the columns of the pool, first those that are no negatives of the
            query, then its negatives from easiest to hardest.
        counts: (N,) int, number of negatives of each query.
    """

    columns: Tensor
    counts: Tensor

    def by_count(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries with the same number c of negatives: (n,) queries, (n, c) columns."""
        width = self.columns.shape[1]
        for count in torch.unique(self.counts).tolist():
            queries = (self.counts == count).nonzero()[:, 0]
            rows = self.columns if len(queries) == len(self.columns) else self.columns[queries]
            yield queries, rows[:, width - count :]

    def order(self, values: Tensor) -> Ordered:
        """Sorts values (N, M) of the pool's columns by difficulty."""
        ordered = []
        for queries, columns in self.by_count():
            rows = values if len(queries) == len(values) else values[queries]
            ordered.append((queries, rows.gather(1, columns)))
        return ordered


def rank(similarity: Tensor, present: Tensor | None = None) -> Ranking:
    """Ranks negatives by (similarity, index), ascending, as bands do.

    Args:
        similarity: (N, M).
        present: (N, M) bool, which candidates are negatives; ``None``: all.
    """
    if present is None:
        present = torch.ones_like(similarity, dtype=torch.bool)
    else:
        similarity = similarity.masked_fill(~present, -torch.inf)
    columns = torch.sort(similarity, dim=1, stable=True).indices
    return Ranking(columns, present.sum(dim=1))


def edges(count: int, bins: int) -> list[int]:
    """The first rank of each of ``bins`` percentiles of ``count`` negatives, and ``count``."""
    return [_first_rank(b / bins, count) for b in range(bins)] + [count]


def _first_rank(share: float, count: int) -> int:
    """The lowest rank of the band [share, 1]."""
    return band_ranks((share, 1.0), count)[0]


def by_percentile(ordered: Ordered, bins: int) -> tuple[Tensor, Tensor]:
    """Sums values over the queries and ranks of each percentile (Cai et al. 2020, figure 5).

    Args:
        ordered: Values from :meth:`Ranking.order`, NaN where unknown.
        bins: B, number of percentiles; some are empty if there are fewer negatives.

    Returns:
        (B,) float64 sums and (B,) numbers of known values, on the CPU.
    """
    return _sum_between(ordered, lambda count: edges(count, bins))


def hard_and_easy(ordered: Ordered) -> tuple[Tensor, Tensor]:
    """The same for the easiest 95 % and the hardest 5 % (figure 4): (2,) sums, (2,) numbers."""
    return _sum_between(ordered, lambda count: [0, _first_rank(1 - HARD, count), count])


def _sum_between(ordered: Ordered, edges_of: Callable[[int], list[int]]) -> tuple[Tensor, Tensor]:
    sums: list[Tensor] = []
    numbers: list[Tensor] = []
    for _, rows in ordered:
        by_rank = rows.sum(dim=0)
        known = torch.full_like(by_rank, len(rows))
        if bool(by_rank.isnan().any()):
            by_rank, known = rows.nan_to_num(0.0).sum(dim=0), (~rows.isnan()).sum(dim=0)
        limits = torch.tensor(edges_of(rows.shape[1]))
        for parts, values in ((sums, by_rank), (numbers, known)):
            # On the CPU, because cumsum on a GPU is not deterministic in every version.
            running = torch.nn.functional.pad(values.cpu().double().cumsum(0), (1, 0))
            parts.append(running[limits[1:]] - running[limits[:-1]])
    return torch.stack(sums).sum(dim=0), torch.stack(numbers).sum(dim=0)


def shares_of_hardest(ordered: Ordered, total: Tensor, fractions: Sequence[float]) -> Tensor:
    """The share of each query's total that its hardest negatives hold.

    Args:
        ordered: Values from :meth:`Ranking.order`.
        total: (N,) total of each query.
        fractions: F shares of the negatives, such as 0.05 for the hardest 5 %.

    Returns:
        (N, F); NaN for a query without negatives.
    """
    shares = total.new_full((len(total), len(fractions)), torch.nan)
    for queries, rows in ordered:
        if rows.shape[1]:
            for column, fraction in enumerate(fractions):
                hardest = rows[:, _first_rank(1 - fraction, rows.shape[1]) :]
                shares[queries, column] = hardest.sum(dim=1) / total[queries]
    return shares


def hard_counts(ranking: Ranking) -> Tensor:
    """(M,) float64, for how many queries each candidate is among the hardest 5 % (figure 6)."""
    width = ranking.columns.shape[1]
    total = torch.zeros(width, dtype=torch.float64)
    for _, columns in ranking.by_count():
        hardest = columns[:, _first_rank(1 - HARD, columns.shape[1]) :]
        total += torch.bincount(hardest.flatten(), minlength=width).cpu()
    return total


def shuffled(similarity: Tensor, generator: torch.Generator) -> Tensor:
    """(N, M) each query's similarities in random order, the baseline of figure 6."""
    keys = torch.rand(similarity.shape, generator=generator, device=similarity.device)
    return similarity.gather(1, keys.argsort(dim=1))
