"""``python -m benchmarks gpu``, rehearsed on the CPU, and its arithmetic."""

from __future__ import annotations

import os
import time
from multiprocessing.util import Finalize
from pathlib import Path

import pandas as pd
import pytest
import torch
from integration_helpers import PROJECT, run_python

from benchmarks import accuracy, gpu, limits, parts
from benchmarks.parts import Part
from benchmarks.timing import interleaved
from benchmarks.worker import Job, NotPossible, OutOfTime, Report

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


# ---------------------------------------------------------------------- made-up units
# Module-level, because they are called in another process.


def _works(report: Report) -> None:
    report.row(value=1)
    report.row(value=2)


def _fails(report: Report) -> None:
    with report.trying(value=3):
        raise ValueError("one row is bad")
    raise ImportError("no triton")


def _half_fails(report: Report) -> None:
    with report.trying(value=5):
        raise ValueError("one row is bad")
    report.row(value=6)


def _spoils_its_process(report: Report) -> None:
    Finalize(None, os._exit, args=(7,), exitpriority=1)
    raise RuntimeError("illegal memory access")


def _stops(report: Report) -> None:
    raise OutOfTime("half of it")


def _cannot(report: Report) -> None:
    raise NotPossible("needs --data")


def _crashes(report: Report) -> None:
    report.at("the kernel")
    os._exit(13)


def _hangs(report: Report) -> None:
    report.row(value=4)
    time.sleep(600)


def _units(job: Job) -> parts.Units:
    return {name: unit for name, (unit, _) in ENDS.items()}


# How each unit ends, and what the overview must say of it.
ENDS = {
    "works": (_works, ("done", "")),
    "fails": (_fails, ("failed", "no triton")),
    "half": (_half_fails, ("failed", "1 rows have an error")),
    "spoils": (_spoils_its_process, ("failed", "illegal memory access")),
    "stops": (_stops, ("stopped", "half of it")),
    "cannot": (_cannot, ("skipped", "needs --data")),
    "crashes": (_crashes, ("failed", "13, in the kernel")),
    "works after it": (_works, ("done", "")),
    "hangs": (_hangs, ("failed", "longer than its time")),
}


def _last(job: Job) -> parts.Units:
    return {"works": _works}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Run:
    """A run on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job = Job(tmp_path, tmp_path / "checkpoints", None, True, False)
    run = gpu.Run(job, time.perf_counter() + 100, 100.0)
    gpu._look_at_the_device(run)
    return run


@pytest.mark.full
def test_a_part_survives_whatever_its_units_do(run: gpu.Run) -> None:
    start = time.perf_counter()
    gpu._run_part(run, Part("bad", 1, 1, _units), start + 12)
    assert time.perf_counter() - start < 12 + 2 * run.grace
    gpu._run_part(run, Part("good", 1, 1, _last), time.perf_counter() + 12)
    found = pd.read_csv(run.job.out / "parts.csv").fillna("").set_index(["part", "unit"])
    for name, (_, (state, note)) in ENDS.items():
        assert found.loc[("bad", name)].state == state, name
        assert note in found.loc[("bad", name)].note
    assert found.loc[("good", "works")].state == "done"
    rows = pd.read_csv(run.job.out / "bad.csv")
    assert rows[rows.unit == "works"].value.tolist() == [1, 2]
    assert rows[rows.unit == "hangs"].value.dropna().tolist() == [4]  # written before it hung
    fails = rows[rows.unit == "fails"]
    assert fails.value.dropna().tolist() == [3]
    assert fails.error.str.contains("one row is bad|no triton").all()
    assert set(rows) >= PROVENANCE

    # What is done isn't done again, unless the commit is another one.
    part = Part("good", 1, 1, _last)
    assert run.done_before(part) == {"works"}
    assert run.done_before(Part("good", 1, 1, _last, goes_on=True)) == set()
    run.origin = {**run.origin, "commit": "another"}
    assert run.done_before(part) == set()


@pytest.mark.full
def test_without_a_gpu_it_says_so(run: gpu.Run) -> None:
    wants = Job(run.job.out, run.job.checkpoints, None, True, gpu=True)
    with pytest.raises(RuntimeError, match="device=cuda: there is no GPU.*--device cpu"):
        gpu._look_at_the_device(gpu.Run(wants, time.perf_counter() + 60, 60.0))


def rehearse(out: Path, minutes: float, *options: str, host: str = "standalone") -> str:
    asked = ("--device", "cpu", "--tiny", "--host", host, "--minutes", minutes, "--out", out)
    command = ("-m", "benchmarks", "gpu", *asked, *options)
    return run_python(*command, cwd=PROJECT, timeout=600).ok().out


@pytest.mark.full
def test_a_rehearsal_of_everything_and_going_on_with_it(tmp_path: Path) -> None:
    rehearse(tmp_path, 6)
    overview = pd.read_csv(tmp_path / "parts.csv")
    assert set(overview.part) == set(COLUMNS)
    assert set(overview.state) == {"done"}, overview[overview.state != "done"].to_string()
    for name, columns in COLUMNS.items():
        rows = pd.read_csv(tmp_path / f"{name}.csv", dtype={"commit": str})
        assert set(rows) >= columns | PROVENANCE | {"unit"}, name
        assert rows[["device", "torch", "date"]].notna().all(axis=None), name
        assert rows[list(columns - {"places", "settings"})].notna().any().all(), name

    tests = pd.read_csv(tmp_path / "tests.csv")
    assert set(tests.outcome) == {"passed"}
    loss = pd.read_csv(tmp_path / "loss.csv")
    triton = loss[loss.candidate == "triton"]
    assert triton.error.notna().all()  # there is no GPU, and each row says so
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
    overview = pd.read_csv(tmp_path / "parts.csv")
    assert set(overview.part) == {"waits", "step"}
    assert set(overview.state) == {"done"}, overview[overview.state != "done"].to_string()
    assert set(pd.read_csv(tmp_path / "step.csv").host) == {"solo"}


# ---------------------------------------------------------------------- arithmetic


def test_the_plan_shares_the_time_among_the_parts_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        monkeypatch.setenv(variable, "")
    seconds: dict[str, float] = {}

    def run_part(run: gpu.Run, part: Part, until: float) -> None:
        seconds[part.name] = until - gpu.STARTED
        run.note(part, "it", "done", "", 0)

    monkeypatch.setattr(gpu, "STARTED", time.perf_counter())
    monkeypatch.setattr(gpu, "_look_at_the_device", lambda run: None)
    monkeypatch.setattr(gpu, "_run_part", run_part)
    gpu.run_gpu(Job(tmp_path, tmp_path, None, False, False), 10, ("accuracy", "tests"))
    assert list(seconds) == ["tests", "accuracy"]  # most important first
    last = 600 - 18 - 1  # so that what is still running can be ended in time
    assert seconds["tests"] == pytest.approx(last * 4 / 10, abs=5)
    assert seconds["accuracy"] == pytest.approx(last, abs=1e-3)


def test_the_plan_names_all_units_and_skips_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_work_off", lambda *_: pytest.fail("it ran"))
    run = gpu.Run(
        Job(tmp_path, tmp_path, None, False, False), 0, 60.0, {"device": "a GPU", "commit": "1"}
    )
    for part in parts.PARTS:
        gpu._run_part(run, part, time.perf_counter() + 0.9 * part.least)
    found = pd.read_csv(tmp_path / "parts.csv")
    assert set(found.part) == set(COLUMNS)
    assert found.state.eq("skipped").all()
    assert found.note.str.contains("s are left for it, and it takes at least").all()
    units = set(found[found.part == "loss"].unit)
    assert {"K=65536, bf16-mixed, triton", "K=16384, 32-true, auto dense chunked"} <= units
    assert set(found[found.part == "accuracy"].unit) == {"plan", *accuracy.METHODS}


def test_all_methods_get_equal_epochs() -> None:
    planned = accuracy.planned_epochs
    assert planned(0, [0, 0], [10, 20], left=100) == 3
    assert planned(0, [0, 0], [10, 20], left=29) == 0
    assert planned(3, [3, 1], [10, 20], left=1000) == 3  # first finish what was planned
    assert planned(3, [3, 3], [10, 20], left=65) == 5
    assert planned(0, [2, 0], [10, 20], left=100) == 4  # 40 s to catch up, 30 s for each epoch
    assert planned(0, [2, 0], [10, 20], left=10) == 2


def test_linear_accuracy_on_features_that_a_line_can_separate() -> None:
    torch.manual_seed(0)
    targets = torch.arange(300) % 3
    centres = 4 * torch.eye(3, 8)
    train, test = (centres[targets] + torch.randn(300, 8) for _ in range(2))
    found = accuracy.linear_accuracy(train, targets, test, targets)
    assert 95 < found <= 100
    shuffled = targets[torch.randperm(300)]
    assert accuracy.linear_accuracy(train, shuffled, test, targets) < 60


def test_the_limit_is_the_slower_of_arithmetic_and_memory() -> None:
    table = pd.DataFrame({"N": [2, 2], "K": [100, 100], "D": [10, 10], "policy": "plain"})
    table["ms"] = [16.0, 8.0]
    # 2·2·100·10 flop for the similarities, as many for the gradient; 100·10 numbers of 4 bytes
    found = limits.beside_limits(table, {"flops": 1e6, "bytes": 1e9})
    assert found.limit_by.tolist() == ["flop", "flop"]
    assert found.limit_ms.tolist() == pytest.approx([8, 8])
    assert found.share_of_limit.tolist() == pytest.approx([0.5, 1])
    found = limits.beside_limits(table, {"flops": 1e12, "bytes": 1e6}, element=2)
    assert found.limit_by.tolist() == ["byte", "byte"]
    assert found.limit_ms.tolist() == pytest.approx([2, 2])


def test_rounds_end_when_time_is_up_and_calls_are_timed_together() -> None:
    time_now = 0.0

    def work() -> None:
        nonlocal time_now
        time_now += 2

    seconds = interleaved({"a": work}, 10, 1, lambda: time_now, until=20, calls=3)
    assert seconds == {"a": [2.0, 2.0, 2.0]}  # the warm-up until 6, then until 12, 18, 24
    assert len(interleaved({"a": work}, 10, 1, lambda: time_now, until=0)["a"]) == 1
