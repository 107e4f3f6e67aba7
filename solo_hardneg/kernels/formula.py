r"""The contrastive loss behind every method, as a readable formula.

Query i has the similarity sᵢ⁺ to its positive and sᵢⱼ to each of its Mᵢ negatives; τ is the
temperature:

    Lᵢ = -sᵢ⁺/τ + log( exp(sᵢ⁺/τ) + Gᵢ )
    G̃ᵢ = ( Σⱼ wᵢⱼ·exp(sᵢⱼ/τ) - τ⁺·Mᵢ·exp(sᵢ⁺/τ) ) / (1 - τ⁺)
    Gᵢ = max( G̃ᵢ, Mᵢ·exp(-1/τ) )                 (the floor; it binds only if τ⁺ > 0)
    wᵢⱼ = exp(β·sᵢⱼ/τ) / meanⱼ exp(β·sᵢⱼ/τ)        (the mean over the negatives present)

With β = τ⁺ = 0 this is InfoNCE (van den Oord et al. 2018), the loss of MoCo and SimCLR; with β = 0
it is DCL (Chuang et al. 2020); in full it is HCL (Robinson et al. 2021) and, with synthetic
negatives, SSCL (Dong et al. 2023, eq. 3 and 4). A policy selects the negatives and sets β and τ⁺.
The loss is computed in log space and in float32 even under autocast: (1+β)/τ reaches 20 at τ = 0.1,
and float16 overflows above exp(11).

The formula needs two sums over the negatives and their count, :class:`LogSums`. Here they come from
a pool that holds all similarities; the kernels compute them without a pool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solo_hardneg.negatives.pool import Pool


@dataclass(frozen=True)
class LogSums:
    """Sums over the negatives of n queries, and by-products of a kernel.

    Attributes:
        total: (n,) log Σⱼ exp((1+β)·sᵢⱼ/τ); undefined for a query without negatives.
        weights: (n,) log Σⱼ exp(β·sᵢⱼ/τ), likewise; ``None`` if all negatives weigh the same.
        counts: (n,) int64, Mᵢ.
        hardest: (n, s) int64 columns of the hardest negatives, hardest first, ties as in bands.
            Other columns fill the row of a query with fewer than s. ``None`` if not requested.
        partners: (n,) log Σ exp(s/τ) over the positives; ``None`` if they are not candidates.
        hard_share: (M,) share of these queries for which each candidate is hard, if requested.
        notes: (n,) values to log, by name.
        mixed: Number of synthetic negatives per query included in these sums.
    """

    total: Tensor
    weights: Tensor | None
    counts: Tensor
    hardest: Tensor | None = None
    partners: Tensor | None = None
    hard_share: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    mixed: int = 0

    def plus(self, similarity: Tensor, present: Tensor, temperature: float, beta: float) -> LogSums:
        """Includes k more negatives per query.

        Args:
            similarity: (n, k) similarities.
            present: (n, k) bool, which of them count.
            temperature: τ > 0.
            beta: β ≥ 0.
        """
        empty = self.counts == 0

        def include(log_sum: Tensor, logits: Tensor) -> Tensor:
            log_sum = log_sum.masked_fill(empty, 0.0)[:, None]  # the gradient of -inf is NaN
            logits = logits.masked_fill(~present, -torch.inf)
            return torch.logsumexp(torch.cat([log_sum, logits], dim=1), dim=1)

        scaled = similarity / temperature
        weights = None if self.weights is None else include(self.weights, beta * scaled)
        total = include(self.total, (1 + beta) * scaled)
        return LogSums(total, weights, self.counts + present.sum(dim=1))


def log_sums(pool: Pool, temperature: float) -> LogSums:
    """Returns the sums over the negatives present in a pool."""
    if pool.log_weight is not None:
        pool = pool.without(pool.log_weight == -torch.inf)
    scaled = pool.similarity / temperature
    # The gradient of log-sum-exp over an empty row is 0·NaN, so such a row sums all candidates.
    summed = pool.present | ~pool.present.any(dim=1, keepdim=True)
    logits = scaled.masked_fill(~summed, -torch.inf)
    if pool.beta == 0 and pool.log_weight is None:
        return LogSums(torch.logsumexp(logits, dim=1), None, pool.counts)
    log_weight = pool.beta * scaled
    if pool.log_weight is not None:
        log_weight = log_weight + pool.log_weight
    log_weight = log_weight.masked_fill(~summed, -torch.inf)
    total = torch.logsumexp(logits + log_weight, dim=1)
    return LogSums(total, torch.logsumexp(log_weight, dim=1), pool.counts)


def info_nce(
    positive: Tensor, pool: Pool, temperature: float, positive_count: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Returns the losses Lᵢ over the negatives of a pool; see :func:`losses_from_sums`."""
    sums = log_sums(pool, temperature)
    return losses_from_sums(positive, sums, temperature, pool.tau_plus, positive_count)


def losses_from_sums(
    positive: Tensor,
    sums: LogSums,
    temperature: float,
    tau_plus: float = 0.0,
    positive_count: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Returns the loss Lᵢ of each query.

    Args:
        positive: (N,) similarity sᵢ⁺. Several positives of a query are combined into
            τ·log Σ exp(s/τ).
        sums: Sums over the negatives, which include β.
        temperature: τ > 0.
        tau_plus: τ⁺.
        positive_count: (N,) or one number of positives per query; τ⁺ multiplies their mean.

    Returns:
        (N,) losses, 0 and without gradient for a query without negatives; and (N,) bool, whether
        the floor binds.
    """
    empty = sums.counts == 0
    log_count = sums.counts.clamp(min=1).to(positive.dtype).log()
    log_sum = sums.total.masked_fill(empty, 0.0)
    if sums.weights is not None:
        log_sum = log_sum - (sums.weights.masked_fill(empty, 0.0) - log_count)
    log_positive = positive / temperature - torch.as_tensor(positive_count).log()
    log_g, floored = _log_debiased(log_sum, log_count, log_positive, tau_plus, temperature)
    log_g = log_g.masked_fill(empty, -torch.inf)
    # Above its threshold softplus drops a term below float32's precision, though not float64's.
    losses = torch.nn.functional.softplus(log_g - positive / temperature, threshold=50)
    return losses, floored & ~empty


def _log_debiased(
    log_sum: Tensor, log_count: Tensor, log_positive: Tensor, tau_plus: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns (N,) log Gᵢ, and (N,) bool, whether the floor binds.

    ``log_positive`` is (N,) the logarithm of the mean of exp(s/τ) over a query's positives.
    """
    if tau_plus == 0:
        return log_sum, torch.zeros_like(log_sum, dtype=torch.bool)
    # log(a - b) = log a + log(1 - exp(log b - log a)), defined only for a > b.
    gap = math.log(tau_plus) + log_count + log_positive - log_sum
    log_floor = log_count - 1 / temperature

    def log_difference(gap: Tensor) -> Tensor:
        return log_sum + (-torch.expm1(gap)).log() - math.log1p(-tau_plus)

    with torch.no_grad():
        floored = ~(log_difference(gap) > log_floor)  # NaN where a < b
    return torch.where(floored, log_floor, log_difference(gap.masked_fill(floored, -1.0))), floored
