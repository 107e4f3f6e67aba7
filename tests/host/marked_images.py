"""Images whose colour encodes their index and class, and a callback that decodes batches."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.experimental.callback import Callback
from PIL import Image

CLASSES, PER_CLASS = 5, 9
IMAGES = CLASSES * PER_CLASS
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
# Augmentations that keep colours: crops and flips.
PLAIN = [
    *("augmentations.0.color_jitter.prob=0", "augmentations.0.grayscale.prob=0"),
    "augmentations.0.gaussian_blur.prob=0",
]


def dali_is_installed() -> bool:
    """Whether NVIDIA DALI can be imported."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def write_marked(folder: Path) -> Path:
    """Writes images of one colour: red 5·index, green 40·class, in the loaders' order."""
    for index in range(IMAGES):
        label = index // PER_CLASS
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20 + index, 24, 3), (5 * index, 40 * label, 128), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index:03}.png")
    return folder


def read_marks(view: torch.Tensor) -> tuple[list[int], list[int]]:
    """Decodes the indexes and classes of a view (B, 3, H, W)."""
    colours = 255 * (view.float().mean(dim=(2, 3)).cpu() * STD + MEAN)
    assert (colours[:, 2] - 128).abs().max() < 1
    assert view.std(dim=(2, 3)).max() < 0.01
    return (colours[:, 0] / 5).round().int().tolist(), (colours[:, 1] / 40).round().int().tolist()


class Watch(Callback):
    """Writes the indexes, targets and decoded pixels of all batches to one file per rank.

    Use it in solo-learn's program by ``+hydra.callbacks.watch._target_=marked_images.Watch``.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        from solo_hardneg.host import METHODS

        method, file = METHODS[config.method], self.file
        original = getattr(method.training_step, "watched", method.training_step)

        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            indexes, views, targets = batch
            line = {"epoch": self.current_epoch, "indexes": indexes.tolist()}
            line |= {"targets": targets.tolist(), "marks": [read_marks(view) for view in views]}
            with open(f"{file}.{self.global_rank}", "a") as out:
                out.write(json.dumps(line) + "\n")
            return original(self, batch, batch_idx)

        training_step.watched = original  # type: ignore[attr-defined]
        method.training_step = training_step


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Reads the batches that :class:`Watch` wrote."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def check_lines(lines: list[dict[str, Any]]) -> None:
    """Asserts that indexes and labels belong to the images."""
    assert lines
    for line in lines:
        assert line["targets"] == [index // PER_CLASS for index in line["indexes"]]
        for marks in line["marks"]:
            assert marks == [line["indexes"], line["targets"]]
