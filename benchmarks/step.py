"""A whole training step: ours against the host's MoCo v2+, same everything, in one process.

The host's has the host's loss in any case; see :mod:`benchmarks.hosts`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import models
from benchmarks.hosts import hosts_loss, standalone_with_hosts_loss
from benchmarks.loss import write
from benchmarks.memory import elsewhere, peak
from benchmarks.precision import autocast, label
from benchmarks.provenance import HERE, provenance
from benchmarks.timing import interleaved, summary

HOSTS = "mocov2plus"
OURS = {
    "mocov2_banded, all": ["negatives=all"],
    "mocov2_banded, hardest 5 %": ["negatives=hardest_5"],
    "mocov2_banded, without the hardest 0.1 %": [
        "negatives=drop_hardest_0.1",
        "negatives.fill=null",
    ],
}


def stepper(model: Any, batch: int, pixels: int, precision: str = "32-true") -> Callable[[], None]:
    """One step: forward, backward, optimizer, momentum encoder, queue."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device, memory_format=torch.channels_last).train()  # as both hosts do
    models.fill_queue(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    views = [torch.randn(batch, 3, pixels, pixels, device=device) for _ in range(2)]
    targets = torch.arange(batch, device=device) % models.CLASSES
    indexes = torch.arange(batch, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            loss = model.training_step([indexes, views, targets], 0)
        loss.backward()
        optimizer.step()
        for online, momentum in model.momentum_pairs:
            model.momentum_updater.update(online, momentum)

    return step


def all_steps(
    batch: int,
    queue: int,
    backbone: str,
    pixels: int,
    backend: str,
    precision: str = "32-true",
    data: str = "cifar100",
) -> dict[str, Callable[[], None]]:
    """One step of each method; ``data`` decides the first layers of a ResNet."""
    steps = {}
    for name, overrides in {HOSTS: [], **OURS}.items():
        method = name.partition(",")[0]
        ours = [] if name == HOSTS else ["method_kwargs.symmetric=true", f"backend={backend}"]
        noise = "data.train_path=null", "data.val_path=null"
        cfg = models.config(method, batch, queue, backbone, *overrides, *ours, *noise, data=data)
        torch.manual_seed(0)
        step = stepper(models.build(cfg), batch, pixels, precision)
        steps[name] = _hosts(step) if name == HOSTS else step
    return steps


def _hosts(step: Callable[[], None]) -> Callable[[], None]:
    from solo_hardneg import host

    if host.NAME != "standalone":
        return step

    def with_hosts_loss() -> None:
        with standalone_with_hosts_loss():
            step()

    return with_hosts_loss


def step_peaks(
    batch: int, queue: int, backbone: str, pixels: int, backend: str
) -> dict[str, float]:
    """The peak memory of the third step of each, bytes."""
    found = {}
    for name, step in all_steps(batch, queue, backbone, pixels, backend).items():
        step()
        step()
        found[name] = peak(step)
    return found


def run_step(
    batch: int,
    queue: int,
    backbone: str,
    pixels: int,
    rounds: int,
    backend: str = "auto",
    file: Path | None = HERE / "step.csv",
    precision: str = "32-true",
    data: str = "cifar100",
    until: float = math.inf,
    warm_up: int = 2,
    here: bool | None = None,
) -> pd.DataFrame:
    """Interleaved steps; both directions and two queues, as the host has them.

    No further round starts at ``until``, on the clock of :func:`benchmarks.timing.now`. Peak memory
    is measured in this process on a GPU, or if ``here`` says so.
    """
    from solo_hardneg import host

    warnings.filterwarnings("ignore", message=".*self.trainer.*reference is not registered")
    steps = all_steps(batch, queue, backbone, pixels, backend, precision, data)
    seconds = interleaved(steps, rounds, warm_up, until=until)
    times = summary(seconds, HOSTS)
    if torch.cuda.is_available() if here is None else here:
        memory = {name: peak(step) for name, step in steps.items()}
    else:
        memory = elsewhere(["step-peaks", str(batch), str(queue), backbone, str(pixels), backend])
    whose = "solo-learn" if host.NAME == "solo" else hosts_loss()[0]
    table = pd.DataFrame(
        {
            **{"candidate": name, "host": host.NAME, "N": batch, "K": queue, "backbone": backbone},
            **{"pixels": pixels, "backend": "" if name == HOSTS else backend},
            **{"hosts_loss": whose, "rounds": len(seconds[name]), "dtype": label(precision)},
            **{key: round(value, 4) for key, value in times[name].items()},
            **{"peak_MB": round(memory[name] / 1e6, 1)},
            **{"memory_ratio": round(memory[name] / memory[HOSTS], 4)},
        }
        for name in steps
    ).assign(**provenance())
    if file is not None:
        write(file, table, ["host", "N", "K", "backbone", "pixels", "device", "dtype"])
    return table
