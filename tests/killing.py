"""Runs that are killed and resumed, and what each of their steps must equal.

``SOLO_HARDNEG_TEST_SEED=...`` repeats the choices of a run of the tests; without it they are new.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.experimental.callback import Callback
from integration_helpers import environment, load_checkpoint

VARIABLE = "SOLO_HARDNEG_TEST_SEED"
SEED = os.environ.get(VARIABLE) or str(secrets.randbits(32))


def draw(what: str, choices: Sequence[int]) -> int:
    """One of the choices: always the same for the same seed and the same ``what``."""
    return random.Random(f"{SEED} {what}").choice(choices)


class LossRecorder(Callback):
    """In the program of a host: writes a line for each step's loss of our methods."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.methods import OUR_METHODS

        cls: Any = OUR_METHODS[config.method]
        step = cls.training_step

        @functools.wraps(step)
        def training_step(method: Any, batch: Any, batch_idx: int) -> Any:
            loss = step(method, batch, batch_idx)
            with open(self.file, "a") as file:
                file.write(f"{method.trainer.global_step} {loss.item()!r}\n")
            return loss

        cls.training_step = training_step


class Program:
    """A pretraining run in a process and a folder of its own."""

    def __init__(self, folder: Path, command: Sequence[object], env: dict[str, str]) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder / "losses.txt"
        recorder = "+hydra.callbacks.losses"
        settings = [
            f"checkpoint.dir={folder / 'checkpoints'}",
            f"{recorder}._target_=killing.LossRecorder",
            f"{recorder}.file={self.log}",
        ]
        with (folder / "errors.txt").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command), *settings],
                cwd=folder,
                env=environment(PYTHONPATH=str(Path(__file__).parent), **env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
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
        end = time.monotonic() + 240
        while len(self.losses()) < steps:
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < end, self.errors
            time.sleep(0.002)
        self.kill()
        assert self.process.returncode == -signal.SIGKILL, self.errors

    def finish(self) -> None:
        """Waits for its end, which must be a good one."""
        assert self.process.wait(timeout=240) == 0, self.errors

    @property
    def errors(self) -> str:
        """The end of what it wrote to stderr, and how to repeat the test."""
        return f"{VARIABLE}={SEED}\n{(self.folder / 'errors.txt').read_text()[-3000:]}"

    def checkpoints(self) -> list[Path]:
        """All that there are, the newest last."""
        return sorted(self.folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def check_resumed(
    folder: Path, command: Sequence[object], epochs: int, steps: int, last: int, **env: str
) -> None:
    """A run that is killed after its step ``last`` goes on as if nothing had been.

    Args:
        folder: an empty one.
        command: what follows ``python``, for ``epochs`` epochs of ``steps`` steps.
        epochs: at least one of them is over when the run is killed.
        steps: of each epoch.
        last: how many steps in all the run takes at least before it is killed.
        env: additional environment variables.
    """
    whole, killed = (Program(folder / name, command, env) for name in ("whole", "killed"))
    resumed = None
    try:
        killed.kill_after(last)
        where = f"{VARIABLE}={SEED}: killed after step {last}"
        newest = killed.checkpoints()[-1]
        checkpoint = load_checkpoint(newest)
        # The quotes are for Hydra: solo-learn puts an = into the names of checkpoints.
        resume = f"+resume_from_checkpoint='{newest}'"
        resumed = Program(folder / "resumed", [*command, resume], env)
        whole.finish()
        resumed.finish()
    finally:
        for program in (whole, killed, resumed):
            if program is not None:
                program.kill()
    expected, before, after = whole.losses(), killed.losses(), resumed.losses()
    total = epochs * steps
    assert sorted(expected) == list(range(total)), where
    assert len(set(expected.values())) == len(expected), where
    assert last <= len(before) < total, where
    assert before == {step: expected[step] for step in before}, where
    done = checkpoint["global_step"]
    assert done == (checkpoint["epoch"] + 1) * steps, where
    assert len(before) - steps <= done <= len(before), where
    assert sorted(after) == list(range(done, total)), where
    assert after == {step: expected[step] for step in after}, where
    ends = [load_checkpoint(program.checkpoints()[-1]) for program in (whole, resumed)]
    assert [end["global_step"] for end in ends] == [total, total], where
    states = [end["state_dict"] for end in ends]
    assert states[0].keys() == states[1].keys(), where
    differing = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert not differing, where
