"""The cost of recording: recorded steps against the others of the same run.

``share_at_every_100`` is what recording adds to training at its default rate, every hundredth step:
(median recorded step - median other step) / (100 · median other step).
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from benchmarks import models
from benchmarks.provenance import HERE, provenance, update_csv
from benchmarks.timing import now

EVERY = 3  # steps between recorded ones


class StartClock(Callback):
    """Starts the clock of each step; must come before the recorder.

    Attributes:
        seconds: Durations of recorded steps (True) and others (False).
    """

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        models.fill_queue(module)

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.recorded = trainer.global_step % EVERY == 0
        self.start = now()


class StopClock(Callback):
    """Stops the clock; must come after the recorder."""

    def __init__(self, clock: StartClock, recorder: Any) -> None:
        self.clock, self.recorder = clock, recorder

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Marks the queue of the host as full in the recorder, too."""
        probe = self.recorder._probe
        if hasattr(probe, "filled"):
            probe.filled = len(probe.labels)
            probe.labels.copy_(torch.arange(probe.filled) % module.num_classes)
            probe.indexes.copy_(torch.arange(probe.filled))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.clock.seconds[self.clock.recorded].append(now() - self.clock.start)


def run_recorder(
    method: str, queue: int, batch: int, pixels: int, steps: int, backbone: str, negatives: str
) -> pd.DataFrame:
    """Trains for some steps on noise and returns one row."""
    from solo_hardneg.recording.recorder import Recorder

    policy = [f"negatives={negatives}"] if method.endswith(("banded", "sscl")) else []
    hardness = ["hardness.enabled=true", f"hardness.every_n_steps={EVERY}", "max_epochs=1"]
    cfg = models.compose_config(method, batch, queue, backbone, *hardness, *policy)
    clock, recorder = StartClock(), Recorder()
    trainer = Trainer(
        max_steps=steps + 2,
        callbacks=[clock, recorder, StopClock(clock, recorder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        devices=1,
    )
    noise = models.Noise(batch * (steps + 2), pixels)
    with tempfile.TemporaryDirectory() as cfg.hardness.dir:
        trainer.fit(models.build_method(cfg), DataLoader(noise, batch, drop_last=True))
    recorded, other = (statistics.median(clock.seconds[kind][1:]) for kind in (True, False))
    row = {
        **{"method": method, "N": batch, "D": cfg.method_kwargs.proj_output_dim},
        **{"K": queue if method.startswith("moco") else 2 * batch - 2},
        **{"backbone": backbone, "pixels": pixels},
        **{"step_s": round(other, 4), "recorded_step_s": round(recorded, 4)},
        **{"share_at_every_100": round((recorded - other) / (100 * other), 5)},
    }
    table = pd.DataFrame([row]).assign(**provenance())
    keys = ["method", "N", "K", "backbone", "pixels", "device"]
    update_csv(HERE / "recorder.csv", table, keys)
    return table
