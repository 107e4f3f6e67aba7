"""What recording costs: steps that are recorded against steps that are not, in one run.

``share`` is what recording adds to training at the default rate, every hundredth step: (median
recorded step - median other step) / (100 · median other step).
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, Dataset

from benchmarks import models
from benchmarks.loss import write
from benchmarks.provenance import HERE, provenance
from benchmarks.timing import now

EVERY = 3  # recorded here; 100 by default


class Noise(Dataset):
    """Batches ``[index, [view, view], target]`` of noise, in no time."""

    def __init__(self, images: int, side: int, classes: int) -> None:
        self.views = torch.randn(2, 8, 3, side, side)
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Any:
        return index, [*self.views[:, index % 8]], index % self.classes


class Clock(Callback):
    """The seconds of each step, from before the recorder's first hook to after its last."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """A full queue, without the steps that fill it."""
        models.fill_queue(module)

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.recorded = trainer.global_step % EVERY == 0
        self.start = now()


class LastClock(Callback):
    """Stops the clock: it comes after the recorder."""

    def __init__(self, clock: Clock, recorder: Any) -> None:
        self.clock, self.recorder = clock, recorder

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """The host's queue doesn't say whose keys it holds; the recorder takes it for full."""
        tap = self.recorder._tap
        if hasattr(tap, "filled"):
            tap.filled = len(tap.labels)
            tap.labels.copy_(torch.arange(tap.filled) % module.num_classes)
            tap.indexes.copy_(torch.arange(tap.filled))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.clock.seconds[self.clock.recorded].append(now() - self.clock.start)


def run_recorder(
    method: str, queue: int, batch: int, image: int, steps: int, backbone: str, negatives: str
) -> pd.DataFrame:
    """One row."""
    from solo_hardneg.analysis.recorder import Recorder

    ours = [f"negatives={negatives}"] if method.endswith(("banded", "sscl")) else []
    hardness = ["hardness.enabled=true", f"hardness.every_n_steps={EVERY}", "max_epochs=1"]
    cfg = models.config(method, batch, queue, backbone, *hardness, *ours)
    place = tempfile.TemporaryDirectory()
    cfg.hardness.dir = place.name
    clock, recorder = Clock(), Recorder()
    trainer = Trainer(
        max_steps=steps + 2,
        callbacks=[clock, recorder, LastClock(clock, recorder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        devices=1,
    )
    noise = Noise(batch * (steps + 2), image, models.CLASSES)
    trainer.fit(models.build(cfg), DataLoader(noise, batch, drop_last=True))
    recorded, other = (statistics.median(clock.seconds[kind][1:]) for kind in (True, False))
    row = {
        **{"method": method, "N": batch, "D": cfg.method_kwargs.proj_output_dim},
        **{"K": queue if method.startswith("moco") else 2 * batch - 2},
        **{"backbone": backbone, "pixels": image},
        **{"step_s": round(other, 4), "recorded_step_s": round(recorded, 4)},
        **{"share_at_every_100": round((recorded - other) / (100 * other), 5)},
    }
    table = pd.DataFrame([row]).assign(**provenance())
    write(HERE / "recorder.csv", table, ["method", "N", "K", "backbone", "pixels", "device"])
    return table
