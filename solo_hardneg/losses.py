r"""The contrastive losses, dense and readable.

Query i has its positive's similarity sᵢ⁺, the similarities sᵢⱼ of its Mᵢ negatives j, and the
temperature τ. Every method here is one formula:

    Lᵢ = -sᵢ⁺/τ + log( exp(sᵢ⁺/τ) + Gᵢ )
    G̃ᵢ = ( Σⱼ wᵢⱼ·exp(sᵢⱼ/τ) - τ⁺·Mᵢ·exp(sᵢ⁺/τ) ) / (1 - τ⁺)
    Gᵢ = max( G̃ᵢ, Mᵢ·exp(-1/τ) )                 (the floor; it binds only if τ⁺ > 0)
    wᵢⱼ = exp(β·sᵢⱼ/τ) / meanⱼ exp(β·sᵢⱼ/τ)        (the mean over the negatives present)

With β = τ⁺ = 0 this is InfoNCE (van den Oord et al. 2018), MoCo's and SimCLR's loss; with β = 0 it
is DCL (Chuang et al. 2020); in full it is HCL (Robinson et al. 2021) and, with synthetic negatives
among the j, SSCL (Dong et al. 2023, eq. 3 and 4). A policy decides which j there are and sets β
and τ⁺. Everything is computed from logarithms and in float32, whatever autocast says: (1+β)/τ
reaches 20 at τ = 0.1, and float16 ends at exp(11).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from solo_hardneg.distributed import gather, get_rank
from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool, full_pool

Observer = Callable[[Pool], None]


def info_nce(
    positive: Tensor, pool: Pool, temperature: float, positives: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """The loss of each query, Lᵢ.

    Args:
        positive: (N,) similarity sᵢ⁺ of each query to its positive. Several positives count
            together: τ·log Σ exp(s/τ) over them.
        pool: the negatives of each query, and the knobs β and τ⁺.
        temperature: τ > 0.
        positives: (N,) or one number, how many positives there are; τ⁺ goes with their mean.

    Returns:
        (N,) losses; 0, with no gradient, for a query that has no negatives. And (N,) bool, where
        the floor binds.
    """
    if pool.log_weight is not None:
        pool = pool.without(pool.log_weight == -torch.inf)
    log_sum, log_count = _log_sum_of_negatives(pool, temperature)
    mean_positive = positive / temperature - torch.as_tensor(positives).log()
    log_g, floored = _debiased(log_sum, log_count, mean_positive, pool.tau_plus, temperature)
    alone = ~pool.present.any(dim=1)
    log_g = log_g.masked_fill(alone, -torch.inf)
    # Beyond its threshold softplus leaves out what float32 doesn't hold, and float64 does.
    losses = torch.nn.functional.softplus(log_g - positive / temperature, threshold=50)
    return losses, floored & ~alone


def _log_sum_of_negatives(pool: Pool, temperature: float) -> tuple[Tensor, Tensor]:
    """(N,) log Σⱼ wᵢⱼ·exp(sᵢⱼ/τ), and (N,) log Mᵢ; arbitrary but finite without negatives."""
    scaled = pool.similarity / temperature
    # The gradient of log-sum-exp over nothing is 0·NaN, so such a row takes all of them.
    summed = pool.present | ~pool.present.any(dim=1, keepdim=True)
    logits = scaled.masked_fill(~summed, -torch.inf)
    log_count = summed.sum(dim=1).to(scaled.dtype).log()
    if pool.beta == 0 and pool.log_weight is None:
        return torch.logsumexp(logits, dim=1), log_count
    log_weight = pool.beta * scaled
    if pool.log_weight is not None:
        log_weight = log_weight + pool.log_weight
    log_weight = log_weight.masked_fill(~summed, -torch.inf)
    log_mean = torch.logsumexp(log_weight, dim=1) - log_count
    return torch.logsumexp(logits + log_weight, dim=1) - log_mean, log_count


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


def mocov2plus_loss_func(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float = 0.1,
    *,
    policy: Policy | None = None,
    query_labels: Tensor | None = None,
    queue_labels: Tensor | None = None,
    query_indexes: Tensor | None = None,
    queue_indexes: Tensor | None = None,
    queue_age: Tensor | None = None,
    queue_size: int | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """MoCo's loss, with the negatives that a policy leaves.

    Takes what solo-learn's function of this name takes, and returns its value where ``policy`` is
    ``None``.

    Args:
        query: (N, D) unit vectors.
        key: (N, D) unit vectors, the positives; from the momentum encoder they are constants.
        queue: (D, M) unit vectors, the negatives. It may hold no key yet (M = 0); then the loss
            is 0.
        temperature: τ > 0.
        policy: what is done to the negatives; ``None`` leaves them as they are.
        query_labels, queue_labels: (N,) and (M,) classes, -1 where unknown; for ``label``.
        query_indexes, queue_indexes: (N,) and (M,) places in the dataset; for ``image``.
        queue_age: (M,) int, 0 for the newest key, counting up without gaps; for ``fill: older``.
        queue_size: K, how many of the newest keys are negatives; the older ones are the reserve.
            ``None`` takes all of them. Needs ``queue_age``.
        observe: called with the pool that the policy left, in which ``positive`` and ``offered``
            are set; its notes say which rows are ``floored``, if there is a τ⁺.

    Returns:
        The mean loss over the queries, a scalar.

    Raises:
        ConfigError: shapes that don't go together, or something that the policy needs is missing.
    """
    _check_temperature(temperature)
    if query.ndim != 2 or query.shape != key.shape or queue.shape[:1] != query.shape[1:]:
        raise ConfigError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, queue {tuple(queue.shape)}: "
            "must be (N, D), (N, D) and (D, M). The queue holds one key per column."
        )
    _check_policy(policy)
    for name, known, of, count in (
        ("query_labels", query_labels, "query", len(query)),
        ("query_indexes", query_indexes, "query", len(query)),
        ("queue_labels", queue_labels, "queue", queue.shape[1]),
        ("queue_indexes", queue_indexes, "queue", queue.shape[1]),
        ("queue_age", queue_age, "queue", queue.shape[1]),
    ):
        _check_length(name, known, of, count)
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = _floats(query, key, queue)
        positive = torch.einsum("nd,nd->n", query, key)
        pool = full_pool(
            query @ queue,
            query_labels=query_labels,
            labels=queue_labels,
            query_indexes=query_indexes,
            indexes=queue_indexes,
            age=queue_age,
            query=query,
            vectors=queue.T,
            positive=positive,
        )
        pool = _split_reserve(pool, queue_size).offer()
        if policy is not None and queue.shape[1] > 0:
            pool = policy(pool)
        return _mean_loss(positive, pool, temperature, 1.0, observe)


def simclr_loss_func(
    z: Tensor,
    indexes: Tensor,
    temperature: float = 0.1,
    *,
    policy: Policy | None = None,
    query_labels: Tensor | None = None,
    labels: Tensor | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """SimCLR's loss, with the negatives that a policy leaves.

    Takes what solo-learn's function of this name takes, and returns its value where ``policy`` is
    ``None``. The negatives of a view are the views of all other images on all ranks.

    Args:
        z: (V·B, D) projections of this rank's B images in V views, view after view; they are
            normalised here.
        indexes: (V·B,) which image (or, for supervised contrast, which class) each row is of.
        temperature: τ > 0.
        policy: what is done to the negatives; ``None`` leaves them as they are.
        query_labels, labels: (V·B,) classes, -1 where unknown; for the condition ``label``. Two
            names of one thing, for here each row is a query and a negative of others.
        observe: called with the pool that the policy left, in which ``positive`` and ``offered``
            are set; its notes say which rows are ``floored``, if there is a τ⁺.

    Returns:
        The mean loss over this rank's rows, a scalar.

    Raises:
        ConfigError: lengths that don't go together, or something that the policy needs is missing.
    """
    _check_temperature(temperature)
    _check_policy(policy)
    if policy is not None:
        check_no_queue(policy)
    query_labels = labels if query_labels is None else query_labels
    _check_length("indexes", indexes, "z", len(z))
    _check_length("query_labels", query_labels, "z", len(z))
    with torch.autocast(z.device.type, enabled=False):
        (z,) = _floats(z)
        z = torch.nn.functional.normalize(z, dim=-1)
        all_indexes = gather(indexes)
        everybody = gather(z)
        similarity = z @ everybody.T
        same = indexes[:, None] == all_indexes[None, :]
        itself = torch.zeros_like(same)
        rows = torch.arange(len(z), device=z.device)
        itself[rows, rows + len(z) * get_rank()] = True
        partner = same & ~itself
        positive = (similarity / temperature).masked_fill(~partner, -torch.inf)
        # Several positives of a row (more than two views) count together, as in the host.
        together = torch.logsumexp(positive, dim=1) * temperature
        number = partner.sum(dim=1).clamp(min=1).to(z.dtype)
        counts = (~same).sum(dim=1)
        equal = bool((counts == counts[0]).all())  # not so where an image came twice
        pool = Pool(
            similarity,
            present=~same,
            count=int(counts[0]) if equal else None,
            query_labels=query_labels,
            labels=None if query_labels is None else gather(query_labels),
            query_indexes=indexes,
            indexes=all_indexes,
            query=z,
            vectors=everybody,
            positive=similarity.masked_fill(~partner, 0.0).sum(dim=1) / number,
        )
        pool = pool.offer()
        if policy is not None:
            pool = policy(pool)
        return _mean_loss(together, pool, temperature, number, observe)


def _mean_loss(
    positive: Tensor,
    pool: Pool,
    temperature: float,
    positives: Tensor | float,
    observe: Observer | None,
) -> Tensor:
    losses, floored = info_nce(positive, pool, temperature, positives)
    if observe is not None:
        observe(pool.note(floored=floored.float()) if pool.tau_plus else pool)
    return losses.mean()


def _split_reserve(pool: Pool, queue_size: int | None) -> Pool:
    """Makes the keys that are older than the ``queue_size`` newest the reserve."""
    width = pool.similarity.shape[1]
    if queue_size is None or queue_size >= width:
        return pool
    if pool.age is None:
        raise ConfigError(
            f"queue_size={queue_size}: is less than the {width} keys in the queue, and which of "
            "them are the newest is not known. Pass queue_age= too."
        )
    older = (pool.age >= queue_size)[None, :].expand_as(pool.present)
    return replace(pool, present=pool.present & ~older, reserve=older, count=queue_size)


def _floats(*tensors: Tensor) -> tuple[Tensor, ...]:
    """float16 and bfloat16 become float32; where one is float64, all become it."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return tuple(t.double() if wide else t.float() for t in tensors)


def check_no_queue(policy: Policy) -> None:
    """Refuses, for SimCLR, a policy that needs a queue.

    Raises:
        ConfigError: it does.
    """
    if "queue" in policy.needs:
        raise ConfigError(
            f"negatives={policy.config}: needs a queue, and SimCLR's negatives are the batch. "
            "Use a MoCo method, or take fill (negatives.fill=null) and retain "
            "(negatives.retain=null) out."
        )


def _check_policy(policy: Policy | None) -> None:
    if policy is not None and not isinstance(policy, Policy):
        raise ConfigError(
            f"policy={policy!r}: must be None or a policy, as negatives.build({{...}}) makes it "
            "from a mapping of verbs."
        )


def _check_length(name: str, known: Tensor | None, of: str, count: int) -> None:
    if known is not None and known.shape != (count,):
        raise ConfigError(
            f"{name} {tuple(known.shape)}: must be ({count},), one for each vector of {of}."
        )


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise bad_value(
            "temperature", temperature, "must be a number above 0", "The papers use 0.07 to 0.5."
        )
