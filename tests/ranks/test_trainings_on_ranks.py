"""DDP through Lightning: several ranks train as one process with the whole batch."""

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
from solo_hardneg.negatives import LossStats

BATCH, QUEUE, STEPS = 16, 48, 12  # of all ranks together


@dataclass(frozen=True)
class Training:
    """A training run: method, negatives and backend."""

    negatives: Mapping[str, Any]
    moco: bool = True
    symmetric: bool = False
    repeated: bool = False  # rank 0 has one image twice
    backend: str = "dense"
    images: int = BATCH * STEPS


HARDEST = {"keep": {"band": [0.5, 1.0]}}
MIX = {"mix": {"hardest": 5, "pairs": 4}}
REWEIGHT = {"reweight": {"beta": 1.0}, "debias": {"tau_plus": 0.1}}
LEARNED = {"drop": {"above": "learned", "share": 0.3, "rate": 0.4}}
RETAIN = {"retain": {"strength": 1.0, "band": [0.75, 1.0]}}
FILL = {"drop": {"band": [0.8, 1.0], "label": "same"}, "fill": {"kind": "older", "reserve": 0.125}}
TRAININGS = {
    "moco": Training({**HARDEST, **MIX, **REWEIGHT}, symmetric=True),
    "moco retain": Training({**RETAIN, **REWEIGHT}),
    "moco fill": Training(FILL, backend="chunked"),
    "moco thresholds": Training(LEARNED, symmetric=True, images=2 * BATCH),
    "simclr thresholds": Training(LEARNED, moco=False, backend="chunked", images=BATCH),
    "simclr": Training({"drop": {"label": "same"}, **REWEIGHT}, moco=False, backend="chunked"),
    "simclr repeated": Training({**HARDEST, **MIX, **REWEIGHT}, moco=False, repeated=True),
}
MOCOS = [name for name, training in TRAININGS.items() if training.moco]


def assert_close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class _Recorded:
    """Gives a method a linear backbone, and records what the tests compare."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)  # type: ignore[call-arg]
        self.losses: list[float] = []
        self.gradients: list[Tensor] = []
        self.reported: list[tuple[list[int], list[str]]] = []
        for name in {"backbone", "momentum_backbone"} & set(dict(self.named_children())):
            torch.manual_seed(1)
            layers = nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, self.features_dim)
            setattr(self, name, nn.Sequential(*layers).requires_grad_(name == "backbone"))

    def collect_stats(self, stats: LossStats) -> None:
        self.reported.append((sorted(set(stats.counts.tolist())), sorted(stats.notes)))
        super().collect_stats(stats)  # type: ignore[misc]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)  # type: ignore[misc]
        self.losses.append(loss.item())
        return loss

    def on_after_backward(self) -> None:
        super().on_after_backward()  # type: ignore[misc]
        trained = [p for p in self.parameters() if p.requires_grad]
        self.gradients.append(torch.cat([p.grad.flatten() for p in trained]))


class SmallMoCo(_Recorded, MoCoV2Banded):
    """MoCo on a linear backbone."""


class SmallSimCLR(_Recorded, SimCLRBanded):
    """SimCLR on a linear backbone."""


def config(training: Training, batch_size: int) -> DictConfig:
    """A minimal config."""
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
    """A rank's part of each step's batch."""
    generator = torch.Generator().manual_seed(2)
    own = rows(rank, world, BATCH, views=1)
    parts: list[list[Any]] = []
    for step in range(STEPS if training.moco else 3):
        image, noise = torch.randn(2, BATCH, 3, 8, 8, generator=generator)
        indexes = (BATCH * step + torch.arange(BATCH)) % training.images
        if training.repeated:
            indexes[1] = indexes[0]
        views = [image[own], (image + 0.5 * noise)[own]]
        parts.append([indexes[own], views, indexes[own] % 3])
    return parts


class Loader(DataLoader):
    """Loads whole batches; ``files`` are the images, as in DALI's loaders."""

    files = range(BATCH * STEPS)


class CorruptedMoCo(SmallMoCo):
    """MoCo whose queue changes on rank 1 only, in the middle of an epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_rank == 1 and batch_idx == STEPS - 1:
            self.queue[0, 0, 0] += 1e-3
        return super().training_step(batch, batch_idx)


class HostMoCo(_Recorded, MoCoV2Plus):
    """The host's MoCo on a linear backbone."""


class HostSimCLR(_Recorded, SimCLR):
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
        trainer.fit(model, Loader(batches(training, rank, world), batch_size=None))
    assert trainer.world_size == world
    return trainer


def corrupted_queue_error(rank: int, world: int) -> str:
    """The error on each rank if rank 1's queue differs; DDP would have overwritten it."""
    training = TRAININGS["moco"]
    torch.manual_seed(0)
    model = CorruptedMoCo(config(training, BATCH // world))
    try:
        fit(model, training, rank, world)
    except HardnegError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------- cost of a step


def one_step(rank: int, world: int, name: str) -> dict[str, list[str]]:
    """Waits and collectives of one step, of our method or of a host's baseline."""
    baseline = {"host's moco": ("moco", HostMoCo), "host's simclr": ("simclr", HostSimCLR)}
    like, kind = baseline.get(name, (name, None))
    training = TRAININGS[like]
    watcher = WatchStep(5 if training.moco else 2)  # the queue is full then
    model = (kind or (SmallMoCo if training.moco else SmallSimCLR))(
        config(training, BATCH // world)
    )
    fit(model, training, rank, world, [watcher])
    seen = watcher.seen
    return {
        "waits": [str(wait) for wait in seen.waits],
        "collectives": [collective.what for collective in seen.collectives],
    }


def train(rank: int, world: int, name: str) -> dict[str, Any]:
    """Everything on which ranks should agree."""
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
        "buffers": {
            name: value
            for name, value in model.named_buffers()
            if name.startswith(("queue", "threshold"))
        },
        "parameters": torch.cat([p.detach().flatten() for p in model.parameters()]),
    }


def test_queue_is_not_broadcast_and_checked_at_the_epochs_end(pool: GlooPool) -> None:
    (text,) = set(pool.run(corrupted_queue_error))
    assert text.startswith("Epoch 0: the queue differs between ranks.")
    assert "on rank 1: queue." in text


@pytest.mark.parametrize("name", TRAININGS)
def test_step_waits_once_and_adds_one_small_collective(pool: GlooPool, name: str) -> None:
    like = "host's moco" if name in MOCOS else "host's simclr"
    for own, host in zip(pool.run(one_step, name), pool.run(one_step, like), strict=True):
        (wait,) = own["waits"]
        assert "distributed.py" in wait
        ours, hosts = (Counter(step["collectives"]) for step in (own, host))
        gathered = ours.pop("allgather_"), hosts.pop("allgather_")
        # Ours gathers keys, then labels with indexes, then the report, and the scores of retain or
        # thresholds; the host gathers two, and the standalone host's check of the loss.
        assert gathered == (4 if "retain" in name or "thresholds" in name else 3, 3)
        assert not ours - hosts
        assert "broadcast_" not in ours


# ---------------------------------------------------------------- training

Trained = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module", params=TRAININGS)
def trained(request: pytest.FixtureRequest, pool: GlooPool) -> Trained:
    """Results of one process and of each rank."""
    return train(0, 1, request.param), pool.run(train, request.param)


def test_gradients_and_parameters_equal_one_process(trained: Trained) -> None:
    single, ranks = trained
    assert_close(torch.stack([found["losses"] for found in ranks]).mean(0), single["losses"])
    for found in ranks:
        for what in ("first gradient", "last gradient", "parameters"):
            assert_close(found[what], single[what])
        assert torch.equal(found["parameters"], ranks[0]["parameters"])
    assert single["last gradient"].abs().max() > 1e-3


def test_queues_and_thresholds_are_equal_on_all_ranks_and_to_one_process(trained: Trained) -> None:
    single, first = trained[0]["buffers"], trained[1][0]["buffers"]
    for found in (rank["buffers"] for rank in trained[1]):
        assert found.keys() == single.keys()
        for buffer, value in found.items():
            assert torch.equal(value, first[buffer]), buffer
            assert_close(value, single[buffer], 1e-9 if value.is_floating_point() else 0)
    if "thresholds" in first:
        assert first["thresholds"].unique().numel() > 3
        assert first["threshold_moments"][2].max() > 2
    if "queue" in first:
        assert first["queue_filled"].item() == first["queue"].shape[2]
        assert torch.equal(first["queue_labels"], first["queue_indexes"] % 3)


def test_logged_names_and_values_are_equal_on_all_ranks(trained: Trained) -> None:
    single, ranks = trained
    names = [notes for _, notes in single["reported"]]
    for found in ranks:
        assert [notes for _, notes in found["reported"]] == names
        assert_close(found["logged"], ranks[0]["logged"], 0)
        assert_close(found["logged"], single["logged"], 1e-5)  # the trainer averages in float32
    assert {f"negatives/{n}" for notes in names for n in notes} <= ranks[0]["logged"].keys()


@pytest.mark.parametrize("trained", ["simclr repeated"], indirect=True)
def test_rank_with_a_repeated_image_logs_the_same_names(trained: Trained) -> None:
    counts = [[count for count, _ in found["reported"]] for found in trained[1]]
    assert all(len(step) == 2 for step in counts[0])
    assert all(len(step) == 1 for others in counts[1:] for step in others)
    names = {tuple(n) for found in trained[1] for _, n in found["reported"]}
    assert names == {("floored", "mix_short", "synthetic")}
