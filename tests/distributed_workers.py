"""What the processes of test_distributed.py compute.

Each check runs in a process of a distributed run; with rank 0 of a world of 1 it is what one
process computes that has the whole batch, without any distributed run.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_diverging import diverging, said
from distributed_errors import errors_of_one_rank
from distributed_losses import (
    MIX,
    WEIGH,
    draws_by_identity,
    gathering,
    random_mixing,
    rows,
    simclr_losses,
)
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader
from waits import WatchStep

from solo_hardneg.host import MoCoV2Plus, SimCLR
from solo_hardneg.methods import MoCoV2Banded, SimCLRBanded
from solo_hardneg.negatives import Kept

Work = Callable[[int, int], dict[str, Any]]

# ---------------------------------------------------------------- a process


def run(work: Work, rank: int, world: int, folder: Path, seconds: float) -> None:
    """Runs ``work`` as one rank; its result goes to a file in ``folder``, or its traceback."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")  # started from outside, to Lightning
    with (folder / f"rank{rank}.stacks").open("w") as stacks:
        faulthandler.enable(file=stacks)
        faulthandler.register(signal.SIGUSR1, file=stacks)
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder / 'store'}",
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=10 * seconds),
            )
            torch.save(work(rank, world), folder / f"rank{rank}.pt")
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            (folder / f"rank{rank}.error").write_text(traceback.format_exc())
            raise


def fails(rank: int, world: int) -> dict[str, Any]:
    """Rank 1 fails while the others wait for it."""
    if rank == 1:
        raise ValueError("no such luck")
    return hangs(rank, world)


def hangs(rank: int, world: int) -> dict[str, Any]:
    """Rank 0 waits for the others, who never come."""
    while rank:
        time.sleep(1)
    dist.barrier()
    return {}


# ---------------------------------------------------------------- training

BATCH, QUEUE, STEPS = 16, 48, 12  # of all ranks together


@dataclass(frozen=True)
class Training:
    """A run: its method and its negatives."""

    negatives: Mapping[str, Any]
    moco: bool = True
    symmetric: bool = False
    twice: bool = False  # the first rank has an image twice
    backend: str = "auto"


HARDEST = {"keep": {"band": [0.5, 1.0]}}
RETAIN = {"retain": {"strength": 1.0, "band": [0.75, 1.0]}}
FILL = {"drop": {"band": [0.8, 1.0], "label": "same"}, "fill": {"kind": "older", "reserve": 0.125}}
HOSTS = ("host's moco", "host's simclr")
TRAININGS = {
    "moco": Training(HARDEST, symmetric=True),
    "moco retain": Training({**RETAIN, **WEIGH}),
    "moco fill": Training(FILL),
    "moco mix": Training({**HARDEST, **MIX, **WEIGH}, symmetric=True),
    "simclr": Training(HARDEST, moco=False),
    "simclr label": Training({"drop": {"label": "same"}, **WEIGH}, moco=False),
    "moco chunked": Training({**HARDEST, **MIX, **WEIGH}, symmetric=True, backend="chunked"),
    "simclr chunked": Training({**HARDEST, **WEIGH}, moco=False, backend="chunked"),
    "simclr twice": Training({**HARDEST, **MIX, **WEIGH}, moco=False, twice=True),
}


class _Watched:
    """Gives a method a linear backbone, and keeps what is to be compared."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)  # type: ignore[call-arg]
        self.losses: list[float] = []
        self.gradients: list[Tensor] = []
        self.reported: list[tuple[list[int], list[str]]] = []
        for name in {"backbone", "momentum_backbone"} & set(dict(self.named_children())):
            torch.manual_seed(1)
            layers = nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, self.features_dim)
            setattr(self, name, nn.Sequential(*layers).requires_grad_(name == "backbone"))

    def report(self, kept: Kept) -> None:
        self.reported.append((sorted(set(kept.counts.tolist())), sorted(kept.notes)))
        super().report(kept)  # type: ignore[misc]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)  # type: ignore[misc]
        self.losses.append(loss.item())
        return loss

    def on_after_backward(self) -> None:
        super().on_after_backward()  # type: ignore[misc]
        trained = [p for p in self.parameters() if p.requires_grad]
        self.gradients.append(torch.cat([p.grad.flatten() for p in trained]))


class SmallMoCo(_Watched, MoCoV2Banded):
    """MoCo on a linear backbone."""


class SmallSimCLR(_Watched, SimCLRBanded):
    """SimCLR on a linear backbone."""


def config(training: Training, batch_size: int) -> DictConfig:
    """The smallest config that a host takes."""
    data = {"dataset": "cifar10", "num_classes": 3, "num_large_crops": 2, "num_small_crops": 0}
    rates = {"lr": 0.2, "classifier_lr": 0.2, "weight_decay": 1e-4}
    sizes: dict[str, Any] = {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2}
    if training.moco:
        sizes |= {"queue_size": QUEUE, "symmetric": training.symmetric}
    return OmegaConf.create(
        {
            "method": "mocov2_banded" if training.moco else "simclr_banded",
            "method_kwargs": sizes,
            "negatives": dict(training.negatives),
            "backend": training.backend,
            "momentum": {"base_tau": 0.9, "final_tau": 1.0},
            "backbone": {"name": "resnet18"},
            "data": data,
            "max_epochs": 1,
            "optimizer": {"name": "sgd", "batch_size": batch_size, **rates},
            "scheduler": {"name": "none"},
        }
    )


def batches(training: Training, rank: int, world: int) -> list[list[Any]]:
    """A rank's part of each step's batch; no image comes in two steps."""
    generator = torch.Generator().manual_seed(2)
    mine = rows(rank, world, BATCH, views=1)
    made: list[list[Any]] = []
    for step in range(STEPS if training.moco else 3):
        image, noise = torch.randn(2, BATCH, 3, 8, 8, generator=generator)
        indexes = BATCH * step + torch.arange(BATCH)
        if training.twice:
            indexes[1] = indexes[0]
        views = [image[mine], (image + 0.5 * noise)[mine]]
        made.append([indexes[mine], views, indexes[mine] % 3])
    return made


class FlippedMoCo(SmallMoCo):
    """MoCo whose queue changes on rank 1 alone, in the middle of an epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_rank == 1 and batch_idx == STEPS - 1:
            self.queue[0, 0, 0] += 1e-3
        return super().training_step(batch, batch_idx)


class HostsMoCo(_Watched, MoCoV2Plus):
    """The host's MoCo on a linear backbone."""


class HostsSimCLR(_Watched, SimCLR):
    """The host's SimCLR on a linear backbone."""


def fit(model: Any, training: Training, rank: int, world: int, callbacks: Any = None) -> Trainer:
    """Trains through Lightning in float64."""
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy() if world > 1 else "auto",
        plugins=[LightningEnvironment()] if world > 1 else None,
        precision="64-true",
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    with draws_by_identity(rows(rank, world, BATCH, views=1 if training.moco else 2)):
        trainer.fit(model, DataLoader(batches(training, rank, world), batch_size=None))
    assert trainer.world_size == world
    return trainer


def flipped(rank: int, world: int) -> str:
    """What each rank says of a queue that DDP would have overwritten by rank 0's."""
    training = TRAININGS["moco"]
    torch.manual_seed(0)
    model = FlippedMoCo(config(training, BATCH // world))
    return said(lambda: fit(model, training, rank, world))


def one_step(name: str, rank: int, world: int) -> dict[str, list[str]]:
    """What one step of a run waits for, and its collectives; of a host's baseline, too."""
    baseline = {"host's moco": ("moco", HostsMoCo), "host's simclr": ("simclr", HostsSimCLR)}
    like, kind = baseline.get(name, (name, None))
    training = TRAININGS[like]
    watching = WatchStep(5 if training.moco else 2)  # by then the queue is full
    model = (kind or (SmallMoCo if training.moco else SmallSimCLR))(
        config(training, BATCH // world)
    )
    fit(model, training, rank, world, [watching])
    seen = watching.seen
    return {
        "waits": [str(wait) for wait in seen.waits],
        "collectives": [collective.what for collective in seen.collectives],
    }


def train(name: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Everything that ranks should agree on."""
    training = TRAININGS[name]
    torch.manual_seed(0)
    model = (SmallMoCo if training.moco else SmallSimCLR)(config(training, BATCH // world))
    trainer = fit(model, training, rank, world)
    return {
        "losses": torch.tensor(model.losses, dtype=torch.float64),
        "first gradient": model.gradients[0],
        "last gradient": model.gradients[-1],
        "reported": model.reported,
        "logged": dict(trainer.callback_metrics),
        "queue": {k: v for k, v in model.named_buffers() if k.startswith("queue")},
        "parameters": torch.cat([p.detach().flatten() for p in model.parameters()]),
    }


def everything(rank: int, world: int) -> dict[str, Any]:
    """All of it in one process."""
    return {
        "simclr": simclr_losses(rank, world),
        "mixing": random_mixing(rank, world),
        "gather": gathering(rank, world),
        "diverging": diverging(rank, world),
        "one step": {name: one_step(name, rank, world) for name in (*TRAININGS, *HOSTS)},
        "flipped": flipped(rank, world),
        "errors": errors_of_one_rank(rank, world),
        "train": {name: train(name, rank, world) for name in TRAININGS},
    }
