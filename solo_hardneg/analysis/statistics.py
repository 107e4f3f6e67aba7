"""What can be said of the negatives of some queries: pure functions on tensors.

Means are kept as sums and numbers, so that those of several batches, directions and processes add
up to the means of all. NaN stands for what is not known, and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from solo_hardneg.analysis.ranking import (
    HARD,
    Ranking,
    by_percentile,
    hard_and_easy,
    hard_counts,
    rank,
    shares_of_hardest,
)
from solo_hardneg.negatives.pool import Pool

FRACTIONS = {"hardest_0.1": 0.001, "hardest_1": 0.01, "hardest_5": HARD, "hardest_10": 0.1}
HISTOGRAM = 200  # bins of similarity over [-1, 1]
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
# So many similarities are looked at in one go, whatever the queue: what stays in a CPU's caches,
# and on a GPU what is worth its launches.
CHUNK = {"cpu": 2**20, "cuda": 2**22}

Key = tuple[str, str]  # kind (scalar, percentile, histogram) and quantity


@dataclass(frozen=True)
class Summary:
    """Means and counts of some queries, on the CPU; those of more queries are their sum.

    Attributes:
        sums, numbers: float64, (1,) or (B,): the sum of the known values, and how many there are,
            for every mean.
        counts: float64, (HISTOGRAM,): how many values lie in each bin.
        met, hard: (M,) float64, for how many queries each column was a negative, and for how many
            it was among the hardest 5 %.
        positives: (N,) float64, the queries' similarities to their positives, where known.
    """

    sums: Mapping[Key, Tensor]
    numbers: Mapping[Key, Tensor]
    counts: Mapping[Key, Tensor]
    met: Tensor
    hard: Tensor
    positives: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def __add__(self, other: Summary) -> Summary:
        """The summary of both's queries, which have the same candidates."""

        def added(one: Mapping[Key, Tensor], two: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
            keys = {**one, **two}
            return {k: one[k] + two[k] if k in one and k in two else keys[k] for k in keys}

        return Summary(
            added(self.sums, other.sums),
            added(self.numbers, other.numbers),
            added(self.counts, other.counts),
            self.met + other.met,
            self.hard + other.hard,
            torch.cat([self.positives, other.positives]),
        )

    def means(self) -> dict[Key, tuple[Tensor, Tensor]]:
        """Every mean, NaN where nothing is known, with the number of values that it is of.

        The percentiles of the positives are among them: of all positives together.
        """
        means = {key: (self.sums[key] / self.numbers[key], self.numbers[key]) for key in self.sums}
        number = torch.tensor([float(len(self.positives))], dtype=torch.float64)
        for name, share in QUANTILES.items() if len(self.positives) else ():
            means["scalar", f"positive/{name}"] = self.positives.quantile(share)[None], number
        return means


def histogram(similarity: Tensor) -> Tensor:
    """(HISTOGRAM,) float64, how many of the values lie in each bin of [-1, 1]; NaN in none."""
    known = similarity[~similarity.isnan()] if bool(similarity.isnan().any()) else similarity
    places = ((known.flatten() + 1) * (HISTOGRAM / 2)).long().clamp(0, HISTOGRAM - 1)
    return torch.bincount(places, minlength=HISTOGRAM).cpu().double()


# ---------------------------------------------------------------------- what the loss makes of them


def softmax_mass(pool: Pool, temperature: float) -> Tensor:
    """(N, M) the share of each negative in Σⱼ wᵢⱼ·exp(sᵢⱼ/τ); NaN for a query without negatives."""
    return _softmax(pool, (1 + pool.beta) / temperature)


def gradient_weight(pool: Pool, temperature: float) -> Tensor:
    """(N, M) how strongly each negative pulls at its query, up to a factor for each query.

    The length of its part in the gradient of the loss for the query before normalisation, which
    is what the network receives: |∂Lᵢ/∂sᵢⱼ| times that of ∂sᵢⱼ/∂qᵢ, √(1 - sᵢⱼ²). With a and b the
    softmax of (1+β)·s/τ and of β·s/τ, ∂Lᵢ/∂sᵢⱼ ∝ (1+β)·aᵢⱼ - β·bᵢⱼ, for the weights are divided by
    their mean. Where the floor of ``debias`` binds there is no gradient, and the rows are NaN.
    """
    return _gradient_weight(pool, softmax_mass(pool, temperature), temperature)


def _gradient_weight(pool: Pool, mass: Tensor, temperature: float) -> Tensor:
    slope = mass
    if pool.beta:
        slope = (1 + pool.beta) * slope - pool.beta * _softmax(pool, pool.beta / temperature)
    length = (1 - pool.similarity.detach() ** 2).clamp(min=0).sqrt()
    weight = slope.abs() * length
    floored = pool.notes.get("floored")
    return weight if floored is None else weight.masked_fill(floored[:, None] > 0, torch.nan)


def _softmax(pool: Pool, scale: float) -> Tensor:
    logits = pool.similarity.detach() * scale
    if pool.log_weight is not None:
        logits = logits + pool.log_weight.detach()
    return torch.softmax(logits.masked_fill(~pool.present, -torch.inf), dim=1)


def effective_number(mass: Tensor) -> Tensor:
    """(N,) 1/Σⱼ pⱼ²: as many negatives with equal mass (N, M) would be as concentrated."""
    return 1 / (mass**2).sum(dim=1)


# ---------------------------------------------------------------------- all of it


@torch.no_grad()
def summarize(
    pool: Pool, temperature: float, percentiles: int = 100, depths: Tensor | None = None
) -> Summary:
    """Everything that is recorded of some queries (DESIGN section 5).

    Difficulty is ranked among the negatives that were offered, before any policy; synthetic ones
    and those filled in from the reserve have shares of their own beside them.

    Args:
        pool: N queries and their negatives, as a policy left them.
        temperature: τ.
        percentiles: B.
        depths: (C, C) depth of the least common ancestor of two classes, NaN where unknown.
    """
    chunk = CHUNK.get(pool.similarity.device.type, CHUNK["cpu"])
    rows = max(chunk // max(pool.similarity.shape[1], 1), 1)
    number = len(pool.similarity)
    parts = [
        _summarize(pool.rows(slice(start, start + rows)), temperature, percentiles, depths)
        for start in range(0, number, rows)
    ]
    return reduce(Summary.__add__, parts)


def _summarize(pool: Pool, temperature: float, percentiles: int, depths: Tensor | None) -> Summary:
    similarity = pool.similarity.detach()
    offered = pool.present if pool.offered is None else pool.offered
    everything = bool(offered.all())
    ranking = rank(similarity, None if everything else offered)
    extra = _not_offered(pool, offered)
    sums: dict[Key, Tensor] = {}
    numbers: dict[Key, Tensor] = {}

    def keep(key: Key, pair: tuple[Tensor, Tensor]) -> None:
        sums[key], numbers[key] = pair

    for name, values in _of_queries(pool, ranking, offered, extra).items():
        keep(("scalar", name), _sum(values))
    mass = softmax_mass(pool, temperature)
    keep(("scalar", "effective_negatives"), _sum(effective_number(mass)))
    for name, share in (("mass", mass), ("gradient", _gradient_weight(pool, mass, temperature))):
        total = share.sum(dim=1)
        # The mean over queries of a percentile's share: its sum over the percentile's ranks.
        ordered = [(which, rows / total[which, None]) for which, rows in ranking.order(share)]
        hardest = shares_of_hardest(ordered, torch.ones_like(total), [*FRACTIONS.values()])
        for fraction, shares in zip(FRACTIONS, hardest.T, strict=True):
            keep(("scalar", f"{name}/{fraction}"), _sum(shares))
        for kind, columns in extra.items():
            part = 0.0 if columns is None else share.masked_fill(~columns, 0.0).sum(dim=1)
            keep(("scalar", f"{name}/{kind}"), _sum(part / total))
        summed, _ = by_percentile(ordered, percentiles)
        keep(("percentile", name), (summed, (total > 0).sum().cpu().double().expand_as(summed)))
    keep(("percentile", "similarity"), by_percentile(ranking.order(similarity), percentiles))
    for name, values in _of_pairs(pool, depths).items():
        of_ranks = ranking.order(values)
        keep(("percentile", name), by_percentile(of_ranks, percentiles))
        if name != "age":
            summed, number = hard_and_easy(of_ranks)
            keep(("scalar", f"{name}/easiest_95"), (summed[:1], number[:1]))
            keep(("scalar", f"{name}/hardest_5"), (summed[1:], number[1:]))
    shown = similarity if everything else similarity[offered]
    counts = {("histogram", "negative"): histogram(shown)}
    known = [] if pool.positive is None else [pool.positive.detach()]
    for positive in known:
        keep(("scalar", "similarity/positive"), _sum(positive))
        counts["histogram", "positive"] = histogram(positive)
    return Summary(
        sums,
        numbers,
        counts,
        offered.sum(dim=0).cpu().double(),
        hard_counts(ranking).cpu(),
        *(positive[~positive.isnan()].cpu().double() for positive in known),
    )


def _sum(values: Tensor) -> tuple[Tensor, Tensor]:
    values = values.detach().cpu().double()
    return values.nansum()[None], (~values.isnan()).sum().double()[None]


def _of_queries(
    pool: Pool, ranking: Ranking, offered: Tensor, extra: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """(N,) values, one for each query."""
    kept = (pool.present & offered).sum(dim=1)
    numbers = {"offered": ranking.counts, "kept": kept, "dropped": ranking.counts - kept}
    for kind, mask in extra.items():
        numbers[kind] = torch.zeros_like(kept) if mask is None else mask.sum(dim=1)
    values = {f"count/{name}": number.float() for name, number in numbers.items()}
    similarity = pool.similarity.detach().masked_fill(~offered, 0.0)
    values["similarity/negative"] = similarity.sum(dim=1) / ranking.counts
    if "floored" in pool.notes:
        values["floored"] = pool.notes["floored"]
    return values


def _not_offered(pool: Pool, offered: Tensor) -> dict[str, Tensor | None]:
    """(N, M) bool, the negatives that are not among those offered, by where they come from."""
    kinds: dict[str, Tensor | None] = {"synthetic": None, "filled": None}
    extra = pool.present & ~offered
    if bool(extra.any()):
        made = torch.arange(extra.shape[1], device=extra.device) >= extra.shape[1] - pool.made
        kinds = {"synthetic": extra & made, "filled": extra & ~made}
    return kinds


def _of_pairs(pool: Pool, depths: Tensor | None) -> dict[str, Tensor]:
    """(N, M) values, one for each query and candidate; what is not known at all is left out."""
    values: dict[str, Tensor] = {}
    if pool.age is not None:
        values["age"] = pool.age.to(pool.similarity.dtype).expand_as(pool.similarity)
    query, other = pool.query_labels, pool.labels
    if query is not None and other is not None and bool((query >= 0).any()):
        values |= of_classes(query, other, depths)
    return values


def of_classes(query_labels: Tensor, labels: Tensor, depths: Tensor | None) -> dict[str, Tensor]:
    """What the classes of query and negative say: whether they are one, and how deep they part.

    Args:
        query_labels, labels: (N,) and (M,) classes, -1 where unknown.
        depths: (C, C) depth of the least common ancestor of two classes; ``None``: unknown.

    Returns:
        ``same_class`` and, if it is known, ``depth``: (N, M) float32, NaN where a class is unknown.
    """
    unknown = ~((query_labels >= 0)[:, None] & (labels >= 0)[None, :])
    same = (query_labels[:, None] == labels[None, :]).float()
    values = {"same_class": same.masked_fill(unknown, torch.nan)}
    if depths is not None:
        depth = depths[query_labels.clamp(min=0)][:, labels.clamp(min=0)].float()
        values["depth"] = depth.masked_fill(unknown, torch.nan)
    return values


# ---------------------------------------------------------------------- Cai's study


def class_means(
    similarity: Tensor, query_labels: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Mean similarity of each pair of classes (Cai et al. 2020, Tables A4-A6).

    Args:
        similarity: (N, M).
        query_labels, labels: (N,) and (M,) classes in [0, C); -1, unknown, counts nowhere.
        classes: C.

    Returns:
        (C, C) float64 means, query's class by negative's, NaN for a pair that does not occur; and
        (C, C) of how many similarities.
    """
    one, other = (_one_hot(known, classes) for known in (query_labels, labels))
    number = one.sum(dim=0)[:, None] * other.sum(dim=0)[None, :]
    return (one.T @ similarity.double() @ other) / number, number


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return (labels[:, None] == torch.arange(classes, device=labels.device)[None, :]).double()


def unpaired_t_test(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p of an unpaired t-test (Student's, as Cai et al. 2020, section 4, have it).

    NaN where it says nothing: fewer than two values on a side, or all of them equal.
    """
    from scipy.stats import ttest_ind

    if min(len(one), len(other)) < 2 or len({*one}) == len({*other}) == 1:
        return float("nan")
    return float(ttest_ind(one, other).pvalue)
