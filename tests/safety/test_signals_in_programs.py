"""Whole programs of both hosts that a signal ends and ``auto_resume`` continues."""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import CLASSES, PER_CLASS, Images, load_checkpoint, only_checkpoint
from killing import Program
from safety_runs import small

from solo_hardneg.safety.signals import AGREE_EVERY

STEPS = 14  # of a standalone run, in one epoch
STANDALONE = {"SOLO_HARDNEG_HOST": "standalone"}
Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(name, *command, **kwargs)`` starts a program; it is killed after the test."""
    programs = []

    def make(name: str, *command: object, **kwargs: Any) -> Program:
        folder, saved = tmp_path / name, tmp_path / "checkpoints"
        programs.append(Program(folder, command, checkpoints=saved, **kwargs))
        return programs[-1]

    yield make
    for program in programs:
        program.kill()
    shutil.rmtree(tmp_path)  # checkpoints are large


def check_stopped(
    program: Program, folder: Path, steps: int, signum: signal.Signals
) -> tuple[Path, int]:
    """Checks exit status, message and checkpoint; returns the checkpoint and its step."""
    program.finish(128 + signum)
    assert "Traceback" not in program.said, program.said
    saved = only_checkpoint(folder)
    done: int = load_checkpoint(saved)["global_step"]  # tensors and plain values
    assert 0 < done < steps
    assert f"{signum.name}: the run ends after step {done}. Saved: {saved}\n" in program.said
    assert program.steps() == list(range(done)), program.said
    return saved, done


def check_resumed(program: Program, done: int, steps: int, folder: Path) -> None:
    """Checks that the program trains exactly the remaining steps."""
    program.finish()
    assert program.steps() == list(range(done, steps)), program.said
    newest = max(folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    assert load_checkpoint(newest)["global_step"] == steps


def standalone(*overrides: object) -> list[object]:
    return [
        *("-m", "solo_hardneg", "pretrain", "--config-name", "mocov2_banded", "negatives=all"),
        *small("mocov2_banded", Path("overridden"), epochs=1),
        *(f"++limit_train_batches={STEPS}", "auto_resume.enabled=True", *overrides),
    ]


# 11 s, mostly imports: an exit status, and a loader's worker that receives the signal, need a
# separate process.
def test_signal_to_all_processes_of_a_job(tmp_path: Path, start: Start) -> None:
    steps, quick = 89, "{img_size: 8, patch_size: 4, depth: 1, embed_dim: 8, num_heads: 2}"
    command = standalone(
        *("data.num_workers=1", f"++limit_train_batches={steps}"),
        *("backbone.name=vit_tiny", f"+backbone.kwargs={quick}"),
    )
    program = start("run", *command, env=STANDALONE)
    program.wait_for_step(3)
    os.killpg(program.process.pid, signal.SIGTERM)  # the loader's worker, too
    check_stopped(program, tmp_path / "checkpoints", steps, signal.SIGTERM)


@pytest.mark.full
def test_closed_terminal_under_a_progress_bar(tmp_path: Path, start: Start) -> None:
    controller, terminal = os.openpty()
    closing = threading.Event()

    def drain() -> None:
        while not closing.is_set():  # a blocking read would delay the hang-up
            if select.select([controller], [], [], 0.002)[0]:
                os.read(controller, 1000)

    steps = 89
    overrides = ("data.num_workers=2", "enable_progress_bar=true", f"++limit_train_batches={steps}")
    program = start("first", *standalone(*overrides), terminal=terminal, env=STANDALONE)
    os.close(terminal)
    drainer = threading.Thread(target=drain, daemon=True)
    drainer.start()
    program.wait_for_step(3)
    closing.set()
    drainer.join()
    os.close(controller)  # the kernel sends SIGHUP
    program.finish(129)
    done = load_checkpoint(only_checkpoint(tmp_path / "checkpoints"))["global_step"]
    assert program.steps() == list(range(done))
    assert 3 <= done < steps


@pytest.mark.full
@pytest.mark.parametrize(("target", "signum"), [("all", signal.SIGINT), ("rank1", signal.SIGTERM)])
def test_all_ranks_end_after_the_same_step(
    tmp_path: Path, start: Start, target: str, signum: signal.Signals
) -> None:
    command = standalone("strategy=ddp", "devices=2", "data.num_workers=0")
    first = start("first", *command, env=STANDALONE)
    first.wait_for_step(2)
    if target == "all":  # Ctrl-C in a terminal
        os.killpg(first.process.pid, signum)
    else:
        os.kill(int((first.folder / f"{target}.pid").read_text()), signum)
    _, done = check_stopped(first, tmp_path / "checkpoints", STEPS, signum)
    assert done == AGREE_EVERY
    assert first.steps(0) == first.steps(1)
    if target == "all":  # once is enough
        second = start("second", *command, env=STANDALONE)
        check_resumed(second, AGREE_EVERY, STEPS, tmp_path / "checkpoints")


def in_solo_learn(checkout: Path, images: Images, method: str, *overrides: str) -> list[object]:
    """solo-learn's own command for two epochs of six steps."""
    return [
        *(checkout / "main_pretrain.py", "--config-name", method, "data=custom"),
        *(*images.overrides(), "data.suggest.crop_size=32", "optimizer.batch_size=4", *overrides),
        *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=16"),
        *("max_epochs=2", "scheduler.warmup_epochs=0", "accelerator=cpu"),
        *("+enable_progress_bar=false", "auto_resume.enabled=True"),
    ]


@pytest.mark.full
@pytest.mark.host
def test_solo_learns_program(
    solo_learn: Path, images: Images, tmp_path: Path, start: Start
) -> None:
    steps = 2 * CLASSES * PER_CLASS // 4
    command = in_solo_learn(solo_learn, images, "mocov2plus", "method_kwargs.queue_size=16")
    first = start("first", *command, env={})
    first.wait_for_step(8)
    os.killpg(first.process.pid, signal.SIGTERM)
    # The host has removed the first epoch's checkpoint.
    saved, done = check_stopped(first, tmp_path / "checkpoints", steps, signal.SIGTERM)

    # Add a newer, damaged checkpoint of an earlier start.
    shutil.copytree(saved.parent, saved.parents[1] / "cut-off")
    damaged = saved.parents[1] / "cut-off" / saved.name
    damaged.write_bytes(damaged.read_bytes()[:100_000])
    second = start("second", *command, env={})
    check_resumed(second, done, steps, tmp_path / "checkpoints")
    assert f"found={damaged}: it is cut off" in second.said
    assert f"goes on from the one before it: {saved}" in second.said


@pytest.mark.full
@pytest.mark.host
def test_full_disk_keeps_solo_learns_last_checkpoint(
    solo_learn: Path, images: Images, tmp_path: Path, start: Start
) -> None:
    program = start("run", *in_solo_learn(solo_learn, images, "simclr"), env={})
    program.wait_for_step(7)
    # Limits its files from now on; Python ignores the resulting signal.
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    program.finish(1)
    left = only_checkpoint(tmp_path / "checkpoints")
    assert load_checkpoint(left)["global_step"] == 6
    assert "the checkpoint of epoch 1, step 12 can't be written to" in program.said
    assert "(File too large). Make room, or set checkpoint.dir" in program.said
    assert f"The last complete one is {left}: resume it with" in program.said
    assert not list(left.parent.glob("*.part"))
