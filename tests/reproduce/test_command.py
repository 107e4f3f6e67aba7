"""``solo-hardneg reproduce`` end to end: runs on digits, killed and failing ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock, Timeout
from integration_helpers import PER_CLASS, environment, run_python, write_images
from test_store import CELL

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.reproduce import command, launch, worker
from solo_hardneg.reproduce.command import reproduce
from solo_hardneg.reproduce.store import (
    FAILED,
    Result,
    cell_folder,
    read_plan,
    read_result,
    result_file,
    write_plan,
)

EXPERIMENT = """
title: "Mine"
source: "nobody"
config: simclr_sscl
data: digits
seeds: 1
rows:
  plain: {title: "Plain", overrides: [negatives=all]}
  hcl: {title: "HCL", overrides: [negatives=hcl], baseline: plain}
  broken: {title: "Broken", overrides: [negatives=all, method_kwargs.temperature=-1]}
claims:
  - {text: "HCL is better.", greater: [hcl, plain]}
"""
SCALE = """
title: "tiny"
epochs: 1
images: 300
batch_size: 64
backbone: resnet10t
linear_epochs: 1
"""
COMMAND = ("-m", "solo_hardneg", "reproduce", "mine.yaml", "--scale", "tiny.yaml")
HOME = Path("reproduced/mine-digits-tiny")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's own experiment and scale."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    (tmp_path / "tiny.yaml").write_text(SCALE)
    return tmp_path


def result_in(home: Path, name: str) -> Result:
    """Reads the only result of a cell."""
    [file] = (home / "cells").glob(f"{name}-*.json")
    return read_result(file)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


# 7 s: two rows trained and evaluated in this process.
def test_from_the_command_to_the_page(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(command: Sequence[str], *_: object) -> int:
        try:
            worker.run_cell(Path(command[-2]), command[-1])
        except SystemExit:
            return 1
        return 0

    monkeypatch.setattr(launch, "_wait_for_process", run_here)
    lines: list[str] = []
    outcome, page = reproduce("mine.yaml", "tiny.yaml", echo=lines.append)
    assert lines == [
        f"{HOME}: 0 of 3 cells have a result.",
        "To be run: plain-seed0, hcl-seed0, broken-seed0",
    ]
    assert (outcome.done, [result.cell.name for result in outcome.failed]) == (2, ["broken-seed0"])
    table = pd.read_csv(mine / HOME / "table.csv").set_index("row")
    result = result_in(mine / HOME, "hcl-seed0")
    assert {"top1", "top5", "online"} == set(result.metrics)
    assert result.ran_on["host"] == "standalone"
    assert table.loc["hcl", "ours_top1"] == pytest.approx(result.metrics["top1"], abs=1e-3)
    assert table.loc["hcl", "ours_top1_to_baseline"] == pytest.approx(
        table.loc["hcl", "ours_top1"] - table.loc["plain", "ours_top1"], abs=1e-3
    )
    assert pd.isna(table.loc["broken", "ours_top1"])
    assert pd.read_csv(mine / HOME / "claims.csv").verdict.tolist() == ["undecided"]
    text = page.read_text()
    assert "2 of 3 cells have a result" in text
    assert "- broken-seed0: ConfigError: method_kwargs.temperature=-1" in text

    # Finished cells don't run again; without runs, overrides don't count.
    monkeypatch.setattr(command, "launch_cells", lambda *_: pytest.fail("it ran"))
    assert reproduce("mine.yaml", "tiny.yaml", rows=["plain", "hcl"])[0].done == 2
    assert reproduce("mine.yaml", "tiny.yaml", ["max_epochs=9"], run=False)[0].done == 2


@pytest.mark.full
def test_parallel_cells_and_then_the_corrected_one(mine: Path) -> None:
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    first = run_python(*COMMAND, *joblib, cwd=mine)
    assert first.code == 1  # because a cell failed
    assert "broken-seed0: failed. ConfigError: method_kwargs.temperature=-1: must" in first.out
    assert "plain-seed0: top-1" in first.out
    (mine / "mine.yaml").write_text(EXPERIMENT.replace("temperature=-1", "temperature=0.3"))
    second = run_python(*COMMAND, cwd=mine).ok()
    assert "broken-seed0: its config has changed" in second.out
    assert "To be run: broken-seed0\n" in second.out
    both = sorted((mine / HOME / "cells").glob("broken-seed0-*.json"))
    assert {read_result(file).state for file in both} == {"done", FAILED}


@pytest.mark.full
def test_a_killed_launch_is_resumed(mine: Path) -> None:
    asked = (*COMMAND, "--rows", "plain", "max_epochs=12")
    with subprocess.Popen([sys.executable, *asked], cwd=mine, env=environment()) as launching:
        runs = mine / HOME / "runs"
        wait_for(lambda: any(runs.rglob("*.ckpt")))
        launching.kill()  # its worker has to notice
    cell = read_plan(mine / HOME / "plan.json")[0]["plain-seed0"]
    lock = cell_folder(mine / HOME, cell) / "lock"

    def is_free() -> bool:
        try:
            with FileLock(lock, timeout=0):
                return True
        except Timeout:
            return False

    wait_for(is_free)
    assert not result_file(mine / HOME, cell).exists()
    assert len(list(runs.rglob("args.json"))) == 1
    run_python(*asked, cwd=mine).ok()
    assert result_in(mine / HOME, "plain-seed0").state == "done"
    assert "Resuming " in (cell_folder(mine / HOME, cell) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("echo out of luck; kill -9 $$", "was ended by signal 9. The last lines of"),
        ("echo out of luck; exit 3", "ended with status 3. The last lines of"),
        (f"exit {worker.BUSY}", None),  # another process runs the cell
    ],
)
def test_a_worker_that_dies_is_a_failed_cell_unless_another_runs_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    does: str,
    message: str | None,
) -> None:
    plan, python = write_plan(tmp_path / "home", [CELL], {}), tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    launch.launch_cell(plan, "a-seed0")
    if message is None:
        assert "another process runs this cell" in capsys.readouterr().out
        assert not result_file(tmp_path / "home", CELL).exists()
        return
    result = result_in(tmp_path / "home", "a-seed0")
    assert result.state == FAILED
    assert message in result.error
    assert result.error.endswith("out of luck")


def test_invalid_input_is_refused_before_anything_runs(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "launch_cells", lambda *_: pytest.fail("it ran"))
    for arguments, error, message in (
        ({"rows": ["hlc"]}, ConfigError, "unknown row of mine 'hlc'. Did you mean 'hcl'?"),
        ({"arguments": ["x.y=1"]}, ConfigError, "x.y=1"),
        ({"arguments": ["data=cifar100"]}, DataError, "CIFAR100 isn't in it.*data.download=true"),
        ({"arguments": ["data=tinyimagenet"]}, DataError, "no such folder.*CS231n"),
        ({"run": False}, DataError, "no plan that can be read"),
        ({"scripts": mine}, DataError, r"--scripts .*no main_pretrain.py and no main_linear.py"),
    ):
        with pytest.raises(error, match=message):
            reproduce("mine.yaml", "tiny.yaml", **arguments)
    assert not (mine / "reproduced").exists()


def test_cells_and_overrides_of_the_launch(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple] = []
    monkeypatch.setattr(command, "launch_cells", lambda _, *arguments: launched.append(arguments))
    arguments = ["hydra/launcher=joblib", "data.num_workers=1"]
    reproduce("mine.yaml", "tiny.yaml", arguments, ["hcl", "plain"], seeds=2)
    cells = ["plain-seed0", "hcl-seed0", "plain-seed1", "hcl-seed1"]
    assert launched == [(cells, ("hydra/launcher=joblib",))]


def test_a_folder_of_another_experiment_is_refused(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "launch_cells", lambda *_: None)
    reproduce("mine.yaml", "tiny.yaml", rows=["plain"], folder=mine / "here")
    with pytest.raises(
        ConfigError, match=r"holds another experiment \(experiment=mine, data=digits"
    ):
        reproduce("sscl_table4", "tiny.yaml", ["data=digits"], folder=mine / "here")
    (mine / "here" / "plan.json").write_text("{")  # damaged: it is written again
    reproduce("mine.yaml", "tiny.yaml", rows=["plain"], folder=mine / "here")


@pytest.mark.full
@pytest.mark.host
def test_solo_learns_own_scripts(mine: Path, solo_learn: Path) -> None:
    for part in ("train", "val"):
        write_images(mine / "images" / part, PER_CLASS)
    (mine / "mine.yaml").write_text(EXPERIMENT.replace("data: digits", "data: custom"))
    sizes = "epochs: 1\nbatch_size: 8\nbackbone: resnet18\nlinear_epochs: 1\n"
    (mine / "tiny.yaml").write_text(sizes)
    folders = [f"data.{part}_path={mine}/images/{part}" for part in ("train", "val")]
    asked = (*folders, "data.num_workers=0", "++data.suggest.crop_size=32", "--rows", "plain")
    asked += ("linear.optimizer.batch_size=8",)
    run_python(*COMMAND, "--scripts", solo_learn, *asked, cwd=mine, timeout=400).ok()
    home = mine / "reproduced" / "mine-custom-tiny"
    result = result_in(home, "plain-seed0")
    assert {"top1", "top5", "online"} == set(result.metrics)
    assert result.ran_on["host"] == "solo-learn's programs"
    assert len(list(home.glob("runs/*/simclr_sscl/*/*.ckpt"))) == 1
    log = next(home.glob("runs/*/log.txt")).read_text()
    assert "solo-hardneg host: solo-learn in" in log


@pytest.mark.full
def test_a_cell_on_two_devices(mine: Path) -> None:
    two = ("accelerator=cpu", "devices=2", "strategy=ddp", "linear.optimizer.batch_size=64")
    run_python(*COMMAND, "--rows", "plain", *two, cwd=mine).ok()
    assert result_in(mine / HOME, "plain-seed0").state == "done"
    runs = next((mine / HOME / "runs").iterdir())
    assert len(list(runs.glob("simclr_sscl/*/args.json"))) == 1
    assert "distributed_backend=gloo" in (runs / "log.txt").read_text()


@pytest.mark.full
def test_a_killed_launch_ends_solo_learns_script(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    training = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    (scripts / "main_pretrain.py").write_text(training)
    plan = write_plan(tmp_path / "home", [CELL], {"scripts": str(scripts)})
    code = (
        "from pathlib import Path; from solo_hardneg.reproduce.launch import launch_cell; "
        f"launch_cell(Path({str(plan)!r}), {CELL.name!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as launching:
        wait_for(lambda: (scripts / "pid").is_file() and bool((scripts / "pid").read_text()))
        pid = int((scripts / "pid").read_text())
        launching.send_signal(signal.SIGKILL)

    def has_ended() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    wait_for(has_ended, 30)
