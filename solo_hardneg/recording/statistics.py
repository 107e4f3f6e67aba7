"""Statistics of the negatives of some queries: pure functions on tensors.

Means are kept as sums and numbers of values, so that those of several batches, directions and
processes add up. NaN means unknown, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from solo_hardneg.negatives.pool import Pool
from solo_hardneg.recording.embeddings import alignment
from solo_hardneg.recording.ranking import (
    HARD,
    Ranking,
    by_percentile,
    hard_and_easy,
    hard_counts,
    rank,
    shares_of_hardest,
)

FRACTIONS = {"hardest_0.1": 0.001, "hardest_1": 0.01, "hardest_5": HARD, "hardest_10": 0.1}
HISTOGRAM = 200  # bins of similarity over [-1, 1]
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
# Similarities per chunk: on a CPU what its caches hold, on a GPU enough to hide kernel launches.
CHUNK = {"cpu": 2**20, "cuda": 2**22}

Key = tuple[str, str]  # kind (scalar or percentile) and quantity


def _no_values() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class Summary:
    """Statistics of some queries, float64 on the CPU; the sum of two is that of all their queries.

    Attributes:
        sums: (2, B) per mean: for each bin, the sum of the known values and their number. B is 1
            for a scalar.
        histograms: (HISTOGRAM,) number of similarities per bin, by quantity.
        met: (M,) for how many queries each candidate was a negative.
        hard: (M,) for how many queries it was among the hardest 5 %.
        positives: (N,) known similarities of the queries to their positives.
    """

    sums: Mapping[Key, Tensor]
    histograms: Mapping[str, Tensor] = field(default_factory=dict)
    met: Tensor = field(default_factory=_no_values)
    hard: Tensor = field(default_factory=_no_values)
    positives: Tensor = field(default_factory=_no_values)

    def __add__(self, other: Summary) -> Summary:
        """The summary of all queries of two summaries with the same candidates."""
        return Summary(
            _add(self.sums, other.sums),
            _add(self.histograms, other.histograms),
            self.met + other.met,
            self.hard + other.hard,
            torch.cat([self.positives, other.positives]),
        )

    def scalars(self) -> Summary:
        """Only what the scalar means need."""
        sums = {key: pair for key, pair in self.sums.items() if key[0] == "scalar"}
        return Summary(sums, positives=self.positives)

    def means(self) -> dict[Key, tuple[Tensor, Tensor]]:
        """(B,) means, NaN where nothing is known, and (B,) numbers of values.

        Quantiles of the positives' similarities are among them, under ``positive/``.
        """
        means = {key: (total / number, number) for key, (total, number) in self.sums.items()}
        number = torch.tensor([float(len(self.positives))], dtype=torch.float64)
        for name, share in QUANTILES.items() if len(self.positives) else ():
            means["scalar", f"positive/{name}"] = self.positives.quantile(share)[None], number
        return means


def _add(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    both = {**one, **other}
    return {k: one[k] + other[k] if k in one and k in other else both[k] for k in both}


def histogram(similarity: Tensor) -> Tensor:
    """(HISTOGRAM,) float64, number of values in each bin of [-1, 1]; NaN is left out."""
    known = similarity[~similarity.isnan()] if bool(similarity.isnan().any()) else similarity
    bins = ((known.flatten() + 1) * (HISTOGRAM / 2)).long().clamp(0, HISTOGRAM - 1)
    return torch.bincount(bins, minlength=HISTOGRAM).cpu().double()


# ---------------------------------------------------------------------- shares of the loss


def softmax_mass(pool: Pool, temperature: float) -> Tensor:
    """(N, M) the share of each negative in Σⱼ wᵢⱼ·exp(sᵢⱼ/τ); NaN for a query without negatives."""
    return _softmax(pool, (1 + pool.beta) / temperature)


def gradient_weight(pool: Pool, mass: Tensor, temperature: float) -> Tensor:
    """(N, M) how strongly each negative pulls at its query, up to a factor per query.

    This is the norm of the negative's term in the gradient of the loss with respect to the query
    before normalisation: |∂Lᵢ/∂sᵢⱼ| times that of ∂sᵢⱼ/∂qᵢ, √(1 - sᵢⱼ²). With a and b the softmax
    of (1+β)·s/τ and of β·s/τ, ∂Lᵢ/∂sᵢⱼ ∝ (1+β)·aᵢⱼ - β·bᵢⱼ, because the weights are divided by
    their mean. Rows where the floor of ``debias`` binds have no gradient, and are NaN.

    Args:
        pool: N queries and M candidates.
        mass: (N, M) their :func:`softmax_mass`.
        temperature: τ.
    """
    slope = mass
    if pool.beta:
        slope = (1 + pool.beta) * slope - pool.beta * _softmax(pool, pool.beta / temperature)
    norm = (1 - pool.similarity.detach() ** 2).clamp(min=0).sqrt()
    weight = slope.abs() * norm
    floored = pool.notes.get("floored")
    return weight if floored is None else weight.masked_fill(floored[:, None] > 0, torch.nan)


def _softmax(pool: Pool, scale: float) -> Tensor:
    logits = pool.similarity.detach() * scale
    if pool.log_weight is not None:
        logits = logits + pool.log_weight.detach()
    return torch.softmax(logits.masked_fill(~pool.present, -torch.inf), dim=1)


def effective_number(mass: Tensor) -> Tensor:
    """(N,) 1/Σⱼ pⱼ²: the number of negatives of equal mass that is as concentrated as (N, M)."""
    return 1 / (mass**2).sum(dim=1)


# ---------------------------------------------------------------------- the summary


@torch.no_grad()
def summarize(
    pool: Pool, temperature: float, percentiles: int = 100, depths: Tensor | None = None
) -> Summary:
    """Computes all statistics that the recorder writes.

    Difficulty is ranked among the negatives before any policy. Synthetic negatives, and those that
    fill in from the reserve, have shares of their own.

    Args:
        pool: N queries and their negatives, as the policy left them.
        temperature: τ.
        percentiles: B, number of bins of difficulty.
        depths: (C, C) depth of the least common ancestor of two classes, NaN where unknown.
    """
    if not pool.similarity.shape[1]:  # BYOL
        return _summarize_positives(pool.positive)
    chunk = CHUNK.get(pool.similarity.device.type, CHUNK["cpu"])
    rows = max(chunk // max(pool.similarity.shape[1], 1), 1)
    parts = [
        _summarize(pool.rows(slice(start, start + rows)), temperature, percentiles, depths)
        for start in range(0, len(pool.similarity), rows)
    ]
    return reduce(Summary.__add__, parts)


def _summarize(pool: Pool, temperature: float, bins: int, depths: Tensor | None) -> Summary:
    similarity = pool.similarity.detach()
    offered = pool.present if pool.offered is None else pool.offered
    all_offered = bool(offered.all())
    ranking = rank(similarity, None if all_offered else offered)
    added = _added(pool, offered)
    per_query = _per_query(pool, ranking, offered, added)
    sums = {("scalar", name): _sum(values) for name, values in per_query.items()}
    mass = softmax_mass(pool, temperature)
    sums["scalar", "effective_negatives"] = _sum(effective_number(mass))
    for name, share in (("mass", mass), ("gradient", gradient_weight(pool, mass, temperature))):
        sums |= _shares(name, share, ranking, added, bins)
    similarities = by_percentile(ranking.order(similarity), bins)
    sums["percentile", "similarity"] = torch.stack(similarities)
    per_pair = _per_pair(pool, depths)
    if _drops(pool) and "same_class" in per_pair:
        sums |= _removal(pool, offered, per_pair["same_class"], ranking, bins)
    for name, values in per_pair.items():
        ordered = ranking.order(values)
        sums["percentile", name] = torch.stack(by_percentile(ordered, bins))
        if name != "age":
            groups = torch.stack(hard_and_easy(ordered))
            sums["scalar", f"{name}/easiest_95"] = groups[:, :1]
            sums["scalar", f"{name}/hardest_5"] = groups[:, 1:]
    histograms = {"negative": histogram(similarity if all_offered else similarity[offered])}
    met = offered.sum(dim=0).cpu().double()
    positives = _summarize_positives(pool.positive)
    return replace(
        positives,
        sums={**sums, **positives.sums},
        histograms={**histograms, **positives.histograms},
        met=met,
        hard=hard_counts(ranking).cpu(),
    )


def _summarize_positives(positive: Tensor | None) -> Summary:
    """Of (N,) similarities to the positives, NaN where unknown."""
    if positive is None:
        return Summary({})
    positive = positive.detach()
    sums = {
        ("scalar", "similarity/positive"): _sum(positive),
        ("scalar", "alignment"): _sum(alignment(positive)),
    }
    known = positive[~positive.isnan()].cpu().double()
    return Summary(sums, {"positive": histogram(positive)}, positives=known)


def _sum(values: Tensor) -> Tensor:
    """(2, 1) sum and number of the known values of (N,)."""
    values = values.detach().cpu().double()
    return torch.stack([values.nansum(), (~values.isnan()).sum().double()])[:, None]


def _per_query(
    pool: Pool, ranking: Ranking, offered: Tensor, added: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """(N,) values, by quantity."""
    kept = (pool.present & offered).sum(dim=1)
    counts = {"offered": ranking.counts, "kept": kept, "dropped": ranking.counts - kept}
    counts |= {kind: mask.sum(dim=1) for kind, mask in added.items()}
    values = {f"count/{name}": count.float() for name, count in counts.items()}
    similarity = pool.similarity.detach().masked_fill(~offered, 0.0)
    values["similarity/negative"] = similarity.sum(dim=1) / ranking.counts
    if "floored" in pool.notes:
        values["floored"] = pool.notes["floored"]
    return values


def _added(pool: Pool, offered: Tensor) -> dict[str, Tensor]:
    """(N, M) bool, the negatives that the policy added, by kind."""
    added = pool.present & ~offered
    columns = torch.arange(added.shape[1], device=added.device)
    synthetic = columns >= added.shape[1] - pool.made
    return {"synthetic": added & synthetic, "filled": added & ~synthetic}


def _shares(
    name: str, share: Tensor, ranking: Ranking, added: Mapping[str, Tensor], bins: int
) -> dict[Key, Tensor]:
    """Sums of the shares (N, M) of the hardest negatives, of added ones, and by percentile."""
    total = share.sum(dim=1)
    ordered = [(queries, rows / total[queries, None]) for queries, rows in ranking.order(share)]
    hardest = shares_of_hardest(ordered, torch.ones_like(total), [*FRACTIONS.values()])
    sums = {
        ("scalar", f"{name}/{fraction}"): _sum(shares)
        for fraction, shares in zip(FRACTIONS, hardest.T, strict=True)
    }
    for kind, mask in added.items():
        part = share.masked_fill(~mask, 0.0).sum(dim=1)
        sums["scalar", f"{name}/{kind}"] = _sum(part / total)
    # A percentile's share is a sum over its ranks, so its mean is one over queries.
    percentile, _ = by_percentile(ordered, bins)
    queries = (total > 0).sum().cpu().double().expand_as(percentile)
    sums["percentile", name] = torch.stack([percentile, queries])
    return sums


def _drops(pool: Pool) -> bool:
    """Whether a verb has dropped negatives; ``fill`` resets their number."""
    return pool.dropped is not None or "filled" in pool.notes


def _removal(
    pool: Pool, offered: Tensor, same_class: Tensor, ranking: Ranking, bins: int
) -> dict[Key, Tensor]:
    """What the policy dropped, as a guess of which negatives are of the query's class.

    ``precision`` is the share of the query's class among the dropped negatives of known class, and
    ``recall`` the share of dropped ones among those of the query's class.
    """
    lost = offered & ~pool.present
    hits = {
        "precision": same_class.masked_fill(~lost, torch.nan),
        "recall": lost.float().masked_fill(same_class != 1, torch.nan),  # also where it is NaN
    }
    sums: dict[Key, Tensor] = {}
    for name, values in hits.items():
        by_bin = torch.stack(by_percentile(ranking.order(values), bins))
        sums["percentile", f"dropped/{name}"] = by_bin
        sums["scalar", f"dropped/{name}"] = by_bin.sum(dim=1, keepdim=True)
    return sums


def _per_pair(pool: Pool, depths: Tensor | None) -> dict[str, Tensor]:
    """(N, M) values per query and candidate, by quantity; unknown quantities are left out."""
    values: dict[str, Tensor] = {}
    if pool.age is not None:
        values["age"] = pool.age.to(pool.similarity.dtype).expand_as(pool.similarity)
    query, other = pool.query_labels, pool.labels
    if query is not None and other is not None and bool((query >= 0).any()):
        values |= compare_classes(query, other, depths)
    return values


def compare_classes(
    query_labels: Tensor, labels: Tensor, depths: Tensor | None
) -> dict[str, Tensor]:
    """Compares the classes of queries and negatives.

    Args:
        query_labels, labels: (N,) and (M,) classes, -1 where unknown.
        depths: (C, C) depth of the least common ancestor of two classes; ``None``: unknown.

    Returns:
        ``same_class`` and, if known, ``depth``: (N, M) float32, NaN where a class is unknown.
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
        query_labels, labels: (N,) and (M,) classes in [0, C); -1, unknown, is left out.
        classes: C.

    Returns:
        (C, C) float64 means, query's class by negative's, NaN for a pair that does not occur; and
        (C, C) numbers of similarities.
    """
    one, other = (
        (known[:, None] == torch.arange(classes, device=known.device)).double()
        for known in (query_labels, labels)
    )
    number = one.sum(dim=0)[:, None] * other.sum(dim=0)[None, :]
    return (one.T @ similarity.double() @ other) / number, number
