"""A Hydra callback in solo-learn's program that logs its method's batches and image reads.

Used as ``+hydra.callbacks.batches._target_=watching_batches.Batches``.
"""

from __future__ import annotations

import json
import os
from typing import Any
from unittest.mock import patch

from hydra.experimental.callback import Callback


class Batches(Callback):
    """Appends a line to ``file`` per training step, and per image that is read."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.patches: list[Any] = []

    def write(self, line: dict[str, Any]) -> None:
        with open(self.file, "a") as file:
            file.write(json.dumps(line) + "\n")

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo.methods.base import BaseMethod

        from solo_hardneg.data import images

        step, read, process = BaseMethod.training_step, images.open_rgb, os.getpid()

        def training_step(module: Any, batch: Any, batch_idx: int) -> Any:
            indexes, views, targets = batch
            place = {"epoch": module.trainer.current_epoch, "batch": batch_idx}
            means = [view.mean(dim=(1, 2, 3)).tolist() for view in views]
            shapes = [list(view.shape) for view in views]
            labels = {"indexes": indexes.tolist(), "targets": targets.tolist()}
            self.write({**place, **labels, "means": means, "shapes": shapes})
            return step(module, batch, batch_idx)

        def open_rgb(path: str) -> Any:
            self.write({"read": str(path), "by_worker": os.getpid() != process})
            return read(path)

        self.patches = [
            patch.object(BaseMethod, "training_step", training_step),
            patch.object(images, "open_rgb", open_rgb),
        ]
        for each in self.patches:
            each.start()

    def on_job_end(self, config: Any, **kwargs: Any) -> None:
        for each in self.patches:
            each.stop()
