"""How often a training step makes the CPU wait for the device, ours and the host's.

Steps as Lightning runs them, on batches of noise. On a GPU the profiler counts the calls of the
driver that wait, and PyTorch's own warnings say where they come from. On a CPU nothing waits;
there the operators are counted that would.
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
from benchmarks.recorder import Noise
from benchmarks.worker import Report

WARM_UP = 2  # steps: compilation, first allocations
_BOTH = "method_kwargs.symmetric=true"
# (method, what differs from its config); the first of a family is the host's.
FAMILIES: dict[str, list[tuple[str, list[str]]]] = {
    "moco": [
        ("mocov2plus", []),
        ("mocov2_banded", ["negatives=all", _BOTH]),
        ("mocov2_banded", ["negatives=hardest_5", _BOTH]),
        ("mocov2_banded", ["negatives=drop_hardest_0.1_same_class", _BOTH]),
        ("mocov2_banded", ["negatives=retain_hard", _BOTH]),
        ("mocov2_sscl", [_BOTH]),
    ],
    "simclr": [
        ("simclr", []),
        ("simclr_banded", ["negatives=all"]),
        ("simclr_banded", ["negatives=hardest_10"]),
        ("simclr_sscl", []),
    ],
}
# Column → the names of profiled events that it counts.
_DRIVER = {
    "stream_syncs": ("cudaStreamSynchronize",),
    "event_syncs": ("cudaEventSynchronize",),
    "device_syncs": ("cudaDeviceSynchronize",),  # with the profiler's own
    "copies_to_host": ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)"),
}
_OPERATORS = {
    "scalars": ("aten::_local_scalar_dense",),
    "nonzeros": ("aten::nonzero",),
    "uniques": ("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
}


class WaitCounter(Callback):
    """Profiles some steps after the first ones.

    Attributes:
        counts: of the events, over all profiled steps.
        places: file and line of each wait that PyTorch warned of, over all profiled steps.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.counts, self.places = steps, Counter[str](), Counter[str]()
        self._profile: Any = None
        self._caught: Any = None
        self._warned: list[warnings.WarningMessage] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Fills the queue, so that steps are those of a run under way."""
        models.fill_queue(module)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts once the first steps are done."""
        if batch_idx != WARM_UP:
            return
        kinds = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        self._caught = warnings.catch_warnings(record=True)
        self._warned = self._caught.__enter__()
        warnings.simplefilter("always")
        self._profile = profile(activities=kinds)
        self._profile.start()

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        """Stops after as many steps as were asked for."""
        if rest[-1] == WARM_UP + self.steps - 1:
            self._stop()

    def on_exception(self, *_: Any) -> None:
        """Leaves nothing switched on for the methods to come."""
        if self._profile is not None:
            self._stop()

    def _stop(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        stopped, self._profile = self._profile, None
        stopped.stop()
        self.counts.update(event.name for event in stopped.events())
        for warning in self._warned:
            if "synchroniz" in str(warning.message):
                file = Path(warning.filename)
                self.places[f"{file.parent.name}/{file.name}:{warning.lineno}"] += 1


def count_waits(model: LightningModule, batch: int, pixels: int, steps: int) -> WaitCounter:
    """Runs a few steps of a method in a trainer, and counts."""
    counter, number = WaitCounter(steps), WARM_UP + steps
    noise = Noise(batch * number, pixels, models.CLASSES)
    gpu = torch.cuda.is_available()
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=number,
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="bf16-mixed",
        callbacks=[counter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
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
    """One row for each method: counts per step, and how many waits it has beside the host's."""
    of_host: float | None = None  # the first entry's; unknown if that fails
    gpu = torch.cuda.is_available()
    for place, (method, overrides) in enumerate(family):
        what = {"method": method, "settings": " ".join(overrides)}
        with report.trying(**what):
            cfg = models.config(method, batch, queue, "resnet18", "max_epochs=1", *overrides)
            counter = count_waits(models.build(cfg), batch, pixels, steps)
            columns = {
                name: round(sum(counter.counts[event] for event in events) / steps, 2)
                for name, events in {**_DRIVER, **_OPERATORS}.items()
            }
            counted = ("stream_syncs", "event_syncs") if gpu else tuple(_OPERATORS)
            waits = round(sum(columns[name] for name in counted), 2)
            of_host = waits if place == 0 else of_host
            most = counter.places.most_common(20)
            places = [f"{line} {number / steps:g}" for line, number in most]
            report.row(
                **what,
                waits=waits,
                beside_host="" if of_host is None else round(waits - of_host, 2),
                **columns,
                places="; ".join(places),
                **{"N": batch, "K": queue if method.startswith("moco") else 2 * batch - 2},
                **{"pixels": pixels, "steps": steps},
            )
