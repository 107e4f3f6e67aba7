"""Chooses the backend of a loss by device, size and policy, or as the user says, and runs it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from solo_hardneg.errors import ConfigError, unknown_name
from solo_hardneg.kernels.blockwise import blockwise_loss
from solo_hardneg.kernels.candidates import BatchCandidates, Candidates, QueueCandidates
from solo_hardneg.kernels.compile import CompiledPolicy, compile_policy, single_range
from solo_hardneg.kernels.dense import dense_loss
from solo_hardneg.kernels.interface import Kernel, KernelInput, Ranks
from solo_hardneg.kernels.numba.listed_ranks import is_narrow
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.stats import LossStats, stats_of

NAMES = ("auto", "dense", "chunked", "numba", "triton")
_SMALL = 2**17  # similarities, up to which the dense path is faster
UNEVEN = "needs the same number of views of every image, and this batch has an image twice"
_NEEDS_A_QUEUE = "needs MoCo's queue, and SimCLR has none"

_log = logging.getLogger(__name__)
_logged: set[str] = set()


def contrastive_loss(
    candidates: Candidates,
    positive: Tensor | None,
    dtype: torch.dtype,
    policy: Policy | None,
    temperature: float,
    backend: str,
    observe: Callable[[Pool], None] | None = None,
) -> tuple[Tensor, LossStats]:
    """Returns the mean loss, a scalar, and statistics of what the policy left.

    Args:
        candidates: Queries and candidates.
        positive: (N,) similarities of the positives; ``None`` if they are among the candidates.
        dtype: Dtype to compute in.
        policy: Policy applied to the negatives; ``None`` uses all of them.
        temperature: τ.
        backend: The user's choice.
        observe: Called with the pool that the policy left, at the cost of the dense backend.

    Raises:
        ConfigError: The backend is not available.
        EmptyBandError, TooFewNegativesError: The policy finds too few negatives.
    """
    check_name(backend)
    name = "dense"
    if backend != "dense" and len(candidates.vectors):
        case = _case(candidates, dtype, compile_policy(policy))
        name = choose_backend(backend, case)
    if name == "dense":
        loss, pool = dense_loss(candidates.to(dtype), positive, policy, temperature)
        if observe is not None:
            observe(pool)
        return loss, stats_of(pool)
    if observe is not None:  # the loss draws the same random numbers again
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            observe(dense_loss(candidates.to(dtype), positive, policy, temperature)[1])
    inputs = _kernel_input(candidates, positive, case, temperature, name)
    make, positive_count = kernel_maker(name), candidates.positive_count
    loss, stats = blockwise_loss(make, inputs, case.policy, positive, positive_count)
    return loss, replace(stats, backend=name)


def _kernel_input(
    candidates: Candidates,
    positive: Tensor | None,
    case: Case,
    temperature: float,
    backend: str,
) -> KernelInput:
    policy = case.policy
    if backend != "triton":  # triton casts tile by tile
        candidates = candidates.to(case.dtype)
    batch = candidates if isinstance(candidates, BatchCandidates) else None
    by_pool = batch is not None or case.not_by_rank is not None
    return KernelInput(
        candidates.query,
        candidates.vectors,
        temperature,
        beta=policy.beta,
        ranks=case.ranks,
        hardest=0 if policy.mix is None else policy.mix.hardest,
        pool_of=_pool_of(candidates, positive, policy) if by_pool else None,
        partners=None if batch is None else batch.partners,
        own=batch.own_columns() if batch is not None and backend == "numba" else None,
        mix=policy.mix,
    )


def _pool_of(
    candidates: Candidates, positive: Tensor | None, policy: CompiledPolicy
) -> Callable[[slice, Tensor], Pool]:
    needs_positive = any(verb.needs_positive for verb in policy.selecting)

    def pool_of(rows: slice, similarity: Tensor) -> Pool:
        pool = candidates.pool(similarity, rows)
        if needs_positive:
            pool = candidates.add_positive(pool, positive, rows)
        pool = policy.select(pool)
        if policy.mix is not None:
            policy.mix.check(pool.count)
        return pool

    return pool_of


# ---------------------------------------------------------------------- the choice


@dataclass(frozen=True)
class Case:
    """What the choice of a backend depends on.

    Attributes:
        device, dtype: Device of the vectors, and dtype to compute in.
        queries, candidates, dimensions: N, M and D.
        policy: The compiled policy.
        not_by_rank: Why a single range of ranks doesn't decide which negatives are kept; ``None``
            if it does.
        constants: Whether the candidates need no gradient.
        batch: Whether the candidates are the queries' own batch, as in SimCLR.
        ranks: The range of ranks, among all candidates; ``None`` if all are kept.
    """

    device: torch.device
    dtype: torch.dtype
    queries: int
    candidates: int
    dimensions: int
    policy: CompiledPolicy
    not_by_rank: str | None
    constants: bool
    batch: bool = False
    ranks: Ranks | None = None


def _case(candidates: Candidates, dtype: torch.dtype, policy: CompiledPolicy) -> Case:
    not_by_rank, ranks = _by_rank(candidates, policy)
    query, vectors = candidates.query, candidates.vectors
    return Case(
        query.device,
        dtype,
        queries=len(query),
        candidates=len(vectors),
        dimensions=query.shape[1],
        policy=policy,
        not_by_rank=not_by_rank,
        constants=not (torch.is_grad_enabled() and vectors.requires_grad),
        batch=isinstance(candidates, BatchCandidates),
        ranks=ranks,
    )


def _by_rank(candidates: Candidates, policy: CompiledPolicy) -> tuple[str | None, Ranks | None]:
    """Why a single range of ranks doesn't decide, or that range among all candidates."""
    width, reserve = len(candidates.vectors), False
    count: int | None = width
    if isinstance(candidates, BatchCandidates):
        count = candidates.count
        if count is None:
            return UNEVEN, None
    elif isinstance(candidates, QueueCandidates):
        # Without ages, the verb fill raises an error itself.
        reserve = not candidates.all_are_negatives or (policy.fills and candidates.age is None)
    obstacle = why_not_ranks(policy, count, reserve)
    if obstacle is not None or policy.obstacle is not None or not count:
        return obstacle, None
    left = policy.ranks(count)
    if policy.mix is not None:
        policy.mix.check(sum(past - first for first, past in left))
    ranks = single_range(left, count)[1]
    if ranks is not None and count < width:  # the query's own image has the lowest ranks
        own = width - count
        ranks = Ranks(ranks.first + own, ranks.past + own, ranks.inside)
    return None, ranks


def choose_backend(backend: str, case: Case) -> str:
    """Returns ``backend`` itself or, for ``auto``, the fastest available.

    Raises:
        ConfigError: The name is unknown, or the backend is not available for this case.
    """
    check_name(backend)
    if backend == "auto":
        name = _automatic(case)
        why = f"chosen for {case.device.type}, N={case.queries}, M={case.candidates}"
        _log_once(name, f"{why}; {case.policy.obstacle}" if case.policy.obstacle else why)
        return name
    obstacle = _obstacle(backend, case)
    if backend == "numba" and obstacle is UNEVEN:  # perhaps only in this batch or on this rank
        _log_once("chunked", f"while numba {obstacle}")
        return "chunked"
    if obstacle is not None:
        raise _unavailable(backend, obstacle)
    _log_once(backend, "as set")
    return backend


def check_name(backend: Any) -> None:
    """Raises ConfigError unless it is the name of a backend."""
    if backend not in NAMES:
        raise unknown_name("backend", str(backend), NAMES, "backend")


def check_policy(backend: str, policy: CompiledPolicy, keys: int | None, reserve: float) -> None:
    """Checks before a run that a backend is available and can follow the policy.

    Args:
        backend: The user's choice.
        policy: The compiled policy.
        keys: Number of negatives in the full queue; ``None`` for SimCLR.
        reserve: How much longer the queue is, as a share of K.

    Raises:
        ConfigError: It can't. What depends on the device is checked at the first step.
    """
    check_name(backend)
    if backend in ("auto", "dense"):
        return
    obstacle = policy.obstacle
    if backend in ("numba", "triton"):
        obstacle = obstacle or _why_unusable(backend) or why_not_ranks(policy, keys, reserve > 0)
    if backend == "triton" and keys is None:
        obstacle = obstacle or _NEEDS_A_QUEUE
    if obstacle is not None:
        raise _unavailable(backend, obstacle)


def _unavailable(backend: str, obstacle: str) -> ConfigError:
    do = "Set backend=auto, which chooses the fastest available."
    return ConfigError(f"backend={backend}: {obstacle}. {do}")


def why_not_ranks(policy: CompiledPolicy, keys: int | None, reserve: bool) -> str | None:
    """Why a single range of ranks doesn't decide which negatives are kept; ``None`` if it does.

    Args:
        policy: The compiled policy.
        keys: Number of negatives per query before any policy; ``None`` if unknown.
        reserve: Whether some candidates are a reserve, no negatives.
    """
    if reserve:
        return "supports no reserve of older keys (negatives.fill=older)"
    if not policy.by_rank:
        return "supports bands of difficulty only, no other condition and no retain"
    if (
        policy.obstacle is None
        and keys is not None
        and not single_range(policy.ranks(keys), keys)[0]
    ):
        return "supports a single band, and this policy leaves several with gaps between them"
    return None


def kernel_maker(name: str) -> Callable[[KernelInput], Kernel]:
    """The function that makes a backend's kernels; imports the backend's library."""
    if name == "numba":
        from solo_hardneg.kernels.numba.kernel import numba_kernel

        return numba_kernel
    if name == "triton":
        from solo_hardneg.kernels.triton.kernel import triton_kernel

        return triton_kernel
    from solo_hardneg.kernels.chunked import chunked_kernel

    return chunked_kernel


def _automatic(case: Case) -> str:
    if case.queries * case.candidates <= _SMALL or case.policy.obstacle is not None:
        return "dense"
    listed = is_narrow(case.ranks, case.candidates) or (case.constants and not case.batch)
    if listed and case.device.type == "cpu" and _obstacle("numba", case) is None:
        return "numba"
    return "chunked"


def _obstacle(name: str, case: Case) -> str | None:
    """Why a backend is not available for a case; ``None`` if it is."""
    if name == "dense":
        return None
    if case.policy.obstacle is not None:
        return case.policy.obstacle
    if name == "chunked":
        return None
    return (_not_numba(case) if name == "numba" else _not_triton(case)) or case.not_by_rank


def _not_numba(case: Case) -> str | None:
    if case.device.type != "cpu":
        return f"runs on a CPU, and these tensors are on {case.device.type}"
    if case.dtype != torch.float32:
        return f"supports float32 only, and this is {case.dtype}"
    return _why_unusable("numba")


def _not_triton(case: Case) -> str | None:
    if case.batch:
        return _NEEDS_A_QUEUE
    if not case.constants:
        return "computes no gradient of the queue, and this queue requires one"
    if case.dtype == torch.float64:
        return "supports float32 and 16-bit types, and this is torch.float64"
    if case.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"runs on a GPU, and these tensors are on {case.device.type} (set TRITON_INTERPRET=1 "
            "to interpret it there, slowly)"
        )
    if case.dimensions > 1024:
        return f"supports up to 1024 dimensions, and these are {case.dimensions}"
    return _why_unusable("triton")


@cache
def _why_unusable(package: str) -> str | None:
    """Imports a package; returns why it can't be used, or ``None``."""
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    try:
        found = version(package)
    except PackageNotFoundError:  # a distribution of another name provides it
        found = str(getattr(importlib.import_module(package), "__version__", "3"))
    if package == "triton" and int(found.partition(".")[0]) < 3:
        return f"needs triton 3, which comes with PyTorch from 2.4 on; this is triton {found}"
    try:
        importlib.import_module(package)
    except Exception as error:  # numba refuses a NumPy that is too new for it
        text = f"the package {package} can't be imported ({type(error).__name__}: {error})"
        rank_zero_warn(f"{text}. The loss is computed without it.")
        return text
    return None


def _log_once(name: str, why: str) -> None:
    if name not in _logged:
        _logged.add(name)
        _log.info("backend=%s (%s)", name, why)
