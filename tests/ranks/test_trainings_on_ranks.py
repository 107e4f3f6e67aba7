"""DDP through Lightning: the ranks together train as one process with the whole batch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gloo_pool import GlooPool
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from rows_of_ranks import draws_by_identity, rows
from torch import Tensor, nn
from torch.utils.data import DataLoader
from waits import WatchStep

from solo_hardneg.errors import HardnegError
from solo_hardneg.host import MoCoV2Plus, SimCLR
from solo_hardneg.methods import MoCoV2Banded, SimCLRBanded
from solo_hardneg.negatives import Kept

BATCH, QUEUE, STEPS = 16, 48, 12  # of all ranks together


@dataclass(frozen=True)
class Training:
    """A run: its method and its negatives."""

    negatives: Mapping[str, Any]
    moco: bool = True
    symmetric: bool = False
    twice: bool = False  # the first rank has an image twice
    backend: str = "dense"


HARDEST = {"keep": {"band": [0.5, 1.0]}}
MIX = {"mix": {"hardest": 5, "pairs": 4}}
WEIGH = {"reweight": {"beta": 1.0}, "debias": {"tau_plus": 0.1}}
RETAIN = {"retain": {"strength": 1.0, "band": [0.75, 1.0]}}
FILL = {"drop": {"band": [0.8, 1.0], "label": "same"}, "fill": {"kind": "older", "reserve": 0.125}}
TRAININGS = {
    "moco": Training({**HARDEST, **MIX, **WEIGH}, symmetric=True),
    "moco retain": Training({**RETAIN, **WEIGH}),
    "moco fill": Training(FILL, backend="chunked"),
    "simclr": Training({"drop": {"label": "same"}, **WEIGH}, moco=False, backend="chunked"),
    "simclr twice": Training({**HARDEST, **MIX, **WEIGH}, moco=False, twice=True),
}
MOCOS = [name for name, training in TRAININGS.items() if training.moco]


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


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
    try:
        fit(model, training, rank, world)
    except HardnegError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------- what a step costs


def one_step(rank: int, world: int, name: str) -> dict[str, list[str]]:
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


def train(rank: int, world: int, name: str) -> dict[str, Any]:
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


def test_the_queue_is_not_broadcast_and_an_epochs_end_sees_one_that_differs(pool: GlooPool) -> None:
    (said,) = set(pool.run(flipped))
    assert said.startswith("Epoch 0: the queue is not the same on all ranks.")
    assert "on rank 1: queue." in said


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_waits_once_and_shares_one_small_report(pool: GlooPool, name: str) -> None:
    """Beside it, it has no collective that the host's own step doesn't have."""
    like = "host's moco" if name in MOCOS else "host's simclr"
    for mine, hosts in zip(pool.run(one_step, name), pool.run(one_step, like), strict=True):
        (wait,) = mine["waits"]
        assert "step_report.py" in wait
        ours, theirs = (Counter(steps["collectives"]) for steps in (mine, hosts))
        gathered = ours.pop("allgather_"), theirs.pop("allgather_")
        # The keys of both views are one, labels and indexes another one; a host has two, and the
        # standalone host's check of the loss.
        assert gathered == (4 if name == "moco retain" else 3, 3)
        assert not ours - theirs
        assert "broadcast_" not in ours


# ---------------------------------------------------------------- training

Trained = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module", params=TRAININGS)
def trained(request: pytest.FixtureRequest, pool: GlooPool) -> Trained:
    """What one process and what each rank found."""
    return train(0, 1, request.param), pool.run(train, request.param)


def test_gradients_and_parameters_are_those_of_one_process(trained: Trained) -> None:
    alone, ranks = trained
    close(torch.stack([found["losses"] for found in ranks]).mean(0), alone["losses"])
    for found in ranks:
        for what in ("first gradient", "last gradient", "parameters"):
            close(found[what], alone[what])
        assert torch.equal(found["parameters"], ranks[0]["parameters"])
    assert alone["last gradient"].abs().max() > 1e-3


def test_queues_are_equal_on_all_ranks_and_those_of_one_process(trained: Trained) -> None:
    alone, first = trained[0]["queue"], trained[1][0]["queue"]
    for found in (rank["queue"] for rank in trained[1]):
        assert found.keys() == alone.keys()
        for buffer, value in found.items():
            assert torch.equal(value, first[buffer]), buffer
            close(value, alone[buffer], 1e-9 if value.is_floating_point() else 0)
    if first:
        assert first["queue_filled"].item() == first["queue"].shape[2]
        assert torch.equal(first["queue_labels"], first["queue_indexes"] % 3)


def test_what_is_logged_has_one_name_and_one_value_on_all_ranks(trained: Trained) -> None:
    alone, ranks = trained
    names = [noted for _, noted in alone["reported"]]
    for found in ranks:
        assert [noted for _, noted in found["reported"]] == names
        close(found["logged"], ranks[0]["logged"], 0)
        close(found["logged"], alone["logged"], 1e-5)  # the trainer averages in float32
    assert {f"negatives/{n}" for noted in names for n in noted} <= ranks[0]["logged"].keys()


@pytest.mark.parametrize("trained", ["simclr twice"], indirect=True)
def test_a_rank_that_has_an_image_twice_logs_what_the_others_log(trained: Trained) -> None:
    counts = [[count for count, _ in found["reported"]] for found in trained[1]]
    assert all(len(step) == 2 for step in counts[0])
    assert all(len(step) == 1 for others in counts[1:] for step in others)
    noted = {tuple(n) for found in trained[1] for _, n in found["reported"]}
    assert noted == {("floored", "mix_short", "synthetic")}
