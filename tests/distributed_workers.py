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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from distributed_diverging import diverging, said
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from solo_hardneg import candidates, losses
from solo_hardneg.distributed import gather
from solo_hardneg.methods import MoCoV2Banded, SimCLRBanded
from solo_hardneg.negatives import Kept, build, mix

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


# ---------------------------------------------------------------- who has which rows


def rows(rank: int, world: int, images: int, views: int = 2) -> Tensor:
    """A rank's rows of a batch that has all images' first views, then all second ones."""
    per_rank = images // world
    mine = rank * per_rank + torch.arange(per_rank)
    return torch.cat([mine + view * images for view in range(views)])


@contextmanager
def draws_by_identity(identity: Tensor) -> Iterator[None]:
    """Makes ``mix`` draw for each query what belongs to its identity, on whatever rank it is."""

    def uniform(kinds: int, width: int, available: Tensor) -> Tensor:
        asking = identity[: len(available)]  # a policy is tried on a single query, too
        generator = torch.Generator().manual_seed(width)
        return torch.rand(64, kinds, width, generator=generator)[asking].transpose(0, 1)

    def pairs(available: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second, alpha = uniform(3, drawn.shape[2], available)
        count = available[:, None]
        a = (first * count).long()
        return a, (a + 1 + (second * (count - 1)).long()) % count, alpha

    def partners(available: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        first, gamma = uniform(2, drawn.shape[2], available)
        return (first * available[:, None]).long(), gamma / 2

    with (
        mock.patch.object(mix, "draw_pairs", pairs),
        mock.patch.object(mix, "draw_partners", partners),
    ):
        yield


# ---------------------------------------------------------------- SimCLR's loss

IMAGES = 12  # 22 negatives each
MIX = {"mix": {"hardest": 5, "pairs": 4}}
WEIGH = {"reweight": {"beta": 1.0}, "debias": {"tau_plus": 0.1}}
POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "keep hardest": {"keep": {"band": [0.8, 1.0]}},
    "keep easiest": {"keep": {"band": [0.0, 0.8]}},
    "keep band": {"keep": {"band": [0.5, 0.75]}},
    "drop band": {"drop": {"band": [0.9, 1.0]}},
    "drop label": {"drop": {"label": "same"}},
    "drop image": {"drop": {"image": "same"}},
    "keep label": {"keep": {"band": [0.5, 1.0], "label": "different"}},
    "mix pairs": MIX,
    "mix queries": {"mix": {"hardest": 8, "queries": 4}},
    "mix both": {"mix": {"hardest": 8, "pairs": 3, "queries": 2, "detach": False}},
    "reweight": {"reweight": {"beta": 1.0}},
    "debias": {"debias": {"tau_plus": 0.1}},
    "hcl": WEIGH,
    "sscl": {**MIX, **WEIGH},
    "everything": {"keep": {"band": [0.4, 1.0]}, **MIX, **WEIGH},
}
TWICE = {f"{name}, an image twice": POLICIES[name] for name in ("none", "keep hardest", "sscl")}
CASES = {**POLICIES, **TWICE}


def all_detached(tensor: Tensor) -> Tensor:
    """``gather`` without any gradient."""
    return gather(tensor.detach())


def others_detached(tensor: Tensor) -> Tensor:
    """``gather`` with gradient to the rank's own part only."""
    parts = list(gather(tensor.detach()).split(len(tensor)))
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


CUTS = {"all": all_detached, "others": others_detached}


def simclr_loss(
    case: str,
    dtype: torch.dtype,
    rank: int = 0,
    world: int = 1,
    gather_by: Any = gather,
    backend: str = "dense",
) -> dict[str, Tensor]:
    """The loss of a rank's rows and its gradient with respect to them."""
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(IMAGES, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(2 * IMAGES, 6, generator=generator, dtype=torch.float64)
    z = 3 * image.repeat(2, 1) + 2 * noise
    indexes = torch.arange(IMAGES)
    if case in TWICE:  # once on the first rank, once on the last
        indexes[-1] = 0
    mine = rows(rank, world, IMAGES)
    leaf = z[mine].to(dtype).requires_grad_()
    with draws_by_identity(mine), mock.patch.object(candidates, "gather", gather_by):
        loss = losses.simclr_loss_func(
            leaf,
            indexes.repeat(2)[mine],
            0.5,
            policy=build(CASES[case]),
            labels=(torch.arange(IMAGES) % 3).repeat(2)[mine],
            backend=backend,
        )
        loss.backward()
    return {"loss": loss.detach(), "gradient": leaf.grad}


def simclr_losses(rank: int, world: int) -> dict[str, Any]:
    """Of all cases, in both precisions, and with the gradient of ``gather`` cut."""
    found = {}
    for case in CASES:
        for dtype in (torch.float64, torch.float32):
            found[case, str(dtype)] = simclr_loss(case, dtype, rank, world)
        found[case, "chunked"] = simclr_loss(case, torch.float64, rank, world, backend="chunked")
        for cut, cut_gather in CUTS.items():
            found[case, cut] = simclr_loss(case, torch.float64, rank, world, cut_gather)
    return found


# ---------------------------------------------------------------- random mixing


def random_mixing(rank: int, world: int) -> dict[str, Any]:
    """What ranks with equal data and equal seeds draw, and the state that it leaves."""
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    policy = build({"mix": {"hardest": 6, "pairs": 5, "queries": 4}})
    drawn: list[Tensor] = []

    def watching(draw: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def watched(*arguments: Any) -> tuple[Tensor, ...]:
            drawn.extend(made := draw(*arguments))
            return made

        return watched

    found: dict[str, Any] = {}
    with (
        mock.patch.object(mix, "draw_pairs", watching(mix.draw_pairs)),
        mock.patch.object(mix, "draw_partners", watching(mix.draw_partners)),
    ):
        for name, seed in (("first", 5), ("again", 5), ("other", 6)):
            torch.manual_seed(seed)
            drawn.clear()
            indexes = torch.arange(4 * rank, 4 * rank + 4).repeat(2)
            for _ in range(2):
                losses.simclr_loss_func(z, indexes, policy=policy)
            found[name] = torch.cat([d.double() for d in drawn], dim=1)
            found[f"{name} state"] = torch.get_rng_state()
    return found


# ---------------------------------------------------------------- gather


def weights_of_use(rank: int, world: int) -> Tensor:
    """How much a rank makes of each row that it gathers: nobody uses those of rank 0."""
    return (rank + 1.0) * torch.arange(world, dtype=torch.float64).repeat_interleave(2)[:, None]


def gathering(rank: int, world: int) -> dict[str, Any]:
    """Tensors of all kinds, gathered, and the gradients that come back."""
    numbers = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * rank
    leaf = numbers.clone().requires_grad_()
    everybody = gather(leaf)
    (weights_of_use(rank, world) * everybody**2).sum().backward()
    turned = numbers.clone().requires_grad_()
    (gather(turned.T) ** 2).sum().backward()
    with torch.no_grad():
        quiet = gather(leaf)
    return {
        "values": everybody.detach(),
        "gradient": leaf.grad,
        "turned": gather(turned.T).detach(),
        "turned gradient": turned.grad,
        "turned, no gradient": gather(numbers.T),
        "every other column": gather(numbers[:, ::2]),
        "integers": gather(torch.arange(3) + 3 * rank),
        "short integers, turned": gather((numbers > 12).to(torch.uint8).T),
        "truths": gather(numbers[:, 0] > 12),
        "asks for gradient": (everybody.requires_grad, quiet.requires_grad),
    }


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


def fit(model: Any, training: Training, rank: int, world: int) -> Trainer:
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
        "flipped": flipped(rank, world),
        "train": {name: train(name, rank, world) for name in TRAININGS},
    }
