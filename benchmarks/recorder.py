"""What recording costs: steps that are recorded against steps that are not, in one run.

    python -m benchmarks.recorder --method mocov2_banded --image 32

Prints one row as CSV. ``share`` is what recording adds to training at the default rate, every
hundredth step: (median recorded step - median other step) / (100 · median other step).
"""

from __future__ import annotations

import csv
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from hydra import compose, initialize_config_module
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

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
        if hasattr(module, "queue"):
            random = torch.randn_like(module.queue)
            module.queue.copy_(torch.nn.functional.normalize(random, dim=1))
        if hasattr(module, "queue_filled"):
            length = module.queue.shape[2]
            module.queue_filled[0] = length
            module.queue_labels.copy_(torch.arange(length) % module.num_classes)
            module.queue_indexes.copy_(torch.arange(length))

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.recorded = trainer.global_step % EVERY == 0
        self.start = _now()


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
        self.clock.seconds[self.clock.recorded].append(_now() - self.clock.start)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(
    method: Annotated[str, typer.Option(help="a config's name")] = "mocov2_banded",
    queue: Annotated[int, typer.Option(help="K")] = 65536,
    batch: Annotated[int, typer.Option(help="N")] = 256,
    image: Annotated[int, typer.Option(help="pixels of a side")] = 32,
    steps: Annotated[int, typer.Option(help="how many")] = 12,
    backbone: Annotated[str, typer.Option()] = "resnet18",
    negatives: Annotated[str, typer.Option(help="preset; of ours only")] = "all",
) -> None:
    """Measure the cost of recording."""
    from solo_hardneg.analysis.recorder import Recorder
    from solo_hardneg.host import METHODS
    from solo_hardneg.methods import OUR_METHODS

    overrides = [
        *("data=cifar100", f"backbone.name={backbone}", f"optimizer.batch_size={batch}"),
        *("hardness.enabled=true", f"hardness.every_n_steps={EVERY}", "max_epochs=1"),
    ]
    if method.startswith("moco"):
        overrides.append(f"method_kwargs.queue_size={queue}")
    if method.endswith(("banded", "sscl")):
        overrides.append(f"negatives={negatives}")
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(method, overrides)
    OmegaConf.set_struct(cfg, False)
    cfg.data.num_classes, cfg.data.num_large_crops, cfg.data.num_small_crops = 100, 2, 0
    cfg.checkpoint.enabled = False
    place = tempfile.TemporaryDirectory()
    cfg.hardness.dir = place.name
    model = {**METHODS, **OUR_METHODS}[method](cfg)
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
    trainer.fit(model, DataLoader(Noise(batch * (steps + 2), image, 100), batch, drop_last=True))
    recorded, other = (statistics.median(clock.seconds[kind][1:]) for kind in (True, False))
    row = {
        "method": method,
        "N": batch,
        "K": queue if method.startswith("moco") else 2 * batch - 2,
        "D": cfg.method_kwargs.proj_output_dim,
        "backbone": backbone,
        "pixels": image,
        "step_s": f"{other:.4f}",
        "recorded_step_s": f"{recorded:.4f}",
        "share_at_every_100": f"{(recorded - other) / (100 * other):.5f}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    writer = csv.DictWriter(sys.stdout, row)
    writer.writeheader()
    writer.writerow(row)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    typer.run(main)
