"""Which backend is chosen, and what a choice that can't be had says."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loss_helpers import moco, unit

from solo_hardneg.errors import ConfigError
from solo_hardneg.kernels import backends, chunked
from solo_hardneg.kernels.backends import Case, choose
from solo_hardneg.kernels.plan import KernelPlan, plan_of
from solo_hardneg.kernels.problem import Problem, Ranks
from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import build, full_pool
from solo_hardneg.negatives.kept import Kept

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is installed is looked up anew."""
    backends._missing.cache_clear()
    yield
    backends._missing.cache_clear()


def case(**changed: Any) -> Case:
    settings: dict[str, Any] = {
        **{"device": CPU, "dtype": torch.float32, "queries": 256, "candidates": 65536},
        **{"dimensions": 128, "plan": KernelPlan(), "not_by_rank": None, "constants": True},
    }
    return Case(**{**settings, **changed})


@pytest.mark.parametrize(
    ("changed", "chosen"),
    [
        ({}, "numba"),
        ({"candidates": 256}, "dense"),
        ({"plan": KernelPlan(obstacle="somebody else's")}, "dense"),
        ({"not_by_rank": "because"}, "chunked"),
        ({"constants": False}, "chunked"),
        ({"constants": False, "batch": True}, "chunked"),
        ({"constants": False, "batch": True, "narrow": True}, "numba"),
        ({"dtype": torch.float64}, "chunked"),
        ({"device": CUDA}, "chunked"),
    ],
)
def test_the_automatic_choice(changed: dict[str, Any], chosen: str) -> None:
    assert choose("auto", case(**changed)) == chosen


@pytest.mark.parametrize(
    ("config", "keys", "reserve", "why"),
    [
        ({"keep": {"band": [0.9, 1.0]}}, 100, False, None),
        ({"keep": {"band": [0.9, 1.0]}}, None, False, None),
        ({"keep": {"band": [0.9, 1.0]}}, 100, True, "knows no reserve"),
        ({"drop": {"label": "same"}}, 100, False, "follows bands of difficulty only"),
        ({"drop": {"image": "same"}}, 100, False, "follows bands of difficulty only"),
        ({"retain": 1.0}, 100, False, "follows bands of difficulty only"),
        ({"drop": {"band": [0.4, 0.6]}, "keep": {"band": [0.1, 0.9]}}, 100, False, "follows one"),
    ],
)
def test_what_ranks_alone_decide(
    config: dict[str, Any], keys: int | None, reserve: bool, why: str | None
) -> None:
    found = backends.why_not_ranks(plan_of(build(config)), keys, reserve)
    assert found is None if why is None else found.startswith(why)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("package", ["numba", "triton"])
def test_a_package_that_is_not_there(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("auto", case()) == "chunked"
    with pytest.raises(ConfigError, match=f"backend={package}: the package {package} is not"):
        choose(package, case())


@pytest.mark.usefixtures("forgetful")
def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.2 or less")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    with pytest.warns(UserWarning, match="numba can't be imported .*NumPy 2.2 or less"):
        assert choose("auto", case()) == "chunked"
    with pytest.raises(ConfigError, match="backend=numba: .* can't be imported .*Set backend="):
        choose("numba", case())


@pytest.mark.usefixtures("forgetful")
def test_an_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "version", lambda name: "2.1.0")
    with pytest.raises(ConfigError, match=r"needs triton 3, .* this is triton 2\.1\.0"):
        choose("triton", case(device=CUDA))


@pytest.mark.parametrize(
    ("backend", "changed", "message"),
    [
        ("numba", {"not_by_rank": "no, because"}, "backend=numba: no, because. Set backend=auto"),
        ("numba", {"device": CUDA}, "backend=numba: runs on a CPU, and these tensors are on cuda"),
        ("numba", {"dtype": torch.float64}, "backend=numba: takes float32, and this is"),
        ("triton", {"constants": False}, "backend=triton: gives no gradient to the queue"),
        ("triton", {"batch": True}, "backend=triton: needs MoCo's queue"),
        ("triton", {}, "backend=triton: runs on a GPU, and these tensors are on cpu .*auto"),
        ("triton", {"dtype": torch.float64}, "backend=triton: takes float32 and less"),
        ("triton", {"device": CUDA, "dimensions": 2048}, "takes up to 1024 dimensions"),
        (
            "chunked",
            {"plan": KernelPlan(obstacle="x can't")},
            "backend=chunked: x can't. Set backend=",
        ),
        ("fast", {}, "backend: unknown backend 'fast'"),
    ],
)
def test_what_cannot_be_had(
    backend: str, changed: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=message):
        choose(backend, case(**changed))


def test_simclr_is_refused_before_a_run_where_it_can_be_known() -> None:
    banded = plan_of(build({"keep": {"band": [0.9, 1.0]}}))
    backends.check_plan("numba", banded, None, 0)
    with pytest.raises(ConfigError, match="backend=triton: needs (MoCo's queue|triton 3)"):
        backends.check_plan("triton", banded, None, 0)


def test_it_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_said", set())
    query, key, queue = moco(4, 90, 5)
    with caplog.at_level(logging.INFO, "solo_hardneg"):
        for width in (90, 80, 70):
            mocov2plus_loss_func(query, key, queue[:, :width], backend="chunked")
            mocov2plus_loss_func(query, key, queue[:, :width])
    assert [record.getMessage() for record in caplog.records] == [
        "backend=chunked (as set)",
        "backend=dense (chosen for cpu, N=4, M=90)",
    ]


def test_a_wrong_name_is_refused_whatever_the_size() -> None:
    query, key, _ = moco()
    with pytest.raises(ConfigError, match="Did you mean 'chunked'"):
        mocov2plus_loss_func(query, key, torch.zeros(7, 0), backend="chunkd")
    with pytest.raises(ConfigError, match="unknown backend"):
        simclr_loss_func(unit(4, 5), torch.arange(2).repeat(2), backend="chunkd")


def test_large_losses_choose_by_themselves() -> None:
    """May take longer: the first loss by numba compiles its loops, if no run before has."""
    kept: list[Kept] = []
    query, key, queue = moco(64, 4096, 8)
    labels = {"query_labels": torch.zeros(64).long(), "queue_labels": torch.arange(4096) % 7}
    for config in ({}, {"keep": {"band": [0.95, 1.0]}}, {"drop": {"label": "same"}}):
        mocov2plus_loss_func(query, key, queue, policy=build(config), report=kept.append, **labels)
    z, indexes = unit(512, 8), torch.arange(256).repeat(2)
    for config in ({}, {"keep": {"band": [0.95, 1.0]}}):
        simclr_loss_func(z, indexes, policy=build(config), report=kept.append)
    chosen = ["numba", "numba", "chunked", "chunked", "numba"]
    assert [found.backend for found in kept] == chosen


@pytest.mark.parametrize(
    ("config", "obstacle"),
    [
        ({"mix": {"hardest": 4, "pairs": 1}, "keep": {"band": [0, 0.5]}}, "negatives.keep stands"),
        ({"keep": {"band": [0, 0.5]}, "mix": {"hardest": 4, "pairs": 1}, "debias": 0.1}, None),
        ({"reweight": 1.0, "drop": {"label": "same"}, "fill": "older"}, None),
    ],
)
def test_what_a_plan_can_follow(config: dict[str, Any], obstacle: str | None) -> None:
    found = plan_of(build(config)).obstacle
    assert (found is None) if obstacle is None else found.startswith(obstacle)


@pytest.mark.parametrize(
    ("how", "kernel"),
    [
        ({}, chunked.EverythingKernel),
        ({"constants": False}, chunked.WeightsKernel),
        ({"hardest": 3}, chunked.WeightsKernel),
        ({"ranks": Ranks(85, 100)}, chunked.SparseKernel),
        ({"ranks": Ranks(85, 95)}, chunked.SparseKernel),
        ({"ranks": Ranks(84, 100)}, chunked.WeightsKernel),
        ({"ranks": Ranks(85, 100, inside=False)}, chunked.WeightsKernel),
        ({"ranks": Ranks(85, 100), "hardest": 3}, chunked.WeightsKernel),
        ({"ranks": Ranks(85, 100), "constants": False}, chunked.WeightsKernel),
    ],
)
def test_the_chunked_backend_gathers_only_what_is_little(
    how: dict[str, Any], kernel: type[chunked.Block]
) -> None:
    problem = Problem(unit(4, 5), unit(100, 5), 0.2, **how)
    assert type(chunked.chunked(problem)) is kernel


def test_nothing_is_imported_before_it_is_chosen() -> None:
    """8 s: a process of its own, which imports PyTorch and, if no run before has, compiles."""
    code = (
        "import sys, torch, solo_hardneg.losses, solo_hardneg.methods\n"
        "from solo_hardneg.losses import mocov2plus_loss_func as loss\n"
        "unit = torch.eye(8)\n"
        "loss(unit, unit, unit, backend='chunked')\n"
        "ours = {'solo_hardneg.kernels.triton_loops', 'solo_hardneg.kernels.numba_loops'}\n"
        "assert not {'numba', 'llvmlite', *ours} & set(sys.modules), 'too soon'\n"
        "loss(unit, unit, unit, backend='numba')\n"
        "assert 'numba' in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_kernel_is_never_given_all_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, and tiles, whatever the number of queries."""
    largest: list[int] = []
    real = torch.Tensor.__matmul__

    def watched(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        found = real(self, other)
        largest.append(found.numel())
        return found

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    query, key, queue = moco(300, 20_000, 4)
    for config in ({}, {"keep": {"band": [0.95, 1.0]}}, {"drop": {"band": [0.5, 0.6]}}):
        largest.clear()
        with torch.no_grad():
            mocov2plus_loss_func(query, key, queue, policy=build(config), backend="chunked")
        assert 0 < max(largest) <= 3 * 2**20 < 300 * 20_000


def test_planned_ranks_are_those_that_the_policy_leaves() -> None:
    similarity = torch.linspace(-1, 1, 200)[None, :]
    for verbs in (
        {"keep": {"band": [0.3, 0.9]}, "drop": {"band": [0.5, 1.0]}},
        {"drop": {"band": [0.3, 0.9]}, "keep": {"band": [0.2, 0.7]}},
        {"drop": {"band": [0.0, 0.4]}, "keep": {"band": [0.25, 1.0]}, "reweight": 1.0},
    ):
        policy = build(verbs)
        present = policy(full_pool(similarity)).present[0].nonzero()[:, 0].tolist()
        ranks = plan_of(policy).ranks(200)
        assert [rank for first, past in ranks for rank in range(first, past)] == present
