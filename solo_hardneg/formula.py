r"""The one formula behind every method here, readable.

Query i has its positive's similarity sᵢ⁺, the similarities sᵢⱼ of its Mᵢ negatives j, and the
temperature τ:

    Lᵢ = -sᵢ⁺/τ + log( exp(sᵢ⁺/τ) + Gᵢ )
    G̃ᵢ = ( Σⱼ wᵢⱼ·exp(sᵢⱼ/τ) - τ⁺·Mᵢ·exp(sᵢ⁺/τ) ) / (1 - τ⁺)
    Gᵢ = max( G̃ᵢ, Mᵢ·exp(-1/τ) )                 (the floor; it binds only if τ⁺ > 0)
    wᵢⱼ = exp(β·sᵢⱼ/τ) / meanⱼ exp(β·sᵢⱼ/τ)        (the mean over the negatives present)

With β = τ⁺ = 0 this is InfoNCE (van den Oord et al. 2018), MoCo's and SimCLR's loss; with β = 0 it
is DCL (Chuang et al. 2020); in full it is HCL (Robinson et al. 2021) and, with synthetic negatives
among the j, SSCL (Dong et al. 2023, eq. 3 and 4). A policy decides which j there are and sets β
and τ⁺. Everything is computed from logarithms and in float32, whatever autocast says: (1+β)/τ
reaches 20 at τ = 0.1, and float16 ends at exp(11).

Of the negatives the formula needs two sums and their number, :class:`LogSums`. Here they are taken
over a pool that holds every similarity; the kernels find them without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_hardneg.negatives.pool import Pool


@dataclass(frozen=True)
class LogSums:
    """What the formula needs of the negatives of N queries.

    Attributes:
        total: (N,) log Σⱼ exp((1+β)·sᵢⱼ/τ), anything for a query without negatives.
        weights: (N,) log Σⱼ exp(β·sᵢⱼ/τ), likewise; ``None`` where all count alike.
        counts: (N,) int, Mᵢ.
    """

    total: Tensor
    weights: Tensor | None
    counts: Tensor

    def plus(self, similarity: Tensor, present: Tensor, temperature: float, beta: float) -> LogSums:
        """Those of some more negatives, (N, k) similarities and which of them are present."""
        alone = self.counts == 0

        def joined(log_sum: Tensor, logits: Tensor) -> Tensor:
            log_sum = log_sum.masked_fill(alone, 0.0)[:, None]  # the gradient of -inf is NaN
            logits = logits.masked_fill(~present, -torch.inf)
            return torch.logsumexp(torch.cat([log_sum, logits], dim=1), dim=1)

        scaled = similarity / temperature
        weights = None if self.weights is None else joined(self.weights, beta * scaled)
        total = joined(self.total, (1 + beta) * scaled)
        return LogSums(total, weights, self.counts + present.sum(dim=1))


def log_sums(pool: Pool, temperature: float) -> LogSums:
    """The sums over the negatives present in a pool."""
    if pool.log_weight is not None:
        pool = pool.without(pool.log_weight == -torch.inf)
    scaled = pool.similarity / temperature
    # The gradient of log-sum-exp over nothing is 0·NaN, so such a row takes all of them.
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
    positive: Tensor, pool: Pool, temperature: float, positives: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """The loss of each query, Lᵢ, over the negatives of a pool; see :func:`losses_from`."""
    sums = log_sums(pool, temperature)
    return losses_from(positive, sums, temperature, pool.tau_plus, positives)


def losses_from(
    positive: Tensor,
    sums: LogSums,
    temperature: float,
    tau_plus: float = 0.0,
    positives: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The loss of each query, Lᵢ.

    Args:
        positive: (N,) similarity sᵢ⁺ of each query to its positive. Several positives count
            together: τ·log Σ exp(s/τ) over them.
        sums: what is needed of the negatives; β is in them.
        temperature: τ > 0.
        tau_plus: τ⁺.
        positives: (N,) or one number, how many positives there are; τ⁺ goes with their mean.

    Returns:
        (N,) losses; 0, with no gradient, for a query that has no negatives. And (N,) bool, where
        the floor binds.
    """
    alone = sums.counts == 0
    log_count = sums.counts.clamp(min=1).to(positive.dtype).log()
    log_sum = sums.total.masked_fill(alone, 0.0)
    if sums.weights is not None:
        log_sum = log_sum - (sums.weights.masked_fill(alone, 0.0) - log_count)
    mean_positive = positive / temperature - torch.as_tensor(positives).log()
    log_g, floored = _debiased(log_sum, log_count, mean_positive, tau_plus, temperature)
    log_g = log_g.masked_fill(alone, -torch.inf)
    # Beyond its threshold softplus leaves out what float32 doesn't hold, and float64 does.
    losses = torch.nn.functional.softplus(log_g - positive / temperature, threshold=50)
    return losses, floored & ~alone


def _debiased(
    log_sum: Tensor, log_count: Tensor, mean_positive: Tensor, tau_plus: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """(N,) log Gᵢ, and (N,) bool, where the floor binds. ``mean_positive`` is (N,) sᵢ⁺/τ."""
    if tau_plus == 0:
        return log_sum, torch.zeros_like(log_sum, dtype=torch.bool)
    # log(a - b) = log a + log(1 - exp(log b - log a)), which exists only where a > b.
    gap = math.log(tau_plus) + log_count + mean_positive - log_sum
    log_floor = log_count - 1 / temperature

    def log_difference(gap: Tensor) -> Tensor:
        return log_sum + (-torch.expm1(gap)).log() - math.log1p(-tau_plus)

    with torch.no_grad():
        floored = ~(log_difference(gap) > log_floor)  # NaN where a < b
    return torch.where(floored, log_floor, log_difference(gap.masked_fill(floored, -1.0))), floored
