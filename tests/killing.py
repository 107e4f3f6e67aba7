"""Hosts' programs in separate processes that are killed or stopped, and then resumed.

``SOLO_HARDNEG_TEST_SEED=...`` repeats the random choices of a test run.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import secrets
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.experimental.callback import Callback
from integration_helpers import environment, load_checkpoint

VARIABLE = "SOLO_HARDNEG_TEST_SEED"
SEED = os.environ.get(VARIABLE) or str(secrets.randbits(32))


def draw(what: str, choices: Sequence[int]) -> int:
    """Draws one of the choices, depending only on the seed and ``what``."""
    return random.Random(f"{SEED} {what}").choice(choices)


class LossRecorder(Callback):
    """Hydra callback in a host's program: each rank writes its process id and a line per step."""

    def __init__(self, folder: str) -> None:
        self.file = Path(folder) / f"rank{os.environ.get('LOCAL_RANK', '0')}.losses"

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.host import METHODS

        cls: Any = METHODS[config.method]
        step = cls.training_step
        self.file.with_suffix(".pid").write_text(str(os.getpid()))

        @functools.wraps(step)
        def training_step(method: Any, batch: Any, batch_idx: int) -> Any:
            loss = step(method, batch, batch_idx)
            with self.file.open("a") as file:
                file.write(f"{method.trainer.global_step} {loss.item()!r}\n")
            return loss

        cls.training_step = training_step


def _as_in_a_terminal() -> None:
    """In a new process, lets Ctrl-C end it, and makes its stdout its controlling terminal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored if the tests run in the background
    with contextlib.suppress(OSError):
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)


class Program:
    """A pretraining run in a separate process, session and folder.

    Args:
        folder: Working directory, which is made.
        command: Arguments of ``python``.
        env: Additional environment variables.
        checkpoints: Folder of checkpoints; ``None`` for one in ``folder``.
        terminal: Descriptor for its output; ``None`` for files in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[object],
        env: Mapping[str, str],
        checkpoints: Path | None = None,
        terminal: int | None = None,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        recorder = "+hydra.callbacks.losses"
        settings = [
            f"checkpoint.dir={checkpoints or folder / 'checkpoints'}",
            f"{recorder}._target_=killing.LossRecorder",
            f"{recorder}.folder={folder}",
        ]
        with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command), *settings],
                cwd=folder,
                env=environment(PYTHONPATH=str(Path(__file__).parent), **env),
                stdin=subprocess.DEVNULL,
                stdout=out if terminal is None else terminal,
                stderr=err if terminal is None else terminal,
                start_new_session=True,
                preexec_fn=_as_in_a_terminal,
            )

    def losses(self, rank: int = 0) -> dict[int, str]:
        """The loss of each step so far, as text; an incomplete line is ignored."""
        log = self.folder / f"rank{rank}.losses"
        text = log.read_text() if log.exists() else ""
        pairs = [line.split() for line in text.rpartition("\n")[0].splitlines()]
        found = {int(step): loss for step, loss in pairs}
        assert len(found) == len(pairs), f"a step was taken twice: {pairs}"
        return found

    def steps(self, rank: int = 0) -> list[int]:
        """The steps of a rank, in order."""
        return list(self.losses(rank))

    def wait_for_step(self, number: int) -> None:
        """Waits until it has trained this many steps; limited by pytest's timeout."""
        while len(self.losses()) < number:
            assert self.process.poll() is None, self.errors
            time.sleep(0.002)

    def kill(self) -> None:
        """Kills all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_after(self, steps: int) -> None:
        """Kills it once it has trained this many steps."""
        self.wait_for_step(steps)
        self.kill()
        assert self.process.returncode == -signal.SIGKILL, self.errors

    def finish(self, status: int = 0) -> None:
        """Waits for the end of all its processes, and checks the first one's exit status."""
        assert self.process.wait() == status, self.errors
        end = time.monotonic() + 60
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.killpg(self.process.pid, 0)
                time.sleep(0.05)
            raise AssertionError(f"some of its processes still run\n{self.errors}")

    @property
    def said(self) -> str:
        """Its stdout and stderr."""
        return "\n".join((self.folder / name).read_text() for name in ("out.txt", "err.txt"))

    @property
    def errors(self) -> str:
        """The end of its output, and the seed to repeat the test."""
        return f"{VARIABLE}={SEED}\n{self.said[-5000:]}"

    def checkpoints(self) -> list[Path]:
        """All checkpoints in its folder, the newest last."""
        return sorted(self.folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def check_resumed(
    folder: Path, command: Sequence[object], epochs: int, steps: int, last: int, **env: str
) -> None:
    """Checks that a killed run resumes with the losses of an uninterrupted one.

    Args:
        folder: Empty folder.
        command: Arguments of ``python``, for ``epochs`` epochs of ``steps`` steps.
        epochs: Number of epochs; the first is finished when the run is killed.
        steps: Number of steps per epoch.
        last: Minimal number of steps before the run is killed.
        env: Additional environment variables.
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
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0, msg=lambda m: f"{where}\n{m}")
