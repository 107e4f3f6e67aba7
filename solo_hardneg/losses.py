r"""The contrastive losses, dense and readable.

Query i has its positive's similarity sᵢ⁺, the similarities sᵢⱼ of its negatives j, and the
temperature τ:

    Lᵢ = -sᵢ⁺/τ + log( exp(sᵢ⁺/τ) + Σⱼ wᵢⱼ·exp(sᵢⱼ/τ) )

With wᵢⱼ = 1 for all negatives this is InfoNCE (van den Oord et al. 2018), MoCo's and SimCLR's
loss. A policy decides which j there are (wᵢⱼ = 0 for the others). Everything is computed from
logarithms and in float32, whatever autocast says: exp(1/τ) leaves float16's range at τ = 0.09.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from solo_hardneg.distributed import gather, get_rank
from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool, full_pool

Observer = Callable[[Pool], None]


def info_nce(positive: Tensor, pool: Pool, temperature: float) -> Tensor:
    """The loss of each query.

    Args:
        positive: (N,) similarity of each query to its positive.
        pool: the negatives of each query.
        temperature: τ > 0.

    Returns:
        (N,) losses; 0, with no gradient, for a query that has no negatives.
    """
    logits = pool.similarity.masked_fill(~pool.present, -torch.inf) / temperature
    # The gradient of log-sum-exp over nothing is 0·NaN, so such a row takes a detour.
    alone = ~pool.present.any(dim=1)
    log_sum = torch.logsumexp(logits.masked_fill(alone[:, None], 0.0), dim=1)
    log_sum = log_sum.masked_fill(alone, -torch.inf)
    return torch.nn.functional.softplus(log_sum - positive / temperature)


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
        key: (N, D) unit vectors, the positives; no gradient flows to them here, as they come from
            the momentum encoder.
        queue: (D, M) unit vectors, the negatives. It may hold no key yet (M = 0); then the loss
            is 0.
        temperature: τ > 0.
        policy: what is done to the negatives; ``None`` leaves them as they are.
        query_labels, queue_labels: (N,) and (M,) classes, -1 where unknown; for ``label``.
        query_indexes, queue_indexes: (N,) and (M,) places in the dataset; for ``image``.
        queue_age: (M,) int, 0 for the newest key, counting up without gaps; for ``fill: older``.
        queue_size: K, how many of the newest keys are negatives; the older ones are the reserve.
            ``None`` takes all of them. Needs ``queue_age``.
        observe: called with the pool that the policy left.

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
        )
        pool = _split_reserve(pool, queue_size)
        if policy is not None and queue.shape[1] > 0:
            pool = policy(pool)
        if observe is not None:
            observe(pool)
        return info_nce(positive, pool, temperature).mean()


def simclr_loss_func(
    z: Tensor,
    indexes: Tensor,
    temperature: float = 0.1,
    *,
    policy: Policy | None = None,
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
        labels: (V·B,) classes, -1 where unknown; for the condition ``label``.
        observe: called with the pool that the policy left.

    Returns:
        The mean loss over this rank's rows, a scalar.
    """
    _check_temperature(temperature)
    if policy is not None and "queue" in policy.needs:
        raise ConfigError(
            f"negatives={policy.config}: needs a queue, and SimCLR's negatives are the batch. "
            "Use a MoCo method, or set negatives.fill=none."
        )
    with torch.autocast(z.device.type, enabled=False):
        (z,) = _floats(z)
        z = torch.nn.functional.normalize(z, dim=-1)
        all_indexes = gather(indexes)
        similarity = z @ gather(z).T
        same = indexes[:, None] == all_indexes[None, :]
        itself = torch.zeros_like(same)
        rows = torch.arange(len(z), device=z.device)
        itself[rows, rows + len(z) * get_rank()] = True
        positive = (similarity / temperature).masked_fill(~same | itself, -torch.inf)
        counts = (~same).sum(dim=1)
        equal = bool((counts == counts[0]).all())  # not so where an image came twice
        pool = Pool(
            similarity,
            present=~same,
            count=int(counts[0]) if equal else None,
            query_labels=labels,
            labels=None if labels is None else gather(labels),
            query_indexes=indexes,
            indexes=all_indexes,
        )
        if policy is not None:
            pool = policy(pool)
        if observe is not None:
            observe(pool)
        # Several positives of a row (more than two views) count together, as in the host.
        positives = torch.logsumexp(positive, dim=1) * temperature
        return info_nce(positives, pool, temperature).mean()


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
    """float16 and bfloat16 become float32; float64 stays."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise bad_value(
            "temperature", temperature, "must be a number above 0", "The papers use 0.07 to 0.5."
        )
