"""How often a training step makes the CPU wait for the device, in our methods and the host's.

Steps run in Lightning on batches of noise. On a GPU the profiler counts the driver's waiting calls,
and PyTorch's sync warnings give their places. On a CPU the operators that would wait are counted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from benchmarks import models
from benchmarks.precision import training_precision
from benchmarks.worker import Report

WARM_UP = 2  # steps: compilation, first allocations
_SYMMETRIC = "method_kwargs.symmetric=true"
# (method, overrides); the first of a family is the host's.
FAMILIES: dict[str, list[tuple[str, list[str]]]] = {
    "moco": [
        ("mocov2plus", []),
        ("mocov2_banded", ["negatives=all", _SYMMETRIC]),
        ("mocov2_banded", ["negatives=hardest_5", _SYMMETRIC]),
        ("mocov2_banded", ["negatives=drop_hardest_0.1_same_class", _SYMMETRIC]),
        ("mocov2_banded", ["negatives=retain_hard", _SYMMETRIC]),
        ("mocov2_sscl", [_SYMMETRIC]),
    ],
    "simclr": [
        ("simclr", []),
        ("simclr_banded", ["negatives=all"]),
        ("simclr_banded", ["negatives=hardest_10"]),
        ("simclr_sscl", []),
    ],
}
# Column → names of the profiler's events.
_DRIVER = {
    "stream_syncs": ("cudaStreamSynchronize",),
    "event_syncs": ("cudaEventSynchronize",),
    "device_syncs": ("cudaDeviceSynchronize",),  # includes the profiler's own
    "copies_to_host": ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)"),
}
_OPERATORS = {
    "scalars": ("aten::_local_scalar_dense",),
    "nonzeros": ("aten::nonzero",),
    "uniques": ("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
}


class WaitCounter(Callback):
    """Profiles ``steps`` steps after the warm-up.

    Attributes:
        counts: Number of each event, in all profiled steps.
        places: Number of PyTorch's sync warnings by file and line, in all profiled steps.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.counts, self.places = steps, Counter[str](), Counter[str]()
        self._profile: Any = None
        self._catcher: Any = None
        self._warnings: list[warnings.WarningMessage] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        models.fill_queue(module)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx != WARM_UP:
            return
        kinds = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        self._catcher = warnings.catch_warnings(record=True)
        self._warnings = self._catcher.__enter__()
        warnings.simplefilter("always")
        self._profile = profile(activities=kinds)
        self._profile.start()

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if rest[-1] == WARM_UP + self.steps - 1:
            self._stop()

    def on_exception(self, *_: Any) -> None:
        """Switches everything off for the next method."""
        if self._profile is not None:
            self._stop()

    def _stop(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self._catcher.__exit__(None, None, None)
        stopped, self._profile = self._profile, None
        stopped.stop()
        self.counts.update(event.name for event in stopped.events())
        for warning in self._warnings:
            if "synchroniz" in str(warning.message):
                file = Path(warning.filename)
                self.places[f"{file.parent.name}/{file.name}:{warning.lineno}"] += 1


def count_waits(model: LightningModule, batch: int, pixels: int, steps: int) -> WaitCounter:
    """Trains a method for some steps and counts its waits."""
    counter, number = WaitCounter(steps), WARM_UP + steps
    gpu = torch.cuda.is_available()
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=number,
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision=training_precision(),
        callbacks=[counter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    noise = models.Noise(batch * number, pixels)
    trainer.fit(model, DataLoader(noise, batch, drop_last=True, pin_memory=gpu))
    return counter


def run_waits(
    family: list[tuple[str, list[str]]],
    batch: int,
    queue: int,
    pixels: int,
    steps: int,
    report: Report,
) -> None:
    """Reports a row per method: counts per step, and waits beyond the host's.

    Args:
        family: Methods with their overrides, the host's first.
        batch: Images.
        queue: Keys.
        pixels: Side of a view.
        steps: Profiled steps.
        report: Gets the rows.
    """
    baseline: float | None = None  # of the first entry; unknown if that fails
    counted = ("stream_syncs", "event_syncs") if torch.cuda.is_available() else tuple(_OPERATORS)
    for number, (method, overrides) in enumerate(family):
        what = {"method": method, "settings": " ".join(overrides)}
        with report.catch(**what):
            sizes = method, batch, queue, "resnet18"
            cfg = models.compose_config(*sizes, "max_epochs=1", *overrides)
            counter = count_waits(models.build_method(cfg), batch, pixels, steps)
            columns = {
                name: round(sum(counter.counts[event] for event in events) / steps, 2)
                for name, events in {**_DRIVER, **_OPERATORS}.items()
            }
            waits = round(sum(columns[name] for name in counted), 2)
            baseline = waits if number == 0 else baseline
            places = [f"{place} {n / steps:g}" for place, n in counter.places.most_common(20)]
            report.add_row(
                **what,
                waits=waits,
                beside_host="" if baseline is None else round(waits - baseline, 2),
                **columns,
                places="; ".join(places),
                **{"N": batch, "K": queue if method.startswith("moco") else 2 * batch - 2},
                **{"pixels": pixels, "steps": steps},
            )
