"""``mix``: new negatives made of the hardest ones (MoCHi, SSCL)."""

from __future__ import annotations

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
        self.pairs = whole(f"{key}.pairs", pairs, least=0)
        self.queries = whole(f"{key}.queries", queries, least=0)
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
        if pool.count is not None and 0 < pool.count < self.hardest:
            raise bands.TooFewNegativesError(
                f"negatives.mix.hardest={self.hardest}: there are only M={pool.count} negatives to "
                "mix. Lower it (and pairs with it), or have more negatives (a longer queue, a "
                "larger batch)."
            )
        available = pool.counts.clamp(max=self.hardest)  # to be mixed, of each query
        columns = bands.hardest(pool, self.hardest)
        query, vectors = pool.query, pool.vectors
        if self.detach:
            query, vectors = query.detach(), vectors.detach()
        similarity = torch.einsum(
            "nd,nkd->nk", pool.query, self._make(query, vectors, columns, available)
        )
        least = torch.tensor([2] * self.pairs + [1] * self.queries, device=available.device)
        present = available[:, None] >= least  # it takes two to make a pair
        count = pool.count and pool.count + self.pairs + self.queries  # of none, none are made
        # Noted in any case: what is noted must be the same on all ranks.
        return pool.plus(similarity, present, count).note(
            synthetic=present.float().sum(dim=1), mix_short=(available < self.hardest).float()
        )

    def _make(self, query: Tensor, vectors: Tensor, columns: Tensor, available: Tensor) -> Tensor:
        """(N, pairs + queries, D) synthetic negatives of queries (N, D).

        ``columns`` (N, s) says which of the ``vectors`` (M, D) are the hardest of each query, and
        ``available`` (N,) how many of these there are.
        """
        generator = _generator(vectors.device)
        made = []
        if self.pairs:
            first, second, alpha = draw_pairs(available, self.pairs, generator)
            one, other = vectors[columns.gather(1, first)], vectors[columns.gather(1, second)]
            made.append(torch.lerp(other, one, alpha[:, :, None].to(one.dtype)))
        if self.queries:
            first, gamma = draw_partners(available, self.queries, generator)
            one = vectors[columns.gather(1, first)]
            made.append(torch.lerp(one, query[:, None], gamma[:, :, None].to(one.dtype)))
        return normalize(torch.cat(made, dim=1), dim=2)


def draw_pairs(
    available: Tensor, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws which of its hardest negatives each query mixes, and how.

    Args:
        available: (N,) int, how many each query has to choose from.
        pairs: k.
        generator: where the random numbers come from.

    Returns:
        (N, k) places a and b, a ≠ b wherever there are two to choose from, all ordered pairs
        equally likely; and (N, k) α in [0, 1).
    """
    first, second, alpha = _uniform(3, available, pairs, generator)
    count = available.clamp(min=1)[:, None]
    a = _below(first, count)
    step = 1 + _below(second, (count - 1).clamp(min=1))
    return a, (a + step) % count, alpha


def draw_partners(
    available: Tensor, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws (N, k′) places a of the negatives that meet the query, and (N, k′) γ in [0, 0.5)."""
    first, gamma = _uniform(2, available, queries, generator)
    return _below(first, available.clamp(min=1)[:, None]), gamma / 2


def _uniform(number: int, available: Tensor, width: int, generator: torch.Generator) -> Tensor:
    shape = (number, len(available), width)
    return torch.rand(shape, generator=generator, device=available.device)


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
