"""What the small runs of these tests are, and what watches them."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback as HydraCallback
from integration_helpers import PROJECT, environment
from lightning.pytorch import Callback

from solo_hardneg.safety.stopping import Stopping

STEPS = 4  # of an epoch


class Watch(Callback):
    """Records the steps, and sends a signal to its process when ``hook`` is called at ``step``.

    Attributes:
        steps: the number of each step that was trained, as Lightning counts them.
        handler: of the signal, before it was sent; ``next_handler``: after that.
        ended_by: what the run says of its end.
    """

    def __init__(
        self, hook: str = "", step: int = 0, times: int = 1, signum: int = signal.SIGTERM
    ) -> None:
        self.hook, self.step, self.times, self.signum = hook, step, times, signum
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.handler: Any = None
        self.next_handler: Any = None
        self.ended_by: Any = None

    def _maybe(self, hook: str, trainer: Any) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            self.handler = signal.getsignal(self.signum)
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)
            self.next_handler = signal.getsignal(self.signum)

    def on_sanity_check_end(self, trainer: Any, *_: Any) -> None:
        self._maybe("sanity check", trainer)

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        self._maybe("start", trainer)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(trainer.global_step)
        self.losses.append(float(outputs["loss"]))
        self._maybe("step", trainer)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._maybe("validation", trainer)

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._maybe("end", trainer)

    def on_exception(self, trainer: Any, *_: Any) -> None:
        (stopping,) = [c for c in trainer.callbacks if isinstance(c, Stopping)]
        self.ended_by = stopping.ended_by


def small(method: str, folder: Path, epochs: int = 3) -> list[str]:
    """Overrides for a run on the digits, of :data:`STEPS` steps an epoch."""
    own = ["method_kwargs.queue_size=64"] if method.startswith("moco") else []
    if method != "linear":
        own += ["method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4"]
    return [
        *("data=digits", "optimizer.batch_size=16", f"max_epochs={epochs}"),
        *("scheduler.warmup_epochs=0", "accelerator=cpu", f"checkpoint.dir={folder}"),
        *own,
        *(f"++limit_train_batches={STEPS}", "++limit_val_batches=2"),
        *("+enable_progress_bar=false", "+enable_model_summary=false"),
    ]


class Witness(HydraCallback):
    """In the program of a host: each process writes its number, and a line for each step."""

    def __init__(self, folder: str) -> None:
        self.place = Path(folder) / f"rank{os.environ.get('LOCAL_RANK', '0')}"

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.host import METHODS

        cls: Any = METHODS[config.method]
        step = cls.training_step
        self.place.with_suffix(".pid").write_text(str(os.getpid()))

        @functools.wraps(step)
        def training_step(method: Any, batch: Any, batch_idx: int) -> Any:
            loss = step(method, batch, batch_idx)
            with self.place.with_suffix(".steps").open("a") as file:
                file.write(f"{method.trainer.global_step} {loss.item()}\n")
            return loss

        cls.training_step = training_step


def as_in_a_terminal() -> None:
    """In a new process: Ctrl-C ends it, and its stdout is its terminal, if it is one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, where the tests run in the background
    with contextlib.suppress(OSError):
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)


class Program:
    """A program of a host in a session of its own, and what it has written so far."""

    def __init__(
        self, folder: Path, command: Sequence[object], stdout: int | None = None, **env: str
    ) -> None:
        folder.mkdir()
        self.folder = folder
        witness = [
            "+hydra.callbacks.witness._target_=safety_runs.Witness",
            f"+hydra.callbacks.witness.folder={folder}",
        ]
        path = os.pathsep.join([str(Path(__file__).parent), str(PROJECT / "tests")])
        with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command), *witness],
                cwd=folder,
                env=environment(PYTHONPATH=path, **env),
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err if stdout is None else stdout,
                start_new_session=True,
                preexec_fn=as_in_a_terminal,
            )

    def text(self, name: str) -> str:
        """What is in a file of its folder."""
        file = self.folder / name
        return file.read_text() if file.is_file() else ""

    def steps(self, rank: int = 0) -> list[int]:
        """The steps that a rank has begun with a finite loss."""
        lines = self.text(f"rank{rank}.steps").rpartition("\n")[0].splitlines()
        return [int(line.split()[0]) for line in lines if math.isfinite(float(line.split()[1]))]

    @property
    def said(self) -> str:
        """The ends of both of its outputs."""
        return f"{self.text('out.txt')[-3000:]}\n{self.text('err.txt')[-5000:]}"

    def wait_for_step(self, number: int) -> None:
        """Waits until it has taken so many steps."""
        end = time.monotonic() + 300
        while len(self.steps()) < number:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.005)

    def end(self, status: int) -> None:
        """Waits for the end of all its processes; there must be no traceback."""
        assert self.process.wait(timeout=300) == status, self.said
        if status in (0, 129, 130, 143):
            assert "Traceback" not in self.said, self.said
        until = time.monotonic() + 60
        while self.lives():
            assert time.monotonic() < until, f"somebody still lives\n{self.said}"
            time.sleep(0.05)

    def lives(self) -> bool:
        """Whether any process of its group is there."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """Ends what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
