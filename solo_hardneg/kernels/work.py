"""What a loss is to a kernel: from candidates and a policy to the problem."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_hardneg.candidates import BatchCandidates, Candidates, QueueCandidates
from solo_hardneg.kernels import driver
from solo_hardneg.kernels.backends import Case, check_name, choose, kernel_maker, why_not_ranks
from solo_hardneg.kernels.plan import KernelPlan, as_ranks, plan_of
from solo_hardneg.kernels.problem import Problem
from solo_hardneg.negatives.kept import Kept
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool


def plan_work(
    candidates: Candidates,
    positive: Tensor | None,
    dtype: torch.dtype,
    policy: Policy | None,
    temperature: float,
    backend: str,
) -> driver.Work | None:
    """What a kernel is to do; ``None`` if the loss is to be computed the dense way.

    Args:
        candidates: queries and candidates.
        positive: (N,) the positives' similarities, ``None`` where they are among the candidates.
        dtype: what to compute in.
        policy: what is done to the negatives.
        temperature: τ.
        backend: the user's choice.

    Raises:
        ConfigError: the backend can't be had.
        EmptyBandError, TooFewNegativesError: the policy finds too few negatives.
    """
    check_name(backend)
    width = len(candidates.vectors)
    if backend == "dense" or width == 0:
        return None
    plan = plan_of(policy)
    queue = isinstance(candidates, QueueCandidates)
    reserve = queue and not candidates.all_are_negatives
    if plan.fills and getattr(candidates, "age", None) is None:
        reserve = True  # an error, which the verb itself raises
    not_by_rank = why_not_ranks(plan, width if queue else None, reserve)
    ranks = None
    if not_by_rank is None and plan.obstacle is None:
        left = plan.ranks(width)
        ranks = as_ranks(left, width)[1]
        if plan.mix is not None:
            plan.mix.check(sum(past - first for first, past in left))
    name = choose(backend, _case(candidates, dtype, plan, not_by_rank))
    if name == "dense":
        return None
    there = candidates if name == "triton" else candidates.to(dtype)
    problem = Problem(
        there.query,
        there.vectors,
        temperature,
        beta=plan.beta,
        ranks=ranks,
        hardest=0 if plan.mix is None else plan.mix.hardest,
        pool_of=None if not_by_rank is None else _selected(there, plan),
        partners=there.partners if isinstance(there, BatchCandidates) else None,
    )
    return driver.Work(name, kernel_maker(name), problem, plan, positive, candidates.positives)


def loss_of(work: driver.Work) -> tuple[Tensor, Kept]:
    """The mean loss, and what the policy left."""
    return driver.loss_of(work)


def _case(
    candidates: Candidates, dtype: torch.dtype, plan: KernelPlan, not_by_rank: str | None
) -> Case:
    query, vectors = candidates.query, candidates.vectors
    constants = not (torch.is_grad_enabled() and vectors.requires_grad)
    number, dimensions = query.shape
    return Case(query.device, dtype, number, len(vectors), dimensions, plan, not_by_rank, constants)


def _selected(candidates: Candidates, plan: KernelPlan) -> driver.PoolOf:
    def pool_of(rows: slice, similarity: Tensor) -> Pool:
        pool = plan.select(candidates.pool(similarity, rows))
        if plan.mix is not None:
            plan.mix.check(pool.count)
        return pool

    return pool_of
