"""``mix``: new negatives made of the hardest ones (MoCHi, SSCL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from solo_hardneg.distributed import get_rank
from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.negatives import band as bands
from solo_hardneg.negatives.numbers import whole
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.registry import register

SOURCE = (
    "Kalantidis et al. 2020 (MoCHi, arXiv 2010.01028), section 4; "
    "Dong et al. 2023 (SSCL, arXiv 2304.02971), eq. 2"
)


MOST = 2**20  # synthetic negatives of a kind for each query; the papers have 1024


@register("mix", summary="adds synthetic negatives, mixed from the hardest ones", source=SOURCE)
class Mix:
    """Adds ``pairs + queries`` synthetic negatives to each query, made of its own hardest ones.

    The first kind lies between two of the hardest, h = (α·nₐ + (1-α)·n_b)/‖·‖ with a ≠ b and
    α ~ U(0, 1); the second between the query and one of them, h′ = (γ·q + (1-γ)·nₐ)/‖·‖ with
    γ ~ U(0, 0.5), which is harder than nₐ itself.

    Where the verbs above leave some queries fewer negatives than ``hardest``, depending on the
    data, those mix what they have, and ``mix_short`` counts them.

    Args:
        hardest: s, how many of the hardest negatives are mixed; at least 2 if there are pairs.
        pairs: k, how many synthetic negatives of the first kind.
        queries: k′, how many of the second kind.
        detach: whether synthetic negatives are constants, so that gradient reaches the query by
            the similarity only; ``False`` lets it through to what they are made of.
    """

    def __init__(self, hardest: int, pairs: int = 0, queries: int = 0, detach: bool = True):
        key = "negatives.mix"
        self.pairs = whole(f"{key}.pairs", pairs, least=0, most=MOST)
        self.queries = whole(f"{key}.queries", queries, least=0, most=MOST)
        do = "A pair is made of two different negatives." if self.pairs else ""
        self.hardest = whole(f"{key}.hardest", hardest, least=2 if self.pairs else 1, do=do)
        if not isinstance(detach, bool):
            raise bad_value(f"{key}.detach", detach, "must be true or false")
        self.detach = detach

    @property
    def idle(self) -> str:
        """Why it does nothing, where it does; a schedule may start so, but not stay so."""
        if self.pairs + self.queries:
            return ""
        return (
            "makes nothing: pairs and queries are both 0. Set one of them, for example "
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
        columns = bands.hardest(pool, self.hardest)
        uniform = self.uniform(len(pool.query), pool.query.device)
        made, present = self.make(pool.query, pool.vectors, columns, pool.counts, uniform)
        count = pool.count and pool.count + self.pairs + self.queries  # of none, none are made
        return pool.plus(made, present, count).note(**self.notes(pool.counts, present))

    def check(self, count: int | None) -> None:
        """Refuses a pool in which each query has too few negatives, ``count`` of them.

        Raises:
            TooFewNegativesError: they are fewer than ``hardest``, and not by the data.
        """
        if count is not None and 0 < count < self.hardest:
            raise bands.TooFewNegativesError(
                f"negatives.mix.hardest={self.hardest}: there are only M={count} negatives to "
                "mix. Lower it (and pairs with it), or have more negatives (a longer queue, a "
                "larger batch)."
            )

    def uniform(self, queries: int, device: torch.device) -> Uniform:
        """What is drawn in one step, for all queries of this rank."""
        generator = _generator(device)

        def draw(number: int, width: int) -> Tensor:
            return torch.rand(number, queries, width, generator=generator, device=device)

        return Uniform(draw(3, self.pairs), draw(2, self.queries))

    def make(
        self, query: Tensor, vectors: Tensor, columns: Tensor, counts: Tensor, uniform: Uniform
    ) -> tuple[Tensor, Tensor]:
        """The synthetic negatives of some queries.

        Args:
            query: (n, D), and
            vectors: (M, D) the candidates, unit vectors.
            columns: (n, s) int, the hardest negatives of each query, hardest first.
            counts: (n,) int, how many negatives each query has.
            uniform: what was drawn for these queries.

        Returns:
            (n, pairs + queries) similarities, and which of them are there.
        """
        ends = query
        if self.detach:
            ends, vectors = query.detach(), vectors.detach()
        made = []
        drawn = self.draw(counts, uniform)
        if self.pairs:
            first, second, alpha = drawn.pairs
            one, other = (
                vectors[columns.gather(1, place)].to(query.dtype) for place in (first, second)
            )
            made.append(torch.lerp(other, one, alpha[:, :, None].to(one.dtype)))
        if self.queries:
            first, gamma = drawn.queries
            one = vectors[columns.gather(1, first)].to(query.dtype)
            made.append(torch.lerp(one, ends[:, None], gamma[:, :, None].to(one.dtype)))
        synthetic = normalize(torch.cat(made, dim=1), dim=2)
        return torch.einsum("nd,nkd->nk", query, synthetic), self.present(counts)

    def draw(self, counts: Tensor, uniform: Uniform) -> Drawn:
        """Who is mixed, and how, of queries with so many negatives (n,)."""
        available = self._available(counts)
        pairs = draw_pairs(available, uniform.pairs) if self.pairs else None
        return Drawn(pairs, draw_partners(available, uniform.queries) if self.queries else None)

    def present(self, counts: Tensor) -> Tensor:
        """(n, k + k′) bool, which synthetic negatives are there: it takes two to make a pair."""
        of_pairs = torch.arange(self.pairs + self.queries, device=counts.device) < self.pairs
        return self._available(counts)[:, None] > of_pairs

    def notes(self, counts: Tensor, present: Tensor) -> dict[str, Tensor]:
        """What is worth logging; in any case, for it must be the same on all ranks."""
        short = self._available(counts) < self.hardest
        return {"synthetic": present.float().sum(dim=1), "mix_short": short.float()}

    def _available(self, counts: Tensor) -> Tensor:
        return counts.clamp(max=self.hardest)


class Drawn(NamedTuple):
    """What is drawn for n queries: places a, b among their hardest and shares α; a and γ."""

    pairs: Any
    queries: Any


@dataclass(frozen=True)
class Uniform:
    """Numbers in [0, 1): (3, N, k) for the first kind, (2, N, k′) for the second."""

    pairs: Tensor
    queries: Tensor

    def rows(self, which: slice) -> Uniform:
        """Those of some of the queries."""
        return Uniform(self.pairs[:, which], self.queries[:, which])


def draw_pairs(available: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws which of its hardest negatives each query mixes, and how.

    Args:
        available: (N,) int, how many each query has to choose from.
        uniform: (3, N, k) numbers in [0, 1), of which it is made.

    Returns:
        (N, k) places a and b, a ≠ b wherever there are two to choose from, all ordered pairs
        equally likely; and (N, k) α in [0, 1).
    """
    first, second, alpha = uniform
    count = available.clamp(min=1)[:, None]
    a = _below(first, count)
    step = 1 + _below(second, (count - 1).clamp(min=1))
    return a, (a + step) % count, alpha


def draw_partners(available: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draws (N, k′) places a of the negatives that meet the query, and (N, k′) γ in [0, 0.5).

    ``uniform`` is (2, N, k′) numbers in [0, 1).
    """
    first, gamma = uniform
    return _below(first, available.clamp(min=1)[:, None]), gamma / 2


def _below(uniform: Tensor, count: Tensor) -> Tensor:
    """Whole numbers in [0, count), from numbers in [0, 1)."""
    return (uniform.double() * count).long()


def _generator(device: torch.device) -> torch.Generator:
    """A source of random numbers for this step and this rank.

    Its seed comes from the global generator, so that a run's seed and its saved random state
    decide it. That state may be the same on all ranks, hence their number in it.
    """
    seed = int(torch.randint(2**62, ()))
    return torch.Generator(device).manual_seed(seed + get_rank())
