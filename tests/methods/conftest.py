"""Small versions of our methods: a linear backbone on 8 x 8 images."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from solo_hardneg.host import SimCLR
from solo_hardneg.methods import MoCoV2Banded, MoCoV2SSCL, SimCLRBanded, SimCLRSSCL
from solo_hardneg.methods.contrastive import ContrastiveMethod
from solo_hardneg.negatives import Pool

BATCH, QUEUE, CLASSES, FEATURES = 4, 12, 3, 32
FROM_CONFIG = object()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Builds no large backbones, which :class:`Small` would replace; uses a single thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(
        "solo_hardneg.standalone.base.build_backbone", lambda *_: (nn.Flatten(), FEATURES)
    )
    yield
    torch.set_num_threads(threads)


@functools.cache
def compose_config(method: str, *overrides: str) -> DictConfig:
    queue = [f"method_kwargs.queue_size={QUEUE}"] if method.startswith("moco") else []
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose(
            "mocov2_banded" if queue else "simclr",
            [
                "data=digits",
                f"method={method}",
                f"optimizer.batch_size={BATCH}",
                *queue,
                "method_kwargs.temperature=0.2",
                "method_kwargs.proj_hidden_dim=16",
                "method_kwargs.proj_output_dim=8",
                "optimizer.lr=0.5",
                "scheduler.warmup_epochs=0",
                "max_epochs=4",
                *overrides,
            ],
        )
    OmegaConf.set_struct(cfg, False)
    return cfg


@pytest.fixture
def config() -> Callable[..., DictConfig]:
    """``config("negatives=all", method=..., negatives={...})`` composes a small config.

    ``negatives`` replaces the composed group, which is that of mocov2_banded.
    """

    def make(
        *overrides: str, method: str = "mocov2_banded", negatives: Any = FROM_CONFIG
    ) -> DictConfig:
        cfg = copy.deepcopy(compose_config(method, *overrides))
        if negatives is not FROM_CONFIG:
            cfg.negatives = negatives
        # As the host's parse_cfg does.
        cfg.data.num_classes = CLASSES
        cfg.data.num_large_crops, cfg.data.num_small_crops = 2, 0
        return cfg

    return make


class Images(Dataset):
    """``count`` random images; view 2 is view 1 plus some noise."""

    def __init__(self, count: int = 16, labelled: bool = True):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, 8, 8, generator=generator)
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, list[Tensor], int]:
        image = self.images[index]
        views = [image, image + 0.1 * torch.randn_like(image)]  # from the global generator
        return index, views, index % CLASSES if self.labelled else -1


class Small:
    """A method with a linear backbone that records losses, batches and pools."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        for name in ("backbone", "momentum_backbone"):
            small = nn.Sequential(
                nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, self.features_dim)
            )
            if hasattr(self, name):
                setattr(self, name, small)
        if hasattr(self, "momentum_backbone"):
            self.momentum_backbone.load_state_dict(self.backbone.state_dict())
            self.momentum_backbone.requires_grad_(False)
        self.losses: list[float] = []
        self.batches: list[list[int]] = []
        self.pools: list[Pool] = []
        if isinstance(self, ContrastiveMethod):
            self.observers.append(self.pools.append)

    def fill_queue(self, classes: Sequence[int] = (0, 1, 2) * 4) -> Any:
        """Fills MoCo's queue with random unit keys of these classes and of images 0, 1, 2, …"""
        generator = torch.Generator().manual_seed(3)
        views, dimensions, length = self.queue.shape
        keys = torch.randn(views, length, dimensions, generator=generator)
        numbers = torch.arange(length)
        self.key_queue.enqueue(
            F.normalize(keys, dim=2), torch.tensor(classes)[numbers % len(classes)], numbers
        )
        return self

    @property
    def counts(self) -> list[int]:
        """Number of negatives per query at each step, if equal for all queries."""
        assert all(len(pool.counts.unique()) == 1 for pool in self.pools)
        return [int(pool.counts[0]) for pool in self.pools]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        self.batches.append(batch[0].tolist())
        return loss


class SmallMoCo(Small, MoCoV2Banded): ...


class SmallMoCoSSCL(Small, MoCoV2SSCL): ...


class SmallSimCLR(Small, SimCLRBanded): ...


class SmallSimCLRSSCL(Small, SimCLRSSCL): ...


class SmallHostSimCLR(Small, SimCLR): ...


SMALL = {
    "mocov2_banded": SmallMoCo,
    "mocov2_sscl": SmallMoCoSSCL,
    "simclr_banded": SmallSimCLR,
    "simclr_sscl": SmallSimCLRSSCL,
    "simclr": SmallHostSimCLR,
}


@pytest.fixture
def model(config: Callable[..., DictConfig]) -> Callable[..., Small]:
    """``model("negatives=all", method=..., negatives={...})`` builds a seeded method."""

    def make(*overrides: str, method: str = "mocov2_banded", **changes: Any) -> Small:
        cfg = config(*overrides, method=method, **changes)
        torch.manual_seed(0)
        return SMALL[method](cfg)

    return make


@pytest.fixture
def fit() -> Callable[..., Trainer]:
    """``fit(model, epochs, ckpt_path=...)`` trains on 16 images, 4 steps per epoch."""

    def run(
        model: Small,
        epochs: int = 1,
        ckpt_path: str | None = None,
        callbacks: Any = None,
        **images: Any,
    ) -> Trainer:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        torch.manual_seed(1)
        batch = model.cfg.optimizer.batch_size
        loader = DataLoader(Images(**images), batch_size=batch, shuffle=True, drop_last=True)
        trainer.fit(model, loader, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def batch() -> Callable[..., list[Any]]:
    """``batch(classes=[...])`` makes two views of images 50, 51, …"""

    def make(classes: tuple[int, ...] = (0, 1, 2, 0)) -> list[Any]:
        generator = torch.Generator().manual_seed(4)
        views = [torch.randn(len(classes), 3, 8, 8, generator=generator) for _ in range(2)]
        return [torch.arange(50, 50 + len(classes)), views, torch.tensor(classes)]

    return make
