"""``solo-hardneg reproduce`` as a whole: real runs on digits, killed ones, failing ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock, Timeout
from integration_helpers import (
    NO_CHECKOUT,
    PER_CLASS,
    environment,
    run_python,
    solo_learn_checkout,
    write_images,
)

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.reproduce import cell as cell_process
from solo_hardneg.reproduce import sweep
from solo_hardneg.reproduce.cells import Images, make_cells
from solo_hardneg.reproduce.command import reproduce
from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.overrides import told_apart
from solo_hardneg.reproduce.results import (
    FAILED,
    Result,
    read_plan,
    read_result,
    result_file,
    run_folder,
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
epochs: 3
images: 400
batch_size: 64
backbone: resnet10t
linear_epochs: 2
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with an experiment and a scale of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    (tmp_path / "tiny.yaml").write_text(SCALE)
    return tmp_path


COMMAND = ("-m", "solo_hardneg", "reproduce", "mine.yaml", "--scale", "tiny.yaml")
HOME = Path("reproduced/mine-digits-tiny")


@pytest.mark.full
def test_a_grid_several_at_a_time_with_a_cell_that_fails(mine: Path) -> None:
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    first = run_python(*COMMAND, *joblib, cwd=mine)
    assert first.code == 1  # because a cell failed
    assert "0 of 3 cells have a result" in first.out
    assert "To be run: plain-seed0, hcl-seed0, broken-seed0" in first.out
    assert "broken-seed0: failed. ConfigError: method_kwargs.temperature=-1: must" in first.out
    assert "plain-seed0: top-1" in first.out
    table = pd.read_csv(mine / HOME / "table.csv").set_index("row")
    assert 10 <= table.loc["plain", "ours_top1"] <= 100
    assert table.loc["hcl", "ours_top1_to_baseline"] == pytest.approx(
        table.loc["hcl", "ours_top1"] - table.loc["plain", "ours_top1"], abs=1e-3
    )
    assert pd.isna(table.loc["broken", "ours_top1"])
    page = (mine / HOME / "README.md").read_text()
    assert "2 of 3 cells have a result" in page
    assert "broken-seed0: ConfigError: method_kwargs.temperature=-1" in page
    result = result_in(mine / HOME, "hcl-seed0")
    assert result.ran_on["host"] == "standalone"
    assert {"top1", "top5", "online"} == set(result.metrics)

    # Mended, it alone runs, and what is there of it is kept.
    (mine / "mine.yaml").write_text(EXPERIMENT.replace("temperature=-1", "temperature=0.3"))
    second = run_python(*COMMAND, cwd=mine).ok()
    assert "broken-seed0: its config has changed since it was run" in second.out
    assert "To be run: broken-seed0\n" in second.out
    both = sorted((mine / HOME / "cells").glob("broken-seed0-*.json"))
    assert {read_result(file).state for file in both} == {"done", FAILED}
    # And then there is nothing to run.
    outcome, _ = reproduce("mine.yaml", "tiny.yaml", say=lambda text: None)
    assert (outcome.done, outcome.failed) == (3, [])
    # To write the table again is not to ask for other runs.
    outcome, _ = reproduce("mine.yaml", "tiny.yaml", ["max_epochs=9"], run=False)
    assert (outcome.done, outcome.failed) == (3, [])


def result_in(home: Path, name: str) -> Result:
    """The result of a cell, of which there is one."""
    [file] = (home / "cells").glob(f"{name}-*.json")
    return read_result(file)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't come to that"
        time.sleep(0.1)


@pytest.mark.full
def test_a_killed_sweep_goes_on_where_it_stopped(mine: Path) -> None:
    asked = (*COMMAND, "--rows", "plain", "max_epochs=25")
    with subprocess.Popen(
        [sys.executable, *asked],
        cwd=mine,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as sweeping:
        runs = mine / HOME / "runs"
        wait_for(lambda: any(runs.rglob("*.ckpt")))
        os.kill(sweeping.pid, signal.SIGKILL)  # the sweep alone: its cell has to notice
    cell = read_plan(mine / HOME / "plan.json")[0]["plain-seed0"]
    lock = run_folder(mine / HOME, cell) / "lock"

    def is_free() -> bool:
        try:
            with FileLock(lock, timeout=0):
                return True
        except Timeout:
            return False

    wait_for(is_free)
    assert not result_file(mine / HOME, cell).exists()
    before = len(list(runs.rglob("args.json")))
    run_python(*asked, cwd=mine).ok()
    assert result_in(mine / HOME, "plain-seed0").state == "done"
    assert "Resuming " in (run_folder(mine / HOME, cell) / "log.txt").read_text()
    assert before == 1


def some_plan(home: Path) -> Path:
    """The plan of a cell that nobody runs."""
    from test_results import CELL

    return write_plan(home, [CELL], {})


def python_that(does: str, folder: Path) -> str:
    """The path of a program in the place of Python."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("echo out of luck; kill -9 $$", "was ended by signal 9. The last lines of"),
        ("echo out of luck; exit 3", "ended with status 3. The last lines of"),
    ],
)
def test_a_process_that_dies_is_a_failed_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, message: str
) -> None:
    plan = some_plan(tmp_path / "home")
    monkeypatch.setattr(sys, "executable", python_that(does, tmp_path))
    sweep.run_cell(plan, "a-seed0")
    result = result_in(tmp_path / "home", "a-seed0")
    assert result.state == FAILED
    assert message in result.error
    assert result.error.endswith("out of luck")


def test_a_cell_that_is_being_run_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, home = some_plan(tmp_path / "home"), tmp_path / "home"
    cell = read_plan(plan)[0]["a-seed0"]
    lock = run_folder(home, cell) / "lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(Timeout):
        cell_process.run(plan, "a-seed0")
    monkeypatch.setattr(sys, "executable", python_that(f"exit {cell_process.BUSY}", tmp_path))
    sweep.run_cell(plan, "a-seed0")
    assert "another process is at it" in capsys.readouterr().out
    assert not result_file(home, cell).exists()


def test_what_is_wrong_is_said_before_anything_runs(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "sweep", lambda *_: pytest.fail("it ran"))
    for arguments, error, message in (
        ({"rows": ["hlc"]}, ConfigError, "unknown row of mine 'hlc'. Did you mean 'hcl'?"),
        ({"arguments": ["x.y=1"]}, ConfigError, "x.y=1"),
        ({"arguments": ["data=nosuch"]}, ConfigError, "data=nosuch"),
        ({"arguments": ["data=cifar100"]}, DataError, "CIFAR100 isn't in it.*data.download=true"),
        ({"arguments": ["data=tinyimagenet"]}, DataError, "no such folder.*CS231n"),
        ({"run": False}, DataError, "no plan that can be read"),
    ):
        with pytest.raises(error, match=message):
            reproduce("mine.yaml", "tiny.yaml", **arguments)
    assert not (mine / "reproduced").exists()


def test_a_folder_of_another_experiment_is_refused(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "sweep", lambda *_: None)
    reproduce("mine.yaml", "tiny.yaml", folder=mine / "here", say=lambda text: None)
    with pytest.raises(
        ConfigError, match=r"holds another experiment \(experiment=mine, data=digits"
    ):
        reproduce("sscl_table4", "tiny.yaml", ["data=digits"], folder=mine / "here")
    (mine / "here" / "plan.json").write_text("{")  # cut short: it is only written again
    reproduce("mine.yaml", "tiny.yaml", folder=mine / "here", say=lambda text: None)


def test_what_is_sent_to_the_sweep(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {}
    monkeypatch.setattr(
        sweep, "sweep", lambda plan, cells, told: sent.update(cells=cells, told=told)
    )
    said: list[str] = []
    arguments = ["hydra/launcher=joblib", "data.num_workers=1"]
    outcome, page = reproduce(
        "mine.yaml", "tiny.yaml", arguments, ["hcl", "plain"], seeds=2, say=said.append
    )
    assert sent["cells"] == ["plain-seed0", "hcl-seed0", "plain-seed1", "hcl-seed1"]
    assert sent["told"] == ("hydra/launcher=joblib",)
    assert "0 of 6 cells have a result" in said[0]
    assert page.is_file()
    assert outcome.verdicts[0].verdict == "undecided"


def test_scripts_must_be_solo_learns(mine: Path) -> None:
    with pytest.raises(
        DataError, match=r"--scripts .*no main_pretrain.py and no main_linear.py in it"
    ):
        reproduce("mine.yaml", "tiny.yaml", scripts=mine)


@pytest.mark.full
@pytest.mark.host
def test_through_solo_learns_own_programs(mine: Path) -> None:
    checkout = solo_learn_checkout()
    if checkout is None:
        pytest.skip(NO_CHECKOUT)
    for part in ("train", "val"):
        write_images(mine / "images" / part, PER_CLASS)
    rows = EXPERIMENT.replace("data: digits", "data: custom").partition("  broken:")[0]
    (mine / "mine.yaml").write_text(rows)
    sizes = "epochs: 1\nbatch_size: 8\nbackbone: resnet18\nlinear_epochs: 1\n"
    (mine / "tiny.yaml").write_text(sizes)
    folders = [f"data.{part}_path={mine}/images/{part}" for part in ("train", "val")]
    asked = (*folders, "data.num_workers=0", "++data.suggest.crop_size=32", "--rows", "plain")
    asked += ("linear.optimizer.batch_size=8",)
    run_python(*COMMAND, "--scripts", checkout, *asked, cwd=mine, timeout=400).ok()
    home = mine / "reproduced" / "mine-custom-tiny"
    result = result_in(home, "plain-seed0")
    assert {"top1", "top5", "online"} == set(result.metrics)
    assert result.ran_on["host"] == "solo-learn's programs"
    assert len(list(home.glob("runs/*/simclr_sscl/*/*.ckpt"))) == 1
    log = next(home.glob("runs/*/log.txt")).read_text()
    assert "solo-hardneg host: solo-learn in" in log


@pytest.mark.full
def test_a_cell_on_two_devices(mine: Path) -> None:
    two = ("accelerator=cpu", "devices=2", "strategy=ddp", "max_epochs=1", "linear.max_epochs=1")
    two += ("linear.optimizer.batch_size=64",)
    run_python(*COMMAND, "--rows", "plain", *two, cwd=mine).ok()
    assert result_in(mine / HOME, "plain-seed0").state == "done"
    runs = next((mine / HOME / "runs").iterdir())
    assert len(list(runs.glob("simclr_sscl/*/args.json"))) == 1
    assert "distributed_backend=gloo" in (runs / "log.txt").read_text()


@pytest.mark.full
def test_a_killed_sweep_takes_solo_learns_program_with_it(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    training = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    (scripts / "main_pretrain.py").write_text(training)
    cell = make_cells(
        load_experiment("sscl_table4"),
        load_scale("minute"),
        [load_experiment("sscl_table4").row("simclr")],
        [0],
        told_apart(["data=digits"]),
        Images(1437),
    )[0]
    plan = write_plan(tmp_path / "home", [cell], {"scripts": str(scripts)})
    code = (
        "from pathlib import Path; from solo_hardneg.reproduce.sweep import run_cell; "
        f"run_cell(Path({str(plan)!r}), {cell.name!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as sweeping:
        wait_for(lambda: (scripts / "pid").is_file() and bool((scripts / "pid").read_text()))
        pid = int((scripts / "pid").read_text())
        sweeping.kill()

    def has_ended() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    wait_for(has_ended, 30)
