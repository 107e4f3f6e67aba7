"""The contrastive losses of MoCo and SimCLR, with a policy for the negatives.

They compute the formula in :mod:`solo_hardneg.kernels.formula`. All backends give the same loss;
``dense`` holds all N×M similarities and is the readable reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.kernels.candidates import QueueCandidates, batch_candidates
from solo_hardneg.kernels.dispatch import contrastive_loss
from solo_hardneg.kernels.formula import info_nce
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.stats import LossStats

__all__ = ["check_no_queue", "info_nce", "mocov2plus_loss_func", "simclr_loss_func"]

Observer = Callable[[Pool], None]
Reporter = Callable[[LossStats], None]


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
    query_thresholds: Tensor | None = None,
    queue_age: Tensor | None = None,
    queue_size: int | None = None,
    observe: Observer | None = None,
    report: Reporter | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes MoCo's loss over the negatives that a policy leaves.

    The positional arguments are those of solo-learn's function of this name; so is the value if
    ``policy`` is ``None``. MoCo: He et al. 2020 (arXiv 1911.05722), eq. 1.

    Args:
        query: (N, D) unit vectors.
        key: (N, D) unit vectors, the positives; without gradient if from the momentum encoder.
        queue: (D, M) unit vectors, the negatives. If M = 0, the loss is 0.
        temperature: τ > 0.
        policy: Policy applied to the negatives; ``None`` uses all of them.
        query_labels, queue_labels: (N,) and (M,) int, classes, -1 where unknown; for ``label``.
        query_indexes, queue_indexes: (N,) and (M,) int, dataset indexes; for ``image``.
        query_thresholds: (N,) learned thresholds of the queries' images; for ``above: learned``.
        queue_age: (M,) int, 0 for the newest key, 1 for the next; for ``fill: older``.
        queue_size: K, number of keys that are negatives, the newest; older ones are the reserve.
            ``None`` for all. If K < M, needs ``queue_age``.
        observe: Called with the pool that the policy left, with ``positive`` and ``offered`` set,
            and with the note ``floored`` if τ⁺ > 0. The pool holds all N×M similarities, so this
            costs as much as ``dense``.
        report: Called with :class:`~solo_hardneg.negatives.LossStats`, at no cost.
        backend: ``dense``, ``chunked``, ``numba``, ``triton``; or ``auto``, the fastest that fits.
            All but ``dense`` compute the gradient in the forward pass: ``queue`` may be overwritten
            before the backward pass, and there is no second derivative.

    Returns:
        The mean loss over the queries, a scalar.

    Raises:
        ConfigError: Shapes don't match, an input that the policy needs is missing, or the backend
            is not available.
        TooFewNegativesError: The policy finds too few negatives.
    """
    _check_temperature(temperature)
    if query.shape != key.shape or queue.shape[:1] != query.shape[1:]:
        raise ConfigError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, queue {tuple(queue.shape)}: "
            "must be (N, D), (N, D) and (D, M). The queue holds one key per column."
        )
    _check_policy(policy)
    _check_length("query_labels", query_labels, "query", len(query))
    _check_length("query_indexes", query_indexes, "query", len(query))
    _check_length("query_thresholds", query_thresholds, "query", len(query))
    _check_length("queue_labels", queue_labels, "queue", queue.shape[1])
    _check_length("queue_indexes", queue_indexes, "queue", queue.shape[1])
    _check_length("queue_age", queue_age, "queue", queue.shape[1])
    with torch.autocast(query.device.type, enabled=False):
        dtype = _compute_dtype(query, key, queue)
        candidates = QueueCandidates(
            query,
            queue.T,
            query_labels=query_labels,
            labels=queue_labels,
            query_indexes=query_indexes,
            indexes=queue_indexes,
            query_thresholds=query_thresholds,
            age=queue_age,
            queue_size=queue_size,
        )
        positive = torch.einsum("nd,nd->n", query.to(dtype), key.to(dtype))
        loss, stats = contrastive_loss(
            candidates, positive, dtype, policy, temperature, backend, observe
        )
    if report is not None:
        report(stats)
    return loss


def simclr_loss_func(
    z: Tensor,
    indexes: Tensor,
    temperature: float = 0.1,
    *,
    policy: Policy | None = None,
    query_labels: Tensor | None = None,
    labels: Tensor | None = None,
    query_thresholds: Tensor | None = None,
    observe: Observer | None = None,
    report: Reporter | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes SimCLR's loss over the negatives that a policy leaves.

    The positional arguments are those of solo-learn's function of this name; so is the value if
    ``policy`` is ``None``. The negatives of a view are the views of all other images on all ranks.
    SimCLR: Chen et al. 2020 (arXiv 2002.05709), eq. 1.

    Args:
        z: (V·B, D) projections of this rank's B images in V views, view after view; need not be
            normalised.
        indexes: (V·B,) int, dataset index of the image of each row; rows of equal index are
            positives. Classes instead of indexes give supervised contrast.
        temperature: τ > 0.
        policy: Policy applied to the negatives; ``None`` uses all of them.
        query_labels, labels: (V·B,) int, classes, -1 where unknown; for ``label``. Two names of one
            argument, since each row is a query and a negative of other rows.
        query_thresholds: (V·B,) learned thresholds of the images; for ``above: learned``.
        observe: Called with the pool that the policy left, with ``positive`` and ``offered`` set,
            and with the note ``floored`` if τ⁺ > 0. The pool holds all N×M similarities, so this
            costs as much as ``dense``.
        report: Called with :class:`~solo_hardneg.negatives.LossStats`, at no cost.
        backend: ``dense``, ``chunked``, ``numba``, ``triton``; or ``auto``, the fastest that fits.
            All but ``dense`` compute the gradient in the forward pass: there is no second
            derivative.

    Returns:
        The mean loss over this rank's rows, a scalar.

    Raises:
        ConfigError: Lengths don't match, an input that the policy needs is missing, or the backend
            is not available.
        TooFewNegativesError: The policy finds too few negatives. On a GPU that isn't checked, since
            the CPU would have to wait; a query without negatives has loss 0.
    """
    _check_temperature(temperature)
    _check_policy(policy)
    if policy is not None:
        check_no_queue(policy)
    query_labels = labels if query_labels is None else query_labels
    _check_length("indexes", indexes, "z", len(z))
    _check_length("query_labels", query_labels, "z", len(z))
    _check_length("query_thresholds", query_thresholds, "z", len(z))
    with torch.autocast(z.device.type, enabled=False):
        z = torch.nn.functional.normalize(z.to(_compute_dtype(z)), dim=-1)
        candidates = batch_candidates(z, indexes, query_labels, query_thresholds)
        loss, stats = contrastive_loss(
            candidates, None, z.dtype, policy, temperature, backend, observe
        )
    if report is not None:
        report(stats)
    return loss


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is; float32 otherwise, also for half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def check_no_queue(policy: Policy) -> None:
    """Raises ConfigError if a policy needs a queue, which SimCLR doesn't have."""
    if "queue" in policy.needs:
        raise ConfigError(
            f"negatives={policy.config}: needs a queue, and SimCLR's negatives are the batch. "
            "Use a MoCo method, or take fill (negatives.fill=null) and retain "
            "(negatives.retain=null) out."
        )


def _check_policy(policy: Policy | None) -> None:
    if policy is not None and not isinstance(policy, Policy):
        raise ConfigError(
            f"policy={policy!r}: must be None or a Policy. Build one from a mapping of verbs by "
            "negatives.build({...})."
        )


def _check_length(name: str, known: Tensor | None, of: str, count: int) -> None:
    if known is not None and known.shape != (count,):
        raise ConfigError(
            f"{name} {tuple(known.shape)}: must be ({count},), one for each vector of {of}."
        )


def _check_temperature(temperature: float) -> None:
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise bad_value(
            "temperature", "a tensor that requires grad", "must be a number", "Use its item()."
        )
    if not 0 < temperature < math.inf:
        raise bad_value(
            "temperature", temperature, "must be a number above 0", "The papers use 0.07 to 0.5."
        )
