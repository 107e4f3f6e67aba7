"""A run that is killed at any step, and goes on from its checkpoint as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration_helpers import environment

EPOCHS, STEPS = 3, 4  # 143 of the digits, 32 at a time

# What `python -m solo_hardneg` does, with a line in a file for each step's loss.
PROGRAM = """
import runpy, sys
from solo_hardneg.methods import OUR_METHODS
from solo_hardneg.methods.contrastive import ContrastiveMethod

log, method, sys.argv = sys.argv[1], sys.argv[2], ["solo_hardneg", *sys.argv[3:]]
cls = OUR_METHODS[method]
step = cls.training_step

def training_step(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    with open(log, "a") as file:
        file.write(f"{self.trainer.global_step} {loss.item()!r}\\n")
    return loss

cls.training_step = training_step
runpy.run_module("solo_hardneg", run_name="__main__")
"""
SMALL = [
    "data=digits",
    "data.val_path=builtin",
    "+data.fraction=0.1",
    "+limit_val_batches=1",
    "optimizer.batch_size=32",
    f"max_epochs={EPOCHS}",
    "scheduler.warmup_epochs=0",
    "method_kwargs.proj_hidden_dim=32",
    "method_kwargs.proj_output_dim=16",
    "accelerator=cpu",
    "+enable_progress_bar=false",
]


class Program:
    """A run in a process of its own, which writes its losses to ``NAME.txt``."""

    def __init__(self, folder: Path, name: str, method: str, *arguments: object):
        self.log, self.runs = folder / f"{name}.txt", folder / name
        script = folder / "program.py"
        script.write_text(PROGRAM)
        settings = [*SMALL, f"checkpoint.dir={self.runs}", *map(str, arguments)]
        command = [self.log, method, "pretrain", "--config-name", method, *settings]
        self.process = subprocess.Popen(
            [sys.executable, script, *command],
            cwd=folder,
            env=environment(SOLO_HARDNEG_HOST="standalone"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{name}.err").open("w"),
            start_new_session=True,
        )

    def losses(self) -> dict[int, str]:
        """The loss of each step so far, as it was written; a line that is not whole is none."""
        text = self.log.read_text() if self.log.exists() else ""
        lines = text.rpartition("\n")[0].splitlines()
        return {int(step): loss for step, loss in (line.split() for line in lines)}

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_after(self, steps: int) -> None:
        """Ends it once it has taken so many steps."""
        end = time.monotonic() + 120
        while len(self.losses()) < steps:
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < end
            time.sleep(0.002)
        self.kill()

    def finish(self) -> None:
        """Waits for its end, which must be a good one."""
        assert self.process.wait(timeout=120) == 0, self.errors

    @property
    def errors(self) -> str:
        return self.log.with_suffix(".err").read_text()[-3000:]

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return max(self.runs.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (
            "mocov2_banded",
            [
                "negatives=all",
                "method_kwargs.queue_size=128",
                "+negatives.retain={strength:1.0,band:[0.8,1.0]}",
                "+negatives.mix={hardest:16,pairs:16,queries:8}",
            ],
        ),
        (
            "simclr_banded",
            [
                "negatives=all",
                "method_kwargs.temperature=0.5",
                "+negatives.keep.band=[{from:0.0,to:0.5,epochs:[0,2]},1.0]",
                "+negatives.mix={hardest:16,pairs:16,queries:8}",
                "+negatives.debias.tau_plus=0.05",
            ],
        ),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, method: str, arguments: list[str]
) -> None:
    steps = random.randint(STEPS + 1, (EPOCHS - 1) * STEPS)
    whole, killed = (Program(tmp_path, n, method, *arguments) for n in ("whole", "killed"))
    resumed = None
    try:
        killed.kill_after(steps)
        assert killed.process.returncode == -signal.SIGKILL
        resume = f"+resume_from_checkpoint={killed.checkpoint}"
        resumed = Program(tmp_path, "resumed", method, *arguments, resume)
        whole.finish()
        resumed.finish()
    finally:
        for program in (whole, killed, resumed):
            if program is not None:
                program.kill()
    expected, before, after = whole.losses(), killed.losses(), resumed.losses()
    where = f"killed after step {steps}"
    assert sorted(expected) == list(range(EPOCHS * STEPS))
    assert len(set(expected.values())) == len(expected)
    assert steps <= len(before) < EPOCHS * STEPS, where
    assert before == {step: expected[step] for step in before}, where
    epoch = int(killed.checkpoint.stem.rpartition("-ep")[2]) + 1
    assert sorted(after) == list(range(epoch * STEPS, EPOCHS * STEPS)), where
    assert after == {step: expected[step] for step in after}, where
