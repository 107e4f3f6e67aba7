"""``mix``: synthetic negatives made of the hardest ones (MoCHi, SSCL, SynCo)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.ranks import TooFewNegativesError, hardest_columns
from solo_hardneg.negatives.registry import Verb, register
from solo_hardneg.negatives.synthesis import (
    KINDS,
    RandomNumbers,
    draw_pairs,
    draw_partners,
    draw_places,
    similarity_of_combination,
    similarity_of_vectors,
)
from solo_hardneg.validate import real, whole

SOURCE = (
    "Kalantidis et al. 2020 (MoCHi, arXiv 2010.01028), section 4; "
    "Dong et al. 2023 (SSCL, arXiv 2304.02971), eq. 2; "
    "Giakoumoglou & Stathaki 2024 (SynCo, arXiv 2410.02401), section 3"
)
_MOST = 2**20  # synthetic negatives of a kind per query; the papers have 1024


@register(
    "mix",
    summary="adds synthetic negatives, mixed from the hardest ones",
    source=SOURCE,
    example="{hardest: 1024, pairs: 1024}",
)
class Mix(Verb):
    """Adds synthetic negatives of up to six kinds to each query, made of its hardest negatives.

    Their formulas are in :mod:`solo_hardneg.negatives.synthesis`; all have unit length. ``beyond``
    and coarse ``noise`` are easier than their sources, the other kinds are harder.

    A query that has fewer negatives than ``hardest``, because the verbs above depend on the data,
    mixes those that it has; the note ``mix_short`` marks it.

    Args:
        hardest: s, number of hardest negatives to mix; at least 2 if ``pairs`` > 0.
        pairs: Number of mixtures of two of them.
        queries: Number of mixtures with the query.
        detach: Whether synthetic negatives are constants, so that only the query gets gradient;
            ``False`` passes gradient to the vectors that they are made of.
        beyond: Number of extrapolations beyond a negative, away from the query.
        noise: ``{count, sigma}``, negatives with noise of standard deviation σ (0.01) added.
        toward: ``{count, step}``, negatives moved towards the query by δ (0.01).
        adversarial: ``{count, step}``, negatives moved by η (0.01) in the sign of each dimension of
            the query.

    Raises:
        ConfigError: An argument is not allowed.
    """

    described = True
    integers: ClassVar[frozenset[str]] = frozenset({"beyond", "count"})

    def __init__(
        self,
        hardest: int,
        pairs: int = 0,
        queries: int = 0,
        detach: bool = True,
        beyond: int | None = None,
        noise: Any = None,
        toward: Any = None,
        adversarial: Any = None,
    ):
        key = "negatives.mix"
        self.pairs = whole(f"{key}.pairs", pairs, least=0, most=_MOST)
        self.queries = whole(f"{key}.queries", queries, least=0, most=_MOST)
        self.beyond = whole(f"{key}.beyond", beyond or 0, least=0, most=_MOST)
        self.noise, self.sigma = _parse_kind("noise", noise, "sigma")
        self.toward, self.toward_step = _parse_kind("toward", toward, "step")
        self.adversarial, self.adversarial_step = _parse_kind("adversarial", adversarial, "step")
        do = "A pair is made of two different negatives." if self.pairs else ""
        self.hardest = whole(f"{key}.hardest", hardest, least=2 if self.pairs else 1, do=do)
        if not isinstance(detach, bool):
            raise bad_value(f"{key}.detach", detach, "must be true or false")
        self.detach = detach

    @property
    def counts(self) -> dict[str, int]:
        """Number of synthetic negatives per query, by kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def adds(self) -> int:  # type: ignore[override]
        """Number of synthetic negatives per query."""
        return sum(self.counts.values())

    @property
    def idle(self) -> str:
        """Why it does nothing; empty if it does. A schedule may start with 0, but not stay 0."""
        if self.adds:
            return ""
        return (
            f"makes nothing: all of {', '.join(KINDS)} are 0. Set one of them, for example "
            "negatives.mix.pairs=8."
        )

    def __call__(self, pool: Pool) -> Pool:
        if self.idle:
            return pool
        if pool.query is None or pool.vectors is None:
            raise ConfigError(
                "negatives.mix: needs the vectors of query and negatives, and this pool has "
                "similarities only. Give it query= and vectors=."
            )
        if len(pool.vectors) == 0:
            return pool
        self.check(pool.count)
        columns = hardest_columns(pool, self.hardest)
        numbers = self.draw_numbers(pool.query)
        similarity, present = self.synthesize(
            pool.query, pool.vectors, columns, pool.counts, numbers
        )
        count = pool.count and pool.count + self.adds  # nothing is made of no negatives
        mixed = pool.plus(similarity, present, count)
        return mixed.note(**self.notes(pool.counts, present))

    def check(self, count: int | None) -> None:
        """Checks that there are enough negatives to mix.

        Args:
            count: Number of negatives of every query; ``None`` if it depends on the data.

        Raises:
            TooFewNegativesError: There are fewer than ``hardest``.
        """
        if count is not None and 0 < count < self.hardest:
            raise TooFewNegativesError(
                f"negatives.mix.hardest={self.hardest}: there are only M={count} negatives to "
                "mix. Lower it (and pairs with it), or have more negatives (a longer queue, a "
                "larger batch)."
            )

    def draw_numbers(self, query: Tensor) -> RandomNumbers:
        """Draws the random numbers of one step, for all queries (N, D) of this rank."""
        return RandomNumbers.draw(self.counts, query)

    def synthesize(
        self,
        query: Tensor,
        vectors: Tensor,
        columns: Tensor,
        counts: Tensor,
        numbers: RandomNumbers,
    ) -> tuple[Tensor, Tensor]:
        """Makes the synthetic negatives of n queries.

        Args:
            query: (n, D) unit vectors.
            vectors: (M, D) unit vectors of the candidates.
            columns: (n, s) int, the hardest negatives of each query, hardest first.
            counts: (n,) int, number of negatives of each query.
            numbers: Random numbers of these queries.

        Returns:
            (n, k) similarities to the query, in the order of ``KINDS``; and bool, which of them are
            present.
        """
        if self.detach:
            vectors = vectors.detach()
        available = self._available(counts)

        def hardest_at(places: Tensor) -> Tensor:
            return vectors[columns.gather(1, places)].to(query.dtype)

        kinds = [kind for kind, count in self.counts.items() if count]
        made = [self._make(kind, query, hardest_at, available, numbers) for kind in kinds]
        return torch.cat(made, dim=1), self.present(counts)

    def _make(
        self,
        kind: str,
        query: Tensor,
        hardest_at: Callable[[Tensor], Tensor],
        available: Tensor,
        numbers: RandomNumbers,
    ) -> Tensor:
        """(n, count) similarities of the synthetic negatives of a kind."""
        uniform, detach = numbers.uniform[kind], self.detach
        if kind == "pairs":
            first, second, alpha = draw_pairs(available, uniform)
            one, other = hardest_at(first), hardest_at(second)
            weight = alpha[:, :, None].to(one.dtype)
            return similarity_of_vectors(query, torch.lerp(other, one, weight))
        if kind == "queries":
            places, gamma = draw_partners(available, uniform)
            gamma = gamma.to(query.dtype)
            negatives = hardest_at(places)
            return similarity_of_combination(query, negatives, gamma, 1 - gamma, detach=detach)
        negatives = hardest_at(draw_places(available, uniform[0]))
        if kind == "beyond":
            beta = 1 + uniform[1].to(query.dtype) / 2
            return similarity_of_combination(query, negatives, 1 - beta, beta, detach=detach)
        if kind == "toward":
            return similarity_of_combination(query, negatives, self.toward_step, 1.0, detach=detach)
        if kind == "adversarial":
            sign = query.detach().sign()
            return similarity_of_combination(
                query, negatives, self.adversarial_step, 1.0, sign, detach=detach
            )
        assert numbers.normal is not None
        noise = self.sigma * numbers.normal.to(query.dtype)
        return similarity_of_vectors(query, negatives + noise)

    def present(self, counts: Tensor) -> Tensor:
        """(n, k) bool, which synthetic negatives exist: a pair takes two negatives.

        Args:
            counts: (n,) int, number of negatives of each query.
        """
        is_pair = torch.arange(self.adds, device=counts.device) < self.pairs
        return self._available(counts)[:, None] > is_pair

    def notes(self, counts: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Returns (n,) values to log, the same names on all ranks."""
        short = self._available(counts) < self.hardest
        return {"synthetic": present.float().sum(dim=1), "mix_short": short.float()}

    def _available(self, counts: Tensor) -> Tensor:
        return counts.clamp(max=self.hardest)


def _parse_kind(kind: str, value: Any, other: str) -> tuple[int, float]:
    """Reads ``{count, sigma}`` or ``{count, step}``; a single number is the count."""
    key = f"negatives.mix.{kind}"
    settings = value if isinstance(value, Mapping) else {"count": value or 0}
    for name in settings:
        if name not in ("count", other):
            raise unknown_name(key, str(name), ("count", other), "argument")
    count = whole(f"{key}.count", settings.get("count", 0), least=0, most=_MOST)
    allowed = "must be a number of at least 0"
    return count, real(f"{key}.{other}", settings.get(other, 0.01), allowed, least=0)
