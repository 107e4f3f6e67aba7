"""What a kernel takes and returns.

A kernel reduces each query's negatives to two numbers, and turns their derivatives into the
gradient of the query:

    Aᵢ = log Σⱼ exp((1+β)·sᵢⱼ/τ)        Bᵢ = log Σⱼ exp(β·sᵢⱼ/τ)

Everything else is the readable formula on (N,) tensors, in :mod:`solo_hardneg.kernels.formula`.
:mod:`solo_hardneg.kernels.blockwise` calls :meth:`Kernel.reduce` and :meth:`Kernel.pull` for one
block of queries at a time, both in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from solo_hardneg.kernels.formula import LogSums
from solo_hardneg.negatives.mix import Mix
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.synthesis import RandomNumbers


@dataclass(frozen=True)
class Ranks:
    """One range of ranks, of negatives sorted by (similarity, index) ascending.

    Attributes:
        first, past: First rank and the one after the last, 0 ≤ first < past ≤ M.
        inside: Whether the negatives in the range are kept, or all others.
    """

    first: int
    past: int
    inside: bool = True

    def kept(self, count: int) -> int:
        """Number of negatives kept out of ``count``."""
        named = self.past - self.first
        return named if self.inside else count - named


@dataclass(frozen=True)
class KernelInput:
    """N queries, M candidates, and which of them are negatives.

    Attributes:
        query: (N, D) without gradient.
        vectors: (M, D) without gradient, of the same dtype and any strides; solo-learn's
            queue (D, K) comes transposed.
        temperature: τ > 0.
        beta: β ≥ 0.
        ranks: The ranks kept, ``None`` for all. With ``own``, the query's own image has the lowest
            ranks. Ignored if ``pool_of`` is set, except by kernels that use ``own``.
        hardest: s ≥ 0, number of hardest negatives to return.
        pool_of: Returns the pool that the policy leaves for a block of queries, given their
            similarities (n, M); ``None`` if ``ranks`` decides.
        partners: Returns (n, M) bool, the positives of a block of queries among the candidates;
            ``None`` in MoCo.
        own: (N, v) int64, the ascending columns of the query's own image, and (N, v) bool, which of
            them is the query itself. With ``ranks`` equivalent to ``pool_of`` and ``partners``;
            ``None`` in MoCo, and unless ranks decide among the other images.
        mix: Verb that adds synthetic negatives; a kernel may do this itself.
        numbers: Random numbers for ``mix``.
        gradient: Whether :meth:`Kernel.pull` will be called.
        constants: Whether the candidates need no gradient.
    """

    query: Tensor
    vectors: Tensor
    temperature: float
    beta: float = 0.0
    ranks: Ranks | None = None
    hardest: int = 0
    pool_of: Callable[[slice, Tensor], Pool] | None = None
    partners: Callable[[slice], Tensor] | None = None
    own: tuple[Tensor, Tensor] | None = None
    mix: Mix | None = None
    numbers: RandomNumbers | None = None
    gradient: bool = True
    constants: bool = True


class Kernel(Protocol):
    """One backend's computation of a loss, made for one :class:`KernelInput`."""

    block: int
    """Number of queries per block."""

    def reduce(self, rows: slice) -> LogSums:
        """Returns A, B and the counts of a block of queries."""

    def pull(
        self,
        rows: slice,
        total: Tensor,
        weights: Tensor | None = None,
        partners: Tensor | None = None,
        vectors_grad: Tensor | None = None,
    ) -> Tensor:
        """Returns the gradient (n, D) of the block that was reduced last.

            Σⱼ ( ∂L/∂Aᵢ · (1+β)/τ · exp((1+β)·sᵢⱼ/τ - Aᵢ) + ∂L/∂Bᵢ · β/τ · exp(β·sᵢⱼ/τ - Bᵢ) ) · nⱼ

        plus ∂L/∂Pᵢ · 1/τ · softmax(s/τ) over the partners, where P is ``LogSums.partners``. Zero
        for a query without negatives. Called at most once per block.

        Args:
            rows: The block.
            total, weights, partners: (n,) finite derivatives of the loss with respect to A, B, P.
            vectors_grad: (M, D) to which the candidates' gradient is added; ``None`` if they are
                constants.
        """


def widened(tensor: Tensor) -> Tensor:
    """Casts float16 and bfloat16 to float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def blocks(number: int, size: int) -> Iterator[slice]:
    """Splits ``range(number)`` into slices of nearly equal length, at most ``size``.

    Products with very few rows round differently in some libraries, so that equal similarities
    would differ in a small remainder.
    """
    count = -(-number // size)
    for i in range(count):
        yield slice(number * i // count, number * (i + 1) // count)
