"""Negatives by difficulty: who has which rank, and what lies between two ranks.

Difficulty is the rank of a negative's similarity among a query's negatives, as in
:mod:`solo_hardneg.negatives.band`: percentile b of B holds the ranks of the band [b/B, (b+1)/B].
Sums come with how many values they are of, so that those of several batches, directions and
processes add up. NaN stands for what is not known, and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_hardneg.negatives import band as bands

HARD = 0.05  # Cai et al. 2020, section 3: the hardest 5 % are called hard, the others easy

# Queries with the same number c of negatives come together: (n,) which, and their (n, c) values.
Ordered = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ranking:
    """The negatives of N queries by difficulty.

    Attributes:
        columns: (N, M) int, the columns from easiest to hardest; those that are no negatives of a
            query come first.
        counts: (N,) int, how many negatives each query has.
    """

    columns: Tensor
    counts: Tensor

    def groups(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries with the same number c of negatives: (n,) which, and their (n, c) columns."""
        width = self.columns.shape[1]
        for count in torch.unique(self.counts).tolist():
            which = (self.counts == count).nonzero()[:, 0]
            rows = self.columns if len(which) == len(self.columns) else self.columns[which]
            yield which, rows[:, width - count :]

    def order(self, values: Tensor) -> Ordered:
        """The values (N, M) of these columns: (n,) which queries, and theirs, easiest first."""
        ordered = []
        for which, columns in self.groups():
            some = values if len(which) == len(values) else values[which]
            ordered.append((which, some.gather(1, columns)))
        return ordered


def rank(similarity: Tensor, present: Tensor | None = None) -> Ranking:
    """Ranks negatives by (similarity, index), ascending, as bands do.

    Args:
        similarity: (N, M), the difficulty.
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
    return [bands.ranks((b / bins, 1.0), count)[0] for b in range(bins)] + [count]


def by_percentile(ordered: Ordered, bins: int) -> tuple[Tensor, Tensor]:
    """Sums values over the queries and ranks of each percentile (Cai et al. 2020, figure 5).

    Args:
        ordered: the values, see :meth:`Ranking.order`; NaN where unknown.
        bins: B, how many percentiles; with fewer negatives than that, some hold none.

    Returns:
        (B,) float64 sums, and (B,) how many known values they are of; both on the CPU.
    """
    return _between(ordered, lambda count: edges(count, bins))


def hard_and_easy(ordered: Ordered) -> tuple[Tensor, Tensor]:
    """The same for the two groups of figure 4: (2,), the easiest 95 % and the hardest 5 %."""
    return _between(ordered, lambda count: [0, bands.ranks((1 - HARD, 1.0), count)[0], count])


def _between(ordered: Ordered, edges_of: Callable[[int], list[int]]) -> tuple[Tensor, Tensor]:
    """Sums and numbers of the values whose ranks lie between two edges."""
    sums: list[Tensor] = []
    numbers: list[Tensor] = []
    for _, rows in ordered:
        of_rank = rows.sum(dim=0)
        known = torch.full_like(of_rank, len(rows))
        if bool(of_rank.isnan().any()):
            of_rank, known = rows.nan_to_num(0.0).sum(dim=0), (~rows.isnan()).sum(dim=0)
        places = torch.tensor(edges_of(rows.shape[1]))
        for parts, values in ((sums, of_rank), (numbers, known)):
            # On the CPU, for a GPU's cumulative sums are not deterministic in every version.
            running = torch.nn.functional.pad(values.cpu().double().cumsum(0), (1, 0))
            parts.append(running[places[1:]] - running[places[:-1]])
    return torch.stack(sums).sum(dim=0), torch.stack(numbers).sum(dim=0)


def shares_of_hardest(ordered: Ordered, total: Tensor, fractions: Sequence[float]) -> Tensor:
    """How much of the whole the hardest negatives of each query have.

    Args:
        ordered: how much each negative has.
        total: (N,), the whole.
        fractions: F shares of the negatives, such as 0.05 for the hardest 5 %.

    Returns:
        (N, F); NaN for a query without negatives.
    """
    shares = total.new_full((len(total), len(fractions)), torch.nan)
    for which, rows in ordered:
        if rows.shape[1]:
            for number, fraction in enumerate(fractions):
                first, _ = bands.ranks((1 - fraction, 1.0), rows.shape[1])
                shares[which, number] = rows[:, first:].sum(dim=1) / total[which]
    return shares


def hard_counts(ranking: Ranking) -> Tensor:
    """(M,) float64, for how many queries each candidate is among the hardest 5 % (figure 6)."""
    width = ranking.columns.shape[1]
    total = torch.zeros(width, dtype=torch.float64)
    for _, columns in ranking.groups():
        first, _ = bands.ranks((1 - HARD, 1.0), columns.shape[1])
        total += torch.bincount(columns[:, first:].flatten(), minlength=width).cpu()
    return total


def shuffled(similarity: Tensor, generator: torch.Generator) -> Tensor:
    """(N, M) the similarities of each query, dealt out to its negatives at random (figure 6)."""
    keys = torch.rand(similarity.shape, generator=generator, device=similarity.device)
    return similarity.gather(1, keys.argsort(dim=1))
