"""``python -m benchmarks gpu``, rehearsed on the CPU, and its plan."""

from __future__ import annotations

import os
import time
from multiprocessing.util import Finalize
from pathlib import Path

import pandas as pd
import pytest
import torch
from integration_helpers import PROJECT, run_python

from benchmarks import accuracy, gpu, parts
from benchmarks.parts import Part
from benchmarks.worker import Job, NotPossible, OutOfTime, Report, Units

PROVENANCE = {"device", "torch", "cuda", "commit", "date"}
COLUMNS = {
    "tests": {"test", "outcome", "seconds"},
    "waits": {"method", "settings", "waits", "beside_host", "scalars", "stream_syncs", "places"},
    "loss": {"candidate", "policy", "N", "K", "D", "precision", "ms", "ratio", "peak_MB"}
    | {"memory_ratio", "limit_ms", "limit_by", "share_of_limit", "gflop_s", "GB_s"},
    "step": {"candidate", "pixels", "precision", "ms", "ratio", "peak_MB", "memory_ratio"},
    "loader": {"loader", "dataset", "workers", "images_s"},
    "accuracy": {"method", "negatives", "epoch", "epochs", "loss", "images_s", "linear_acc1"},
}


# ---------------------------------------------------------------------- units that misbehave
# Module-level, because another process calls them.


def _succeed(report: Report) -> None:
    report.add_row(value=1)
    report.add_row(value=2)


def _fail(report: Report) -> None:
    with report.catch(value=3):
        raise ValueError("one row is bad")
    raise ImportError("no triton")


def _fail_in_one_row(report: Report) -> None:
    with report.catch(value=5):
        raise ValueError("one row is bad")
    report.add_row(value=6)


def _fail_at_exit(report: Report) -> None:
    Finalize(None, os._exit, args=(7,), exitpriority=1)
    raise RuntimeError("illegal memory access")


def _stop(report: Report) -> None:
    raise OutOfTime("half of it")


def _skip(report: Report) -> None:
    raise NotPossible("needs --data")


def _crash(report: Report) -> None:
    report.start("the kernel")
    os._exit(13)


def _hang(report: Report) -> None:
    report.add_row(value=4)
    time.sleep(600)


def _make_units(job: Job) -> Units:
    return {name: unit for name, (unit, *_) in UNITS.items()}


# Name → unit, state and note in the overview.
UNITS = {
    "succeeds": (_succeed, "done", ""),
    "fails": (_fail, "failed", "no triton"),
    "fails in one row": (_fail_in_one_row, "failed", "1 rows have an error"),
    "fails at exit": (_fail_at_exit, "failed", "illegal memory access"),
    "stops": (_stop, "stopped", "half of it"),
    "skips": (_skip, "skipped", "needs --data"),
    "crashes": (_crash, "failed", "13, in the kernel"),
    "succeeds after it": (_succeed, "done", ""),
    "hangs": (_hang, "failed", "after its time was up"),
}


def _make_one(job: Job) -> Units:
    return {"succeeds": _succeed}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Run:
    """A run on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = gpu.Run(
        Job(tmp_path, tmp_path / "checkpoints", None, True, False), time.perf_counter() + 100, 100.0
    )
    gpu._probe_device(run)
    return run


@pytest.mark.full
def test_a_part_survives_its_units(run: gpu.Run) -> None:
    start = time.perf_counter()
    gpu._run_part(run, Part("bad", 1, 1, _make_units), start + 12)
    assert time.perf_counter() - start < 12 + 2 * run.grace
    part = Part("good", 1, 1, _make_one)
    gpu._run_part(run, part, time.perf_counter() + 12)
    found = pd.read_csv(run.job.out / "parts.csv").fillna("").set_index(["part", "unit"])
    for name, (_, state, note) in UNITS.items():
        assert found.loc[("bad", name)].state == state, name
        assert note in found.loc[("bad", name)].note
    assert found.loc[("good", "succeeds")].state == "done"
    rows = pd.read_csv(run.job.out / "bad.csv")
    assert rows[rows.unit == "succeeds"].value.tolist() == [1, 2]
    assert rows[rows.unit == "hangs"].value.dropna().tolist() == [4]  # written before it hung
    fails = rows[rows.unit == "fails"]
    assert fails.value.dropna().tolist() == [3]
    assert fails.error.str.contains("one row is bad|no triton").all()
    assert set(rows) >= PROVENANCE

    # Another call repeats nothing, unless the part resumes or the commit has changed.
    assert run.finished_units(part) == {"succeeds"}
    assert run.finished_units(Part("good", 1, 1, _make_one, resumes=True)) == set()
    run.origin = {**run.origin, "commit": "another"}
    assert run.finished_units(part) == set()


@pytest.mark.full
def test_a_missing_gpu_is_an_error(run: gpu.Run) -> None:
    job = Job(run.job.out, run.job.checkpoints, None, True, gpu=True)
    with pytest.raises(RuntimeError, match="device=cuda: PyTorch can use no GPU.*--device cpu"):
        gpu._probe_device(gpu.Run(job, time.perf_counter() + 60, 60.0))


def rehearse(out: Path, minutes: float, *options: str, host: str = "standalone") -> str:
    given = ("--device", "cpu", "--tiny", "--host", host, "--minutes", minutes, "--out", out)
    command = ("-m", "benchmarks", "gpu", *given, *options)
    return run_python(*command, cwd=PROJECT, timeout=900).ok().out


def assert_done(folder: Path, names: set[str]) -> None:
    """All units of these parts, and of no others, are done."""
    overview = pd.read_csv(folder / "parts.csv")
    assert set(overview.part) == names
    assert set(overview.state) == {"done"}, overview[overview.state != "done"].to_string()


@pytest.mark.full
@pytest.mark.timeout(900)  # two rehearsals
def test_a_rehearsal_of_all_parts(tmp_path: Path) -> None:
    rehearse(tmp_path, 8)
    assert_done(tmp_path, set(COLUMNS))
    for name, columns in COLUMNS.items():
        rows = pd.read_csv(tmp_path / f"{name}.csv", dtype={"commit": str})
        assert set(rows) >= columns | PROVENANCE | {"unit"}, name
        assert rows[["device", "torch", "date"]].notna().all(axis=None), name
        assert rows[list(columns - {"places", "settings"})].notna().any().all(), name

    tests = pd.read_csv(tmp_path / "tests.csv")
    assert set(tests.outcome) == {"passed"}
    loss = pd.read_csv(tmp_path / "loss.csv")
    triton = loss[loss.candidate == "triton"]
    assert triton.error.notna().all()  # each row names the missing GPU
    measured = loss[loss.error.isna()]
    assert set(measured.precision) == {"32-true", "bf16-mixed", "bf16-true"}
    assert {"auto", "dense", "chunked"} <= set(measured.candidate)
    assert measured.share_of_limit.gt(0).all()
    waits = pd.read_csv(tmp_path / "waits.csv")
    assert waits.groupby("unit").beside_host.first().eq(0).all()  # the host's come first
    loaders = pd.read_csv(tmp_path / "loader.csv")
    assert {"standalone", "resident"} <= set(loaders.loader)

    again = rehearse(tmp_path, 3)
    assert again.count("done before") == len(COLUMNS) - 1
    trained = pd.read_csv(tmp_path / "accuracy.csv")
    for method in accuracy.METHODS:
        rows = trained[(trained.method == method) & (trained.unit == method)]
        assert rows.epoch.tolist() == [1, 1, 2, 2]  # each trained, then evaluated
        assert rows.linear_acc1.notna().tolist() == [False, True, False, True]
        assert rows.started_at.tolist() == [0, 0, 1, 1]


@pytest.mark.full
@pytest.mark.host
@pytest.mark.usefixtures("solo_learn")
def test_the_baselines_are_solo_learns_where_there_is_a_checkout(tmp_path: Path) -> None:
    rehearse(tmp_path, 4, "--parts", "waits,step", host="solo")
    assert_done(tmp_path, {"waits", "step"})
    assert set(pd.read_csv(tmp_path / "step.csv").host) == {"solo"}


# ---------------------------------------------------------------------- the plan


def test_the_chosen_parts_share_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        monkeypatch.setenv(variable, "")
    seconds: dict[str, float] = {}

    def run_part(run: gpu.Run, part: Part, until: float) -> None:
        seconds[part.name] = until - gpu.STARTED
        run.record(part, "unit", "done", "", 0)

    monkeypatch.setattr(gpu, "STARTED", time.perf_counter())
    monkeypatch.setattr(gpu, "_probe_device", lambda run: None)
    monkeypatch.setattr(gpu, "_run_part", run_part)
    gpu.run_gpu(
        Job(tmp_path, tmp_path / "checkpoints", None, False, False), 10, ("loader", "tests")
    )
    assert list(seconds) == ["tests", "loader"]  # most important first
    last = 600 - 18 - 1  # the rest is to kill what is still running
    assert seconds["tests"] == pytest.approx(last * 4 / 6, abs=5)
    assert seconds["loader"] == pytest.approx(last, abs=1e-3)


def test_units_that_do_not_fit_are_skipped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_run_in_one_process", lambda *_: pytest.fail("it ran"))
    origin = {"device": "a GPU", "commit": "1"}
    job = Job(tmp_path, tmp_path / "checkpoints", None, False, False)
    run = gpu.Run(job, 0, 60.0, origin)
    for part in parts.PARTS:
        gpu._run_part(run, part, time.perf_counter() + 0.9 * part.least)
    found = pd.read_csv(tmp_path / "parts.csv")
    assert set(found.part) == set(COLUMNS)
    assert found.state.eq("skipped").all()
    assert found.note.str.contains("s are left, and the part needs at least").all()
    units = set(found[found.part == "loss"].unit)
    assert {"K=65536, bf16-mixed, triton", "K=16384, 32-true, auto dense chunked"} <= units
    assert set(found[found.part == "accuracy"].unit) == {"plan", *accuracy.METHODS}


def test_all_methods_get_the_same_number_of_epochs() -> None:
    plan = accuracy.planned_epochs
    assert plan(0, [0, 0], [10, 20], left=100) == 3
    assert plan(0, [0, 0], [10, 20], left=29) == 0
    assert plan(3, [3, 1], [10, 20], left=1000) == 3  # the last plan comes first
    assert plan(3, [3, 3], [10, 20], left=65) == 5
    assert plan(0, [2, 0], [10, 20], left=100) == 4  # 40 s to catch up, 30 s for each epoch
    assert plan(0, [2, 0], [10, 20], left=10) == 2


def test_linear_accuracy_of_separable_features() -> None:
    torch.manual_seed(0)
    targets = torch.arange(300) % 3
    centres = 4 * torch.eye(3, 8)
    train, test = (centres[targets] + torch.randn(300, 8) for _ in range(2))
    assert 95 < accuracy.linear_accuracy(train, targets, test, targets) <= 100
    shuffled = targets[torch.randperm(300)]
    assert accuracy.linear_accuracy(train, shuffled, test, targets) < 60
