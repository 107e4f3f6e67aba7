"""Which backend is chosen, and errors for a choice that is not available."""

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
from solo_hardneg.kernels import dispatch
from solo_hardneg.kernels.compile import CompiledPolicy, compile_policy
from solo_hardneg.kernels.dispatch import Case, choose_backend
from solo_hardneg.kernels.interface import Ranks
from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import build
from solo_hardneg.negatives.stats import LossStats

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def uncached() -> Iterator[None]:
    """Looks installed packages up again."""
    dispatch._why_unusable.cache_clear()
    yield
    dispatch._why_unusable.cache_clear()


def case(**changed: Any) -> Case:
    settings: dict[str, Any] = {
        **{"device": CPU, "dtype": torch.float32, "queries": 256, "candidates": 65536},
        **{"dimensions": 128, "policy": CompiledPolicy(), "not_by_rank": None, "constants": True},
    }
    return Case(**{**settings, **changed})


@pytest.mark.parametrize(
    ("changed", "chosen"),
    [
        ({}, "numba"),
        ({"candidates": 256}, "dense"),
        ({"policy": CompiledPolicy(obstacle="a third party's")}, "dense"),
        ({"not_by_rank": "because"}, "chunked"),
        ({"constants": False}, "chunked"),
        ({"constants": False, "batch": True}, "chunked"),
        ({"constants": False, "batch": True, "ranks": Ranks(60000, 65536)}, "numba"),
        ({"dtype": torch.float64}, "chunked"),
        ({"device": CUDA}, "chunked"),
    ],
)
def test_automatic_choice(changed: dict[str, Any], chosen: str) -> None:
    assert choose_backend("auto", case(**changed)) == chosen


@pytest.mark.parametrize(
    ("config", "keys", "reserve", "why"),
    [
        ({"keep": {"band": [0.9, 1.0]}}, 100, False, None),
        ({"keep": {"band": [0.9, 1.0]}}, None, False, None),
        ({"keep": {"band": [0.9, 1.0]}}, 100, True, "supports no reserve"),
        ({"drop": {"label": "same"}}, 100, False, "supports bands of difficulty only"),
        ({"drop": {"image": "same"}}, 100, False, "supports bands of difficulty only"),
        ({"retain": 1.0}, 100, False, "supports bands of difficulty only"),
        (
            {"drop": {"band": [0.4, 0.6]}, "keep": {"band": [0.1, 0.9]}},
            100,
            False,
            "supports a single band",
        ),
    ],
)
def test_why_ranks_dont_decide(
    config: dict[str, Any], keys: int | None, reserve: bool, why: str | None
) -> None:
    found = dispatch.why_not_ranks(compile_policy(build(config)), keys, reserve)
    assert found is None if why is None else found.startswith(why)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("package", ["numba", "triton"])
def test_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("auto", case()) == "chunked"
    with pytest.raises(ConfigError, match=f"backend={package}: the package {package} is not"):
        choose_backend(package, case())


@pytest.mark.usefixtures("uncached")
def test_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.2 or less")

    monkeypatch.setattr(dispatch.importlib, "import_module", broken)
    with pytest.warns(UserWarning, match="numba can't be imported .*NumPy 2.2 or less"):
        assert choose_backend("auto", case()) == "chunked"
    with pytest.raises(ConfigError, match="backend=numba: .* can't be imported .*Set backend="):
        choose_backend("numba", case())


@pytest.mark.usefixtures("uncached")
def test_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch, "version", lambda name: "2.1.0")
    with pytest.raises(ConfigError, match=r"needs triton 3, .* this is triton 2\.1\.0"):
        choose_backend("triton", case(device=CUDA))


@pytest.mark.parametrize(
    ("backend", "changed", "message"),
    [
        ("numba", {"not_by_rank": "no, because"}, "backend=numba: no, because. Set backend=auto"),
        ("numba", {"device": CUDA}, "backend=numba: runs on a CPU, and these tensors are on cuda"),
        ("numba", {"dtype": torch.float64}, "backend=numba: supports float32 only, and this is"),
        ("triton", {"constants": False}, "backend=triton: computes no gradient of the queue"),
        ("triton", {"batch": True}, "backend=triton: needs MoCo's queue"),
        ("triton", {}, "backend=triton: runs on a GPU, and these tensors are on cpu .*auto"),
        ("triton", {"dtype": torch.float64}, "backend=triton: supports float32 and 16-bit types"),
        ("triton", {"device": CUDA, "dimensions": 2048}, "supports up to 1024 dimensions"),
        (
            "chunked",
            {"policy": CompiledPolicy(obstacle="x can't")},
            "backend=chunked: x can't. Set backend=",
        ),
        ("fast", {}, "backend: unknown backend 'fast'"),
    ],
)
def test_unavailable_choices(
    backend: str, changed: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=message):
        choose_backend(backend, case(**changed))


def test_triton_refuses_simclr_before_a_run() -> None:
    banded = compile_policy(build({"keep": {"band": [0.9, 1.0]}}))
    dispatch.check_policy("numba", banded, None, 0)
    with pytest.raises(ConfigError, match="backend=triton: needs (MoCo's queue|triton 3)"):
        dispatch.check_policy("triton", banded, None, 0)


def test_the_choice_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_logged", set())
    query, key, queue = moco(4, 90, 5)
    with caplog.at_level(logging.INFO, "solo_hardneg"):
        for width in (90, 80, 70):
            mocov2plus_loss_func(query, key, queue[:, :width], backend="chunked")
            mocov2plus_loss_func(query, key, queue[:, :width])
    assert [record.getMessage() for record in caplog.records] == [
        "backend=chunked (as set)",
        "backend=dense (chosen for cpu, N=4, M=90)",
    ]


def test_an_unknown_backend_is_an_error_at_any_size() -> None:
    query, key, _ = moco()
    with pytest.raises(ConfigError, match="Did you mean 'chunked'"):
        mocov2plus_loss_func(query, key, torch.zeros(7, 0), backend="chunkd")
    with pytest.raises(ConfigError, match="unknown backend"):
        simclr_loss_func(unit(4, 5), torch.arange(2).repeat(2), backend="chunkd")


def test_automatic_choice_of_large_losses() -> None:
    """Slow in the first run, which compiles numba's loops."""
    reports: list[LossStats] = []
    query, key, queue = moco(64, 4096, 8)
    labels = {"query_labels": torch.zeros(64).long(), "queue_labels": torch.arange(4096) % 7}
    for config in ({}, {"keep": {"band": [0.95, 1.0]}}, {"drop": {"label": "same"}}):
        mocov2plus_loss_func(
            query, key, queue, policy=build(config), report=reports.append, **labels
        )
    z, indexes = unit(512, 8), torch.arange(256).repeat(2)
    for config in ({}, {"keep": {"band": [0.95, 1.0]}}):
        simclr_loss_func(z, indexes, policy=build(config), report=reports.append)
    chosen = ["numba", "numba", "chunked", "chunked", "numba"]
    assert [found.backend for found in reports] == chosen


def test_a_library_is_imported_only_if_chosen() -> None:
    """8 s in a new process, which imports PyTorch and may have to compile."""
    code = (
        "import sys, torch, solo_hardneg.losses, solo_hardneg.methods\n"
        "from solo_hardneg.losses import mocov2plus_loss_func as loss\n"
        "unit = torch.eye(8)\n"
        "loss(unit, unit, unit, backend='chunked')\n"
        "loops = {'solo_hardneg.kernels.triton.loops', 'solo_hardneg.kernels.numba.loops'}\n"
        "assert not {'numba', 'llvmlite', *loops} & set(sys.modules), 'too soon'\n"
        "loss(unit, unit, unit, backend='numba')\n"
        "assert 'numba' in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
