"""The contrastive losses: MoCo's and SimCLR's, with the negatives that a policy leaves.

What is computed stands in :mod:`solo_hardneg.formula`. How, the ``backend`` says: ``dense`` holds
all N×M similarities and reads like the formula; the others are in :mod:`solo_hardneg.kernels` and
equal it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_hardneg import kernels
from solo_hardneg.candidates import Candidates, QueueCandidates, batch_candidates
from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.formula import info_nce
from solo_hardneg.negatives.kept import Kept, kept_of
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool

Observer = Callable[[Pool], None]
Reporter = Callable[[Kept], None]


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
    report: Reporter | None = None,
    backend: str = "auto",
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
            are set; its notes say which rows are ``floored``, if there is a τ⁺. Such a pool holds
            all N×M similarities, so it costs what ``dense`` costs.
        report: called with the numbers of what the policy left, which cost nothing.
        backend: ``dense``, ``chunked``, ``numba`` or ``triton``; or ``auto``, the fastest that
            fits. All but ``dense`` take the gradient in the forward pass, so that ``queue`` may be
            written to before the backward pass, and have no second derivative.

    Returns:
        The mean loss over the queries, a scalar.

    Raises:
        ConfigError: shapes that don't go together, something that the policy needs is missing, or
            the backend can't be had.
    """
    _check_temperature(temperature)
    if query.shape != key.shape or queue.shape[:1] != query.shape[1:]:
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
        wide = _wide(query, key, queue)
        candidates = QueueCandidates(
            query,
            queue.T,
            query_labels=query_labels,
            labels=queue_labels,
            query_indexes=query_indexes,
            indexes=queue_indexes,
            age=queue_age,
            queue_size=queue_size,
        )
        positive = torch.einsum("nd,nd->n", query.to(wide), key.to(wide))
        how = _How(policy, temperature, backend, observe, report)
        return how.mean_loss(candidates, positive, wide)


def simclr_loss_func(
    z: Tensor,
    indexes: Tensor,
    temperature: float = 0.1,
    *,
    policy: Policy | None = None,
    query_labels: Tensor | None = None,
    labels: Tensor | None = None,
    observe: Observer | None = None,
    report: Reporter | None = None,
    backend: str = "auto",
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
            are set; its notes say which rows are ``floored``, if there is a τ⁺. Such a pool holds
            all N×M similarities, so it costs what ``dense`` costs.
        report: called with the numbers of what the policy left, which cost nothing.
        backend: ``dense``, ``chunked``, ``numba`` or ``triton``; or ``auto``, the fastest that
            fits. All but ``dense`` take the gradient in the forward pass,
            and have no second derivative.

    Returns:
        The mean loss over this rank's rows, a scalar.

    Raises:
        ConfigError: lengths that don't go together, something that the policy needs is missing, or
            the backend can't be had.
        TooFewNegativesError: the policy finds too few negatives. Only on a CPU, for a GPU would
            have to be waited for; there a query without negatives has a loss of 0.
    """
    _check_temperature(temperature)
    _check_policy(policy)
    if policy is not None:
        check_no_queue(policy)
    query_labels = labels if query_labels is None else query_labels
    _check_length("indexes", indexes, "z", len(z))
    _check_length("query_labels", query_labels, "z", len(z))
    with torch.autocast(z.device.type, enabled=False):
        z = torch.nn.functional.normalize(z.to(_wide(z)), dim=-1)
        candidates = batch_candidates(z, indexes, query_labels)
        how = _How(policy, temperature, backend, observe, report)
        return how.mean_loss(candidates, None, z.dtype)


@dataclass(frozen=True)
class _How:
    """All about a loss but its vectors."""

    policy: Policy | None
    temperature: float
    backend: str
    observe: Observer | None
    report: Reporter | None

    def mean_loss(
        self, candidates: Candidates, positive: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """The mean loss; ``positive`` (N,) are similarities, ``None`` where the candidates have
        them. ``dtype`` is what to compute in."""
        work = kernels.plan_work(
            candidates, positive, dtype, self.policy, self.temperature, self.backend
        )
        if work is None:
            return self._dense(candidates.to(dtype), positive, self.observe, self.report)
        if self.observe is not None:
            # What is drawn for the pool is drawn for the loss once more.
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._dense(candidates.to(dtype), positive, self.observe, None)
        loss, kept = kernels.loss_of(work)
        if self.report is not None:
            self.report(kept)
        return loss

    def _dense(
        self,
        candidates: Candidates,
        positive: Tensor | None,
        observe: Observer | None,
        report: Reporter | None,
    ) -> Tensor:
        pool = candidates.whole_pool(positive)
        together = candidates.together(pool.similarity, self.temperature, positive)
        if self.policy is not None and len(candidates.vectors) > 0:
            pool = self.policy(pool)
        losses, floored = info_nce(together, pool, self.temperature, candidates.positives)
        if pool.tau_plus:
            pool = pool.note(floored=floored.float())
        if observe is not None:
            observe(pool)
        if report is not None:
            report(kept_of(pool))
        return losses.mean()


def _wide(*tensors: Tensor) -> torch.dtype:
    """What to compute in: float32 for float16 and bfloat16; float64 where one is."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


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
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise bad_value(
            "temperature", "a tensor that wants a gradient", "must be a number", "Use its item()."
        )
    if not 0 < temperature < math.inf:
        raise bad_value(
            "temperature", temperature, "must be a number above 0", "The papers use 0.07 to 0.5."
        )
