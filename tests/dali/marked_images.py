"""Images whose colour tells which they are, and a callback that reads it from the batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.experimental.callback import Callback
from PIL import Image

CLASSES, PER_CLASS = 5, 9
IMAGES = CLASSES * PER_CLASS
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
# Nothing that changes a colour; crops and flips stay.
PLAIN = [
    *("augmentations.0.color_jitter.prob=0", "augmentations.0.grayscale.prob=0"),
    "augmentations.0.gaussian_blur.prob=0",
]


def write_marked(folder: Path) -> Path:
    """Image i, of one colour, has red 5·i and green 40·class; as a loader sorts them."""
    for index in range(IMAGES):
        label = index // PER_CLASS
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20 + index, 24, 3), (5 * index, 40 * label, 128), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index:03}.png")
    return folder


def read_marks(view: torch.Tensor) -> tuple[list[int], list[int]]:
    """The indexes and classes that the colours of a view (B, 3, H, W) tell."""
    colours = 255 * (view.float().mean(dim=(2, 3)).cpu() * STD + MEAN)
    assert (colours[:, 2] - 128).abs().max() < 1
    assert view.std(dim=(2, 3)).max() < 0.01
    return (colours[:, 0] / 5).round().int().tolist(), (colours[:, 1] / 40).round().int().tolist()


class Watch(Callback):
    """In a host's program: writes down what the batches hold, and what their pixels tell.

    (``+hydra.callbacks.watch._target_=marked_images.Watch``); one file per rank.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.host import METHODS

        method, file = METHODS[config.method], self.file
        theirs = getattr(method.training_step, "watched", method.training_step)

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            indexes, views, targets = batch
            line = {"epoch": self.current_epoch, "indexes": indexes.tolist()}
            line |= {"targets": targets.tolist(), "marks": [read_marks(view) for view in views]}
            with open(f"{file}.{self.global_rank}", "a") as out:
                out.write(json.dumps(line) + "\n")
            return theirs(self, batch, batch_idx)

        training_step.watched = theirs  # type: ignore[attr-defined]
        method.training_step = training_step


def read_lines(file: Path) -> list[dict[str, Any]]:
    """What a callback wrote down, a batch each."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def check_lines(lines: list[dict[str, Any]]) -> None:
    """Indexes and labels belong to the images."""
    assert lines
    for line in lines:
        assert line["targets"] == [index // PER_CLASS for index in line["indexes"]]
        for marks in line["marks"]:
            assert marks == [line["indexes"], line["targets"]]
