"""A step on two gloo ranks, with and without the queue in DDP's broadcast, against the host's."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import models
from benchmarks.provenance import HERE, provenance, update_csv
from benchmarks.timing import Call, summarize_times, time_interleaved

BASELINE, BROADCAST, OURS = "mocov2plus", "mocov2_banded, queue broadcast", "mocov2_banded"
RANKS = 2


class _TrainingStep(nn.Module):
    """A method whose forward pass is its training step, as Lightning passes it to DDP."""

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
    """Compares steps on two processes of one thread, with both directions and two queues."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, batch, queue, backbone, pixels, rounds)
        processes.spawn(_run_rank, arguments, nprocs=RANKS)
        seconds = torch.load(Path(folder) / "seconds.pt", weights_only=True)
    times = summarize_times(seconds, BASELINE)
    given = {"ranks": RANKS, "N": batch, "K": queue, "backbone": backbone, "pixels": pixels}
    table = pd.DataFrame(
        {
            "candidate": name,
            **given,
            "rounds": rounds,
            **{column: round(value, 4) for column, value in times[name].items()},
        }
        for name in seconds
    ).assign(**{**provenance(), "threads": 1})
    if file is not None:
        update_csv(file, table, [*given, "device"])
    return table


def _run_rank(rank: int, folder: str, *sizes: Any) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    *sizes, rounds = sizes
    steps = {
        BASELINE: _make_step("mocov2plus", True, *sizes),
        BROADCAST: _make_step("mocov2_banded", True, *sizes),
        OURS: _make_step("mocov2_banded", False, *sizes),
    }
    seconds = time_interleaved(steps, rounds)  # in the same order on both ranks
    if rank == 0:
        torch.save(seconds, Path(folder) / "seconds.pt")
    dist.barrier()
    dist.destroy_process_group()


def _make_step(
    method: str, broadcast_queue: bool, batch: int, queue: int, backbone: str, pixels: int
) -> Call:
    banded = ["negatives=hardest_5", "method_kwargs.symmetric=true"]
    overrides = [] if method == BASELINE else banded
    torch.manual_seed(0)
    cfg = models.compose_config(method, batch, queue, backbone, *overrides)
    model = models.build_method(cfg)
    models.fill_queue(model)
    training_step = DistributedDataParallel(_TrainingStep(model, broadcast_queue))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    views = [torch.randn(batch, 3, pixels, pixels) for _ in range(2)]
    indexes = torch.arange(batch)

    def step() -> None:
        optimizer.zero_grad()
        training_step([indexes, views, indexes % models.CLASSES]).backward()
        optimizer.step()

    return step
