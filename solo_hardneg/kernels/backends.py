"""Which way a loss is computed: chosen by device, size and policy, or by the user."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from solo_hardneg.errors import ConfigError, unknown_name
from solo_hardneg.kernels.plan import Plan
from solo_hardneg.kernels.problem import Kernel, Problem

NAMES = ("auto", "dense", "chunked", "numba", "triton")
_SMALL = 2**17  # so many similarities are had at once sooner than in blocks

_log = logging.getLogger(__name__)
_said: set[str] = set()


@dataclass(frozen=True)
class Case:
    """What the choice depends on.

    Attributes:
        device, dtype: of query and candidates.
        queries, candidates, dimensions: N, M and D.
        plan: what the policy does.
        by_rank: whether ranks alone say who is left: MoCo, no conditions, no reserve.
        constants: whether the candidates want no gradient.
    """

    device: torch.device
    dtype: torch.dtype
    queries: int
    candidates: int
    dimensions: int
    plan: Plan
    by_rank: bool
    constants: bool


def choose(backend: str, case: Case) -> str:
    """The name of the backend to take: ``backend`` itself, or for ``auto`` what fits.

    Raises:
        ConfigError: the name is unknown, or what it names can't be had here.
    """
    check_name(backend)
    if backend == "auto":
        name = _automatic(case)
        _say_once(name, f"chosen for {case.device.type}, N={case.queries}, M={case.candidates}")
        return name
    obstacle = _obstacle(backend, case)
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


def check_plan(backend: str, plan: Plan) -> None:
    """Refuses, before a run, a backend that can't follow the policy or can't be had at all.

    Raises:
        ConfigError: it can't. What depends on device and size shows at the first step.
    """
    check_name(backend)
    obstacle = None
    if backend not in ("auto", "dense"):
        obstacle = plan.obstacle
    if backend in ("numba", "triton"):
        obstacle = obstacle or _missing(backend) or (None if plan.by_rank else _NOT_BY_RANK)
    if obstacle is not None:
        raise ConfigError(
            f"backend={backend}: {obstacle}. Set backend=auto, which takes the fastest that fits."
        )


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


_NOT_BY_RANK = "follows bands of difficulty only, no labels, images, reserve or retention"


def _automatic(case: Case) -> str:
    if case.queries * case.candidates <= _SMALL or case.plan.obstacle is not None:
        return "dense"
    if case.device.type == "cpu" and _obstacle("numba", case) is None:
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
    if not case.by_rank:
        return _NOT_BY_RANK
    if not case.constants:
        return "gives no gradient to the queue, and this one wants one (requires_grad)"
    return _not_numba(case) if name == "numba" else _not_triton(case)


def _not_numba(case: Case) -> str | None:
    if case.device.type != "cpu":
        return f"runs on a CPU, and these tensors are on {case.device.type}"
    if case.dtype != torch.float32:
        return f"takes float32, and this is {case.dtype}"
    return _missing("numba")


def _not_triton(case: Case) -> str | None:
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
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    found = version(package)
    if package == "triton" and int(found.partition(".")[0]) < 3:
        return f"needs triton 3, which comes with PyTorch from 2.4 on; this is triton {found}"
    return None


def _say_once(name: str, why: str) -> None:
    if name not in _said:
        _said.add(name)
        _log.info("backend=%s (%s)", name, why)
