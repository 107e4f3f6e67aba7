"""Which way a loss is computed: chosen by device, size and policy, or by the user."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from solo_hardneg.errors import ConfigError, unknown_name
from solo_hardneg.kernels.plan import KernelPlan, as_ranks
from solo_hardneg.kernels.problem import Kernel, Problem

NAMES = ("auto", "dense", "chunked", "numba", "triton")
_SMALL = 2**17  # so many similarities are had at once sooner than in blocks
UNEVEN = "needs equally many views of all images, and here one came more often"
_NEEDS_A_QUEUE = "needs MoCo's queue, and SimCLR's negatives are the other images of the batch"

_log = logging.getLogger(__name__)
_said: set[str] = set()


@dataclass(frozen=True)
class Case:
    """What the choice depends on.

    Attributes:
        device, dtype: of query and candidates.
        queries, candidates, dimensions: N, M and D.
        plan: what the policy does.
        not_by_rank: why more than one range of ranks says who is left; ``None`` if it is all.
        constants: whether the candidates want no gradient.
        batch: whether they are the queries' own batch, as in SimCLR.
        narrow: whether ranks leave so few that these are listed.
    """

    device: torch.device
    dtype: torch.dtype
    queries: int
    candidates: int
    dimensions: int
    plan: KernelPlan
    not_by_rank: str | None
    constants: bool
    batch: bool = False
    narrow: bool = False


def choose(backend: str, case: Case) -> str:
    """The name of the backend to take: ``backend`` itself, or for ``auto`` what fits.

    Raises:
        ConfigError: the name is unknown, or what it names can't be had here.
    """
    check_name(backend)
    if backend == "auto":
        name = _automatic(case)
        why = f"chosen for {case.device.type}, N={case.queries}, M={case.candidates}"
        _say_once(name, f"{why}; {case.plan.obstacle}" if case.plan.obstacle else why)
        return name
    obstacle = _obstacle(backend, case)
    if backend == "numba" and obstacle is UNEVEN:  # on this rank, perhaps, and in this batch
        _say_once("chunked", f"while numba {obstacle}")
        return "chunked"
    if obstacle is not None:
        raise ConfigError(
            f"backend={backend}: {obstacle}. Set backend=auto, which takes the fastest that fits."
        )
    _say_once(backend, "as set")
    return backend


def check_name(backend: Any) -> None:
    """Refuses what is no backend.

    Raises:
        ConfigError: the name is unknown.
    """
    if backend not in NAMES:
        raise unknown_name("backend", str(backend), NAMES, "backend")


def check_plan(backend: str, plan: KernelPlan, keys: int | None, reserve: float) -> None:
    """Refuses, before a run, a backend that can't follow the policy or can't be had at all.

    Args:
        backend: the user's choice.
        plan: what the policy does.
        keys: how many negatives there will be in the queue; ``None`` for SimCLR.
        reserve: how much longer the queue is, as a share.

    Raises:
        ConfigError: it can't. What depends on the device shows at the first step.
    """
    check_name(backend)
    if backend in ("auto", "dense"):
        return
    obstacle = plan.obstacle
    if backend in ("numba", "triton"):
        obstacle = obstacle or _missing(backend) or why_not_ranks(plan, keys, reserve > 0)
    if backend == "triton" and keys is None:
        obstacle = obstacle or _NEEDS_A_QUEUE
    if obstacle is not None:
        raise ConfigError(
            f"backend={backend}: {obstacle}. Set backend=auto, which takes the fastest that fits."
        )


def why_not_ranks(plan: KernelPlan, keys: int | None, reserve: bool) -> str | None:
    """Why not one range of ranks, inside or outside, says who is left; ``None`` if it does.

    Args:
        plan: what the policy does.
        keys: how many negatives each query has before any policy; ``None`` if not known yet.
        reserve: whether some of the candidates are no negatives yet.
    """
    if reserve:
        return "knows no reserve of older keys (negatives.fill=older)"
    if not plan.by_rank:
        return "follows bands of difficulty only, no labels, no images, no retain"
    if plan.obstacle is None and keys is not None and not as_ranks(plan.ranks(keys), keys)[0]:
        return "follows one band, and here several are left with gaps between them"
    return None


def kernel_maker(name: str) -> Callable[[Problem], Kernel]:
    """What makes the kernels of a backend; imports it now."""
    if name == "numba":
        from solo_hardneg.kernels.numba_cpu import numba_kernel

        return numba_kernel
    if name == "triton":
        from solo_hardneg.kernels.triton_kernel import triton_kernel

        return triton_kernel
    from solo_hardneg.kernels.chunked import chunked

    return chunked


def _automatic(case: Case) -> str:
    if case.queries * case.candidates <= _SMALL or case.plan.obstacle is not None:
        return "dense"
    listed = case.narrow or (case.constants and not case.batch)
    if listed and case.device.type == "cpu" and _obstacle("numba", case) is None:
        return "numba"
    return "chunked"


def _obstacle(name: str, case: Case) -> str | None:
    """Why a backend can't be had; ``None`` if it can."""
    if name == "dense":
        return None
    if case.plan.obstacle is not None:
        return case.plan.obstacle
    if name == "chunked":
        return None
    return (_not_numba(case) if name == "numba" else _not_triton(case)) or case.not_by_rank


def _not_numba(case: Case) -> str | None:
    if case.device.type != "cpu":
        return f"runs on a CPU, and these tensors are on {case.device.type}"
    if case.dtype != torch.float32:
        return f"takes float32, and this is {case.dtype}"
    return _missing("numba")


def _not_triton(case: Case) -> str | None:
    if case.batch:
        return _NEEDS_A_QUEUE
    if not case.constants:
        return "gives no gradient to the queue, and this one wants one (requires_grad)"
    if case.dtype == torch.float64:
        return "takes float32 and less, and this is torch.float64"
    if case.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"runs on a GPU, and these tensors are on {case.device.type} (TRITON_INTERPRET=1 "
            "interprets it there, slowly)"
        )
    if case.dimensions > 1024:
        return f"takes up to 1024 dimensions, and these are {case.dimensions}"
    return _missing("triton")


@cache
def _missing(package: str) -> str | None:
    """Why a package can't be used; imports it."""
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    try:
        found = version(package)
    except PackageNotFoundError:  # from a distribution of another name
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


def _say_once(name: str, why: str) -> None:
    if name not in _said:
        _said.add(name)
        _log.info("backend=%s (%s)", name, why)
