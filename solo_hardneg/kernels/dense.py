"""The readable reference: holds all N×M similarities and follows every policy."""

from __future__ import annotations

from torch import Tensor

from solo_hardneg.kernels.candidates import Candidates
from solo_hardneg.kernels.formula import info_nce
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool


def dense_loss(
    candidates: Candidates, positive: Tensor | None, policy: Policy | None, temperature: float
) -> tuple[Tensor, Pool]:
    """Returns the mean loss, a scalar, and the pool that the policy left.

    Args:
        candidates: Queries and candidates, in the dtype to compute in.
        positive: (N,) similarities of the positives; ``None`` if they are among the candidates.
        policy: Policy applied to the negatives; ``None`` uses all of them.
        temperature: τ.
    """
    pool = candidates.whole_pool(positive)
    positive = candidates.joint_positive(pool.similarity, temperature, positive)
    if policy is not None and len(candidates.vectors) > 0:
        pool = policy(pool)
    losses, floored = info_nce(positive, pool, temperature, candidates.positive_count)
    if pool.tau_plus:
        pool = pool.note(floored=floored.float())
    return losses.mean(), pool
