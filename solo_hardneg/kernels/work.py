"""What a loss is to a kernel: from candidates and a policy to the problem."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_hardneg.candidates import BatchCandidates, Candidates, QueueCandidates
from solo_hardneg.kernels import driver
from solo_hardneg.kernels.backends import (
    UNEVEN,
    Case,
    check_name,
    choose,
    kernel_maker,
    why_not_ranks,
)
from solo_hardneg.kernels.listing import is_narrow
from solo_hardneg.kernels.plan import KernelPlan, as_ranks, plan_of
from solo_hardneg.kernels.problem import Own, Problem, Ranks
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
    not_by_rank, ranks = _by_rank(candidates, plan)
    name = choose(backend, _case(candidates, dtype, plan, not_by_rank, ranks))
    if name == "dense":
        return None
    there = candidates if name == "triton" else candidates.to(dtype)
    batch = isinstance(there, BatchCandidates)
    own = Own(*there.own()) if name == "numba" and isinstance(there, BatchCandidates) else None
    problem = Problem(
        there.query,
        there.vectors,
        temperature,
        beta=plan.beta,
        ranks=ranks,
        hardest=0 if plan.mix is None else plan.mix.hardest,
        pool_of=None if not_by_rank is None and not batch else _selected(there, plan),
        partners=there.partners if isinstance(there, BatchCandidates) else None,
        own=own,
        mix=plan.mix,
    )
    return driver.Work(name, kernel_maker(name), problem, plan, positive, candidates.positives)


def loss_of(work: driver.Work) -> tuple[Tensor, Kept]:
    """The mean loss, and what the policy left."""
    return driver.loss_of(work)


def _by_rank(candidates: Candidates, plan: KernelPlan) -> tuple[str | None, Ranks | None]:
    """Why not one range of ranks says who is left, or else that range among all candidates."""
    width, reserve = len(candidates.vectors), False
    count: int | None = width
    if isinstance(candidates, BatchCandidates):
        count = candidates.count
        if count is None:
            return UNEVEN, None
    elif isinstance(candidates, QueueCandidates):
        # Without ages, filling up is an error, which the verb itself raises.
        reserve = not candidates.all_are_negatives or (plan.fills and candidates.age is None)
    obstacle = why_not_ranks(plan, count, reserve)
    if obstacle is not None or plan.obstacle is not None or not count:
        return obstacle, None
    left = plan.ranks(count)
    if plan.mix is not None:
        plan.mix.check(sum(past - first for first, past in left))
    ranks = as_ranks(left, count)[1]
    if ranks is not None and count < width:  # a query's own image comes before all ranks
        own = width - count
        ranks = Ranks(ranks.first + own, ranks.past + own, ranks.inside)
    return None, ranks


def _case(
    candidates: Candidates,
    dtype: torch.dtype,
    plan: KernelPlan,
    not_by_rank: str | None,
    ranks: Ranks | None,
) -> Case:
    query, vectors = candidates.query, candidates.vectors
    constants = not (torch.is_grad_enabled() and vectors.requires_grad)
    number, dimensions = query.shape
    width, batch = len(vectors), isinstance(candidates, BatchCandidates)
    narrow = is_narrow(ranks, width)
    sizes = number, width, dimensions
    return Case(query.device, dtype, *sizes, plan, not_by_rank, constants, batch, narrow)


def _selected(candidates: Candidates, plan: KernelPlan) -> driver.PoolOf:
    def pool_of(rows: slice, similarity: Tensor) -> Pool:
        pool = plan.select(candidates.pool(similarity, rows))
        if plan.mix is not None:
            plan.mix.check(pool.count)
        return pool

    return pool_of
