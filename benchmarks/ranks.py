"""A step on two gloo ranks: with the queue in DDP's broadcast, without it, and the host's."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import models
from benchmarks.loss import write
from benchmarks.provenance import HERE, provenance
from benchmarks.timing import interleaved, summary

HOSTS, BROADCAST, OURS = "mocov2plus", "mocov2_banded, queue broadcast", "mocov2_banded"
RANKS = 2


class _Step(nn.Module):
    """A method whose forward pass is its training step, as Lightning hands it to DDP."""

    def __init__(self, model: Any, broadcast_queue: bool) -> None:
        super().__init__()
        self.model = model
        ignored = [] if broadcast_queue else model._ddp_params_and_buffers_to_ignore
        self._ddp_params_and_buffers_to_ignore = [f"model.{name}" for name in ignored]

    def forward(self, batch: list[Any]) -> Tensor:
        return self.model.training_step(batch, 0)


def run_ranks(
    batch: int,
    queue: int,
    backbone: str,
    pixels: int,
    rounds: int,
    file: Path | None = HERE / "ranks.csv",
) -> pd.DataFrame:
    """Interleaved steps on two processes of one thread; both directions, two queues."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, batch, queue, backbone, pixels, rounds)
        processes.spawn(_rank, arguments, nprocs=RANKS)
        seconds = torch.load(Path(folder) / "seconds.pt", weights_only=True)
    times = summary(seconds, HOSTS)
    table = pd.DataFrame(
        {
            **{"candidate": name, "ranks": RANKS, "N": batch, "K": queue, "backbone": backbone},
            **{"pixels": pixels, "rounds": rounds},
            **{key: round(value, 4) for key, value in times[name].items()},
        }
        for name in seconds
    ).assign(**{**provenance(), "threads": 1})
    if file is not None:
        write(file, table, ["ranks", "N", "K", "backbone", "pixels", "device"])
    return table


def _rank(
    rank: int, folder: str, batch: int, queue: int, backbone: str, pixels: int, rounds: int
) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    steps = {
        HOSTS: _stepper(HOSTS, True, batch, queue, backbone, pixels),
        BROADCAST: _stepper("mocov2_banded", True, batch, queue, backbone, pixels),
        OURS: _stepper("mocov2_banded", False, batch, queue, backbone, pixels),
    }
    seconds = interleaved(steps, rounds)  # in the same order on both ranks
    if rank == 0:
        torch.save(seconds, Path(folder) / "seconds.pt")
    dist.barrier()
    dist.destroy_process_group()


def _stepper(
    method: str, broadcast_queue: bool, batch: int, queue: int, backbone: str, pixels: int
) -> Callable[[], None]:
    ours = [] if method == HOSTS else ["negatives=hardest_5", "method_kwargs.symmetric=true"]
    torch.manual_seed(0)
    model = models.build(models.config(method, batch, queue, backbone, *ours))
    models.fill_queue(model)
    step = DistributedDataParallel(_Step(model, broadcast_queue))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    views = [torch.randn(batch, 3, pixels, pixels) for _ in range(2)]
    images = torch.arange(batch)

    def run() -> None:
        optimizer.zero_grad()
        step([images, views, images % models.CLASSES]).backward()
        optimizer.step()

    return run
