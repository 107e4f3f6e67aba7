"""Overrides for small runs, and a callback that records them and sends signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from solo_hardneg.safety.signals import StopOnSignal

STEPS = 4  # per epoch


class Watch(Callback):
    """Records the steps, and signals its own process when ``hook`` is called at ``step``.

    Attributes:
        steps: ``global_step`` after each trained step.
        losses: Loss of each step.
        handler, next_handler: Handler of the signal before and after it was sent.
        ended_by: :attr:`StopOnSignal.ended_by` of the run.
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
        (stop,) = [c for c in trainer.callbacks if isinstance(c, StopOnSignal)]
        self.ended_by = stop.ended_by


def small(method: str, folder: Path, epochs: int = 3) -> list[str]:
    """Overrides for a run on the digits with :data:`STEPS` steps per epoch."""
    kwargs = ["method_kwargs.queue_size=64"] if method.startswith("moco") else []
    if method != "linear":
        kwargs += ["method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4"]
    return [
        *("data=digits", "optimizer.batch_size=16", f"max_epochs={epochs}"),
        *("scheduler.warmup_epochs=0", "accelerator=cpu", f"checkpoint.dir={folder}"),
        *kwargs,
        *(f"++limit_train_batches={STEPS}", "++limit_val_batches=2"),
        *("+enable_progress_bar=false", "+enable_model_summary=false"),
    ]
