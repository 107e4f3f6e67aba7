"""Whole programs of both hosts that a signal ends, and that go on with ``auto_resume``."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import CLASSES, PER_CLASS, Images, load_checkpoint, only_checkpoint
from safety_runs import Program, small

from solo_hardneg.safety.stopping import EVERY

pytestmark = pytest.mark.full

STEPS = 14  # of the only epoch of a run in the standalone host
Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(name, *command, **more)`` starts a program, which ends with the test."""
    programs = []

    def make(name: str, *command: object, **more: Any) -> Program:
        programs.append(Program(tmp_path / name, command, **more))
        return programs[-1]

    yield make
    for program in programs:
        program.kill()
    shutil.rmtree(tmp_path)  # checkpoints are large


def check_it_stopped(
    program: Program, saved: Path, steps: int, signum: signal.Signals = signal.SIGTERM
) -> int:
    """How many steps it had trained, by all that it has left behind."""
    done: int = load_checkpoint(saved)["global_step"]  # tensors and plain values
    assert 0 < done < steps
    assert f"{signum.name}: the run ends after step {done}. Saved: {saved}\n" in program.said
    assert program.steps() == list(range(done)), program.said
    return done


def check_it_went_on(program: Program, done: int, steps: int, folder: Path) -> None:
    """It has trained the steps that were left."""
    assert program.steps() == list(range(done, steps)), program.said
    newest = max(folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    assert load_checkpoint(newest)["global_step"] == steps


def standalone(tmp_path: Path, *more: object) -> list[object]:
    return [
        *("-m", "solo_hardneg", "pretrain", "--config-name", "mocov2_banded", "negatives=all"),
        *small("mocov2_banded", tmp_path / "checkpoints", epochs=1),
        *(f"++limit_train_batches={STEPS}", "auto_resume.enabled=True", *more),
    ]


def test_all_processes_of_a_job_get_it_as_from_a_cluster(tmp_path: Path, start: Start) -> None:
    command = standalone(tmp_path, "data.num_workers=2")
    first = start("first", *command, SOLO_HARDNEG_HOST="standalone")
    first.wait_for_step(3)
    os.killpg(first.process.pid, signal.SIGTERM)  # the loader's workers, too
    first.end(143)
    done = check_it_stopped(first, only_checkpoint(tmp_path / "checkpoints"), STEPS)
    second = start("second", *command, SOLO_HARDNEG_HOST="standalone")
    second.end(0)
    check_it_went_on(second, done, STEPS, tmp_path / "checkpoints")


def test_a_closed_terminal_that_the_progress_bar_writes_to(tmp_path: Path, start: Start) -> None:
    ours, its = os.openpty()
    drain = threading.Thread(target=read_to_the_end, args=(ours,))
    command = [*standalone(tmp_path, "data.num_workers=2"), "enable_progress_bar=true"]
    program = start("first", *command, stdout=its, SOLO_HARDNEG_HOST="standalone")
    os.close(its)
    drain.start()
    program.wait_for_step(3)
    os.close(ours)  # the kernel sends SIGHUP
    program.end(129)
    done = load_checkpoint(only_checkpoint(tmp_path / "checkpoints"))["global_step"]
    assert program.steps() == list(range(done))
    assert 3 <= done < STEPS


def read_to_the_end(terminal: int) -> None:
    with contextlib.suppress(OSError):  # it is closed
        while os.read(terminal, 1000):
            pass


@pytest.mark.parametrize(("whom", "signum"), [("all", signal.SIGINT), ("rank1", signal.SIGTERM)])
def test_all_ranks_end_after_the_same_step(
    tmp_path: Path, start: Start, whom: str, signum: signal.Signals
) -> None:
    command = standalone(tmp_path, "strategy=ddp", "devices=2", "data.num_workers=0")
    first = start("first", *command, SOLO_HARDNEG_HOST="standalone")
    first.wait_for_step(2)
    if whom == "all":  # Ctrl-C in a terminal
        os.killpg(first.process.pid, signum)
    else:
        os.kill(int(first.text(f"{whom}.pid")), signum)
    first.end(128 + signum)
    assert first.steps(0) == first.steps(1)
    done = check_it_stopped(first, only_checkpoint(tmp_path / "checkpoints"), STEPS, signum)
    assert done == EVERY
    if whom == "all":  # it is the same for the other one
        second = start("second", *command, SOLO_HARDNEG_HOST="standalone")
        second.end(0)
        check_it_went_on(second, done, STEPS, tmp_path / "checkpoints")


def in_solo_learn(checkout: Path, images: Images, tmp_path: Path, *more: str) -> list[object]:
    """The host's own command for two epochs of six steps; ``more`` begins with the method."""
    method, *own = more
    return [
        *(checkout / "main_pretrain.py", "--config-name", method, "data=custom"),
        *(*images.overrides(), "data.suggest.crop_size=32", "optimizer.batch_size=4", *own),
        *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=16"),
        *("max_epochs=2", "scheduler.warmup_epochs=0", "accelerator=cpu"),
        *("+enable_progress_bar=false", "auto_resume.enabled=True"),
        f"checkpoint.dir={tmp_path / 'checkpoints'}",
    ]


@pytest.mark.host
@pytest.mark.parametrize(
    ("method", "signum"), [("mocov2plus", signal.SIGTERM), ("simclr_banded", signal.SIGINT)]
)
def test_solo_learns_own_program(
    solo_learn: Path,
    images: Images,
    tmp_path: Path,
    start: Start,
    method: str,
    signum: signal.Signals,
) -> None:
    steps = 2 * CLASSES * PER_CLASS // 4
    own = ["method_kwargs.queue_size=16"] if method == "mocov2plus" else ["negatives=all"]
    command = in_solo_learn(solo_learn, images, tmp_path, method, *own)
    first = start("first", *command)
    first.wait_for_step(8)
    os.killpg(first.process.pid, signum)
    first.end(128 + signum)
    saved = only_checkpoint(tmp_path / "checkpoints")  # the first epoch's was removed
    done = check_it_stopped(first, saved, steps, signum)

    # An earlier version of this run has left a newer one that was cut off.
    shutil.copytree(saved.parent, saved.parents[1] / "cut-off")
    damaged = saved.parents[1] / "cut-off" / saved.name
    damaged.write_bytes(damaged.read_bytes()[:100_000])
    second = start("second", *command)
    second.end(0)
    assert f"found={damaged}: it is cut off, or no checkpoint." in second.said
    assert f"The run goes on from the one before it: {saved}" in second.said
    check_it_went_on(second, done, steps, tmp_path / "checkpoints")


@pytest.mark.host
def test_a_full_disk_leaves_solo_learn_its_last_checkpoint(
    solo_learn: Path, images: Images, tmp_path: Path, start: Start
) -> None:
    program = start("run", *in_solo_learn(solo_learn, images, tmp_path, "simclr"))
    program.wait_for_step(7)
    # From now on its files can't be larger; Python ignores the signal that comes of it.
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    program.end(1)
    left = only_checkpoint(tmp_path / "checkpoints")
    assert load_checkpoint(left)["global_step"] == 6
    text = "the checkpoint of epoch 1, step 12 can't be written to"
    assert text in program.said
    assert "(File too large). Make room, or set checkpoint.dir to another disk." in program.said
    assert f"The last complete one is {left}: go on with" in program.said
    assert not list(left.parent.glob("*.part"))
