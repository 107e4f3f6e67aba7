"""What a kernel is given, and what it gives back.

A kernel knows two numbers of each query's kept negatives, and what they do to the query:

    Aᵢ = log Σⱼ exp((1+β)·sᵢⱼ/τ)        Bᵢ = log Σⱼ exp(β·sᵢⱼ/τ)

The rest of the loss is the readable formula, on (N,) tensors, in :mod:`solo_hardneg.formula`. So a
kernel works in two stages, a block of queries at a time: :meth:`Kernel.reduce` gives A and B, the
formula gives the loss and its derivatives to A and B, and :meth:`Kernel.pull` turns those into the
gradient of the query. That happens in the forward pass; see :mod:`solo_hardneg.kernels.driver`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from solo_hardneg.negatives.mix import Mix, Uniform
from solo_hardneg.negatives.pool import Pool


@dataclass(frozen=True)
class Ranks:
    """Negatives named by rank alone: sorted by (similarity, index) ascending, as in bands.

    Attributes:
        first: the first rank, and
        past: the first one behind the last, 0 ≤ first < past ≤ M.
        inside: whether these are kept, or all others are.
    """

    first: int
    past: int
    inside: bool = True

    def kept(self, count: int) -> int:
        """How many of ``count`` negatives are kept."""
        named = self.past - self.first
        return named if self.inside else count - named


@dataclass(frozen=True)
class Own:
    """The candidates of each query's own image, where all queries have equally many.

    Attributes:
        columns: (N, v) int64, ascending.
        itself: (N, v) bool, which of them is the query; the others are its positives.
    """

    columns: Tensor
    itself: Tensor


@dataclass(frozen=True)
class Problem:
    """The negatives of N queries among M candidates, and what is asked of them.

    Attributes:
        query: (N, D), and
        vectors: (M, D), without gradient, of one floating dtype, of any strides: the queue of the
            host, (D, K), comes transposed.
        temperature: τ > 0.
        beta: β ≥ 0.
        ranks: which are kept; ``None`` for all. Where there is ``own``, these come before all
            other ranks. Says nothing where there is ``pool_of``, but to kernels that know ``own``.
        hardest: s ≥ 0, how many of the hardest kept ones the caller wants to know.
        pool_of: makes the pool of a block of queries (n,), in which a policy has left some, from
            their similarities (n, M); ``None`` where ``ranks`` says everything.
        gradient: whether :meth:`Kernel.pull` will be called, and
        constants: whether it will be without ``vectors_grad``.
        partners: which candidates are positives of a block of queries, (n, M) bool; ``None`` where
            they are none of the candidates.
        own: the same as ``pool_of`` and ``partners`` say, where ranks decide all else; ``None``
            where there are no partners, or not only ranks decide.
        mix: what adds synthetic negatives, which a kernel may do itself, and
        uniform: what was drawn for it.
    """

    query: Tensor
    vectors: Tensor
    temperature: float
    beta: float = 0.0
    ranks: Ranks | None = None
    hardest: int = 0
    pool_of: Callable[[slice, Tensor], Pool] | None = None
    partners: Callable[[slice], Tensor] | None = None
    own: Own | None = None
    mix: Mix | None = None
    uniform: Uniform | None = None
    gradient: bool = True
    constants: bool = True


@dataclass(frozen=True)
class Sums:
    """What a kernel finds for a block of n queries.

    Attributes:
        total: (n,) A; -inf for a query that keeps nothing.
        weights: (n,) B, likewise; ``None`` where β = 0.
        counts: (n,) int64, how many are kept.
        hardest: (n, s) int64, the columns of the hardest kept ones, hardest first; ties as in
            bands, so of equal ones the last column comes first. A query that keeps fewer than s
            has others at its end. ``None`` where nobody asked, or the kernel has mixed.
        partners: (n,) log Σ exp(s/τ) over the partners; ``None`` where they are none of the
            candidates.
        hard_share: (M,) of how many of these queries each candidate is among the hardest, where a
            policy asks.
        notes: (n,) values worth logging, by name.
        mixed: how many synthetic negatives are in all of these, for each query.
    """

    total: Tensor
    weights: Tensor | None
    counts: Tensor
    hardest: Tensor | None = None
    partners: Tensor | None = None
    hard_share: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    mixed: int = 0


@dataclass(frozen=True)
class Pulls:
    """The derivatives of the loss to what :meth:`Kernel.reduce` gave: (n,) each, finite."""

    total: Tensor
    weights: Tensor | None = None
    partners: Tensor | None = None


class Kernel(Protocol):
    """One way to do it, made for one problem."""

    block: int
    """How many queries to take at a time."""

    def reduce(self, rows: slice) -> Sums:
        """A and B of a block of queries."""

    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        """The gradient of the block that was reduced last.

            Σⱼ ( ∂L/∂Aᵢ · (1+β)/τ · exp((1+β)·sᵢⱼ/τ - Aᵢ) + ∂L/∂Bᵢ · β/τ · exp(β·sᵢⱼ/τ - Bᵢ) ) · nⱼ

        and, where there are partners, ∂L/∂Pᵢ · 1/τ · softmax(s/τ) over them,
        P what :class:`Sums` calls ``partners``. Zero for a query that keeps
        nothing. Called at most once per block, and not at all where nobody wants a gradient.

        Args:
            rows: the block.
            pulls: the derivatives of the loss.
            vectors_grad: (M, D), to which the gradient of the candidates is added; ``None`` where
                they are constants. Kernels of MoCo need not know it.

        Returns:
            (n, D).
        """


def widened(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; others as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def blocks(number: int, size: int) -> Iterator[slice]:
    """0 … number-1, at most ``size`` at a time, and about equally many.

    Products with very few rows go another way in some libraries, and round otherwise, so that
    similarities which are equal elsewhere would not be equal in a small remainder.
    """
    count = -(-number // size)
    for i in range(count):
        yield slice(number * i // count, number * (i + 1) // count)
