"""Formulas of ``mix``: random draws, and synthetic negatives of six kinds.

All are combinations of a negative n with another one, with the query q, or with noise:

- pairs: α·nₐ + (1-α)·n_b, α ~ U(0, 1), a ≠ b
- queries: γ·q + (1-γ)·n, γ ~ U(0, 0.5)
- beyond: q + β·(n - q), β ~ U(1, 1.5)
- noise: n + ε, ε ~ N(0, σ²I)
- toward: n + δ·q
- adversarial: n + η·sign(q)

divided by their norm. The first two are MoCHi's (Kalantidis et al. 2020, arXiv 2010.01028, section
4), the others SynCo's (Giakoumoglou & Stathaki 2024, arXiv 2410.02401, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from solo_hardneg.distributed import get_rank

KINDS = ("pairs", "queries", "beyond", "noise", "toward", "adversarial")
_UNIFORM = {"pairs": 3, "queries": 2, "beyond": 2, "noise": 1, "toward": 1, "adversarial": 1}
_LEAST_NORM = 1e-12  # as torch.nn.functional.normalize


@dataclass(frozen=True)
class RandomNumbers:
    """Random numbers of a step, for N queries.

    Attributes:
        uniform: By kind, (u, N, count) numbers in [0, 1).
        normal: (N, count, D) standard normal numbers of ``noise``; ``None`` without it.
    """

    uniform: Mapping[str, Tensor]
    normal: Tensor | None = None

    @staticmethod
    def draw(counts: Mapping[str, int], query: Tensor) -> RandomNumbers:
        """Draws the numbers of one step for all queries of this rank.

        Args:
            counts: Synthetic negatives per query, by kind.
            query: (N, D) queries.
        """
        device, (queries, dimensions) = query.device, query.shape
        generator = _generator(device)
        own: dict[str, Any] = {"generator": generator, "device": device}
        uniform = {kind: torch.rand(_UNIFORM[kind], queries, counts[kind], **own) for kind in KINDS}
        if not counts["noise"]:
            return RandomNumbers(uniform)
        return RandomNumbers(uniform, torch.randn(queries, counts["noise"], dimensions, **own))

    def rows(self, which: slice) -> RandomNumbers:
        """Returns the numbers of some queries."""
        uniform = {kind: numbers[:, which] for kind, numbers in self.uniform.items()}
        return RandomNumbers(uniform, None if self.normal is None else self.normal[which])


def _generator(device: torch.device) -> torch.Generator:
    """Makes the random generator of this step and rank.

    Its seed comes from the global generator, so the run's seed and saved random state determine it.
    That state may be equal on all ranks, so the rank is added.
    """
    seed = int(torch.randint(2**62, ()))
    return torch.Generator(device).manual_seed(seed + get_rank())


# ---------------------------------------------------------------------- draws


def draw_pairs(available: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws which two of its hardest negatives each query mixes, and how.

    Args:
        available: (N,) int, number of hardest negatives of each query.
        uniform: (3, N, k) random numbers in [0, 1).

    Returns:
        (N, k) int places a and b among the hardest, all ordered pairs a ≠ b equally likely if there
        are two; and (N, k) α in [0, 1).
    """
    first, second, alpha = uniform
    count = available.clamp(min=1)[:, None]
    a = _integers_below(first, count)
    step = 1 + _integers_below(second, (count - 1).clamp(min=1))
    return a, (a + step) % count, alpha


def draw_places(available: Tensor, uniform: Tensor) -> Tensor:
    """Draws one of its hardest negatives for each of k synthetic ones.

    Args:
        available: (N,) int, number of hardest negatives of each query.
        uniform: (N, k) random numbers in [0, 1).

    Returns:
        (N, k) int places among the hardest.
    """
    return _integers_below(uniform, available.clamp(min=1)[:, None])


def draw_partners(available: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draws which of its hardest negatives each query is mixed with, and how.

    Args:
        available: (N,) int, number of hardest negatives of each query.
        uniform: (2, N, k′) random numbers in [0, 1).

    Returns:
        (N, k′) int places a among the hardest; and (N, k′) γ in [0, 0.5).
    """
    first, gamma = uniform
    return draw_places(available, first), gamma / 2


def _integers_below(uniform: Tensor, count: Tensor) -> Tensor:
    """Scales numbers in [0, 1) to integers in [0, count)."""
    return (uniform.double() * count).long()


# ---------------------------------------------------------------------- similarities


def similarity_of_vectors(query: Tensor, synthetic: Tensor) -> Tensor:
    """(n, k) similarities of (n, D) queries to (n, k, D) vectors, which are normalised first."""
    return torch.einsum("nd,nkd->nk", query, normalize(synthetic, dim=2))


def similarity_of_combination(
    query: Tensor,
    negatives: Tensor,
    of_other: Tensor | float,
    of_negative: Tensor | float,
    other: Tensor | None = None,
    detach: bool = True,
) -> Tensor:
    """(n, k) similarities of queries to (c·x + c′·n)/‖·‖, of which no vector is made.

        q·h = (c·q·x + c′·q·n) / ‖c·x + c′·n‖,  ‖·‖² = c²·x·x + c′²·n·n + 2·c·c′·x·n

    Args:
        query: (n, D), q.
        negatives: (n, k, D), n.
        of_other, of_negative: (n, k) or one number, c and c′.
        other: (n, D), x; ``None`` for the query itself.
        detach: Whether h is a constant.
    """
    similarity = torch.einsum("nd,nkd->nk", query, negatives)
    own = query if other is None else other
    cross = similarity if other is None else torch.einsum("nd,nkd->nk", own, negatives)
    if detach:
        own, cross = own.detach(), cross.detach()
    square = own.square().sum(dim=1, keepdim=True)
    of_n = torch.einsum("nkd,nkd->nk", negatives, negatives)
    squares = of_other**2 * square + of_negative**2 * of_n + 2 * of_other * of_negative * cross
    norm = squares.clamp(min=_LEAST_NORM**2).sqrt()
    along = (query * own).sum(dim=1, keepdim=True)
    return (of_other * along + of_negative * similarity) / norm
