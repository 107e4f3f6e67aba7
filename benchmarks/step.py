"""A whole training step of our methods against the host's MoCo v2+, in one process.

The host's step uses solo-learn's loss on either host, see :mod:`benchmarks.reference`.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import models
from benchmarks.memory import peak_memory, run_in_fresh_process
from benchmarks.precision import autocast, dtype_label
from benchmarks.provenance import HERE, provenance, update_csv
from benchmarks.reference import reference_in_standalone, reference_loss
from benchmarks.timing import Call, summarize_times, time_interleaved

BASELINE = "mocov2plus"
OURS = {
    "mocov2_banded, all": ["negatives=all"],
    "mocov2_banded, hardest 5 %": ["negatives=hardest_5"],
    "mocov2_banded, without the hardest 0.1 %": [
        "negatives=drop_hardest_0.1",
        "negatives.fill=null",
    ],
}


def make_step(model: Any, batch: int, pixels: int, precision: str = "32-true") -> Call:
    """Returns a step: forward, backward, optimizer, momentum encoder, queue."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device, memory_format=torch.channels_last).train()  # as in both hosts
    models.fill_queue(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    views = [torch.randn(batch, 3, pixels, pixels, device=device) for _ in range(2)]
    indexes = torch.arange(batch, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            loss = model.training_step([indexes, views, indexes % models.CLASSES], 0)
        loss.backward()
        optimizer.step()
        for online, momentum in model.momentum_pairs:
            model.momentum_updater.update(online, momentum)

    return step


def make_steps(
    batch: int,
    queue: int,
    backbone: str,
    pixels: int,
    backend: str,
    precision: str = "32-true",
    data: str = "cifar100",
) -> dict[str, Call]:
    """Returns a step of each method, the host's first; ``data`` decides a ResNet's stem."""
    from solo_hardneg import host

    steps = {}
    for name, overrides in {BASELINE: [], **OURS}.items():
        common = ["data.train_path=null", "data.val_path=null"]
        if name != BASELINE:
            common += ["method_kwargs.symmetric=true", f"backend={backend}"]
        sizes = name.partition(",")[0], batch, queue, backbone
        cfg = models.compose_config(*sizes, *overrides, *common, data=data)
        torch.manual_seed(0)
        steps[name] = make_step(models.build_method(cfg), batch, pixels, precision)
    if host.NAME == "standalone":
        steps[BASELINE] = reference_in_standalone()(steps[BASELINE])
    return steps


def measure_step_peaks(*sizes: Any) -> list[float]:
    """Returns the peak memory of each method's third step, bytes."""
    peaks = []
    for step in make_steps(*sizes).values():
        step()
        step()
        peaks.append(peak_memory(step))
    return peaks


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
    in_process: bool = False,
) -> pd.DataFrame:
    """Compares steps with both directions and two queues, as in solo-learn.

    Args:
        batch: Images.
        queue: Keys in a queue.
        backbone: A timm name.
        pixels: Side of a view.
        rounds: Number of rounds.
        backend: Ours.
        file: CSV to update.
        precision: See :mod:`benchmarks.precision`.
        data: The dataset's config.
        until: Time after which no round starts, see :func:`benchmarks.timing.time_interleaved`.
        warm_up: Rounds that are not timed.
        in_process: Whether to measure memory in this process on a CPU, too.
    """
    from solo_hardneg import host

    warnings.filterwarnings("ignore", message=".*self.trainer.*reference is not registered")
    sizes = batch, queue, backbone, pixels, backend
    steps = make_steps(*sizes, precision, data)
    seconds = time_interleaved(steps, rounds, warm_up, until=until)
    times = summarize_times(seconds, BASELINE)
    if in_process or torch.cuda.is_available():
        peaks = [peak_memory(step) for step in steps.values()]
    else:
        peaks = run_in_fresh_process("step-peaks", *sizes)
    given = {"host": host.NAME, "N": batch, "K": queue, "backbone": backbone, "pixels": pixels}
    table = pd.DataFrame(
        {
            "candidate": name,
            **given,
            "backend": "" if name == BASELINE else backend,
            "hosts_loss": "solo-learn" if host.NAME == "solo" else reference_loss()[0],
            "rounds": len(seconds[name]),
            "dtype": dtype_label(precision),
            **{column: round(value, 4) for column, value in times[name].items()},
            "peak_MB": round(peak / 1e6, 1),
            "memory_ratio": round(peak / peaks[0], 4),
        }
        for name, peak in zip(steps, peaks, strict=True)
    ).assign(**provenance())
    if file is not None:
        update_csv(file, table, ["host", "N", "K", "backbone", "pixels", "device", "dtype"])
    return table
