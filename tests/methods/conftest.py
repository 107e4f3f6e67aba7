"""A MoCo model small enough to look into: a linear backbone on 8 x 8 images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from solo_hardneg.methods import MoCoV2Banded

BATCH, QUEUE, CLASSES = 4, 12, 3


@pytest.fixture
def config() -> Callable[..., DictConfig]:
    """``config("negatives=all", ...)`` composes mocov2_banded at the size of these tests."""

    def make(*overrides: str) -> DictConfig:
        with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            cfg = compose(
                "mocov2_banded",
                [
                    "data=digits",
                    f"optimizer.batch_size={BATCH}",
                    f"method_kwargs.queue_size={QUEUE}",
                    "method_kwargs.proj_hidden_dim=16",
                    "method_kwargs.proj_output_dim=8",
                    "optimizer.lr=0.5",
                    "max_epochs=4",
                    *overrides,
                ],
            )
        OmegaConf.set_struct(cfg, False)
        # What the host's parse_cfg would add.
        cfg.data.num_classes = CLASSES
        cfg.data.num_large_crops, cfg.data.num_small_crops = 2, 0
        return cfg

    return make


class Images(Dataset):
    """``count`` random images; view 2 is a little noisier than view 1."""

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


class SmallMoCo(MoCoV2Banded):
    """Ours, with a backbone that takes no time."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        for name in ("backbone", "momentum_backbone"):
            small = nn.Sequential(
                nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, self.features_dim)
            )
            setattr(self, name, small)
        self.momentum_backbone.load_state_dict(self.backbone.state_dict())
        self.momentum_backbone.requires_grad_(False)
        self.losses: list[float] = []
        self.batches: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        self.batches.append(batch[0].tolist())
        return loss


@pytest.fixture
def model(config: Callable[..., DictConfig]) -> Callable[..., SmallMoCo]:
    """``model("negatives=all", ...)``, seeded."""

    def make(*overrides: str) -> SmallMoCo:
        cfg = config(*overrides)
        torch.manual_seed(0)
        return SmallMoCo(cfg)

    return make


@pytest.fixture
def fit() -> Callable[..., Trainer]:
    """``fit(model, epochs, ckpt_path=...)`` trains on 16 images, 4 steps an epoch."""

    def run(
        model: SmallMoCo, epochs: int = 1, ckpt_path: str | None = None, **images: Any
    ) -> Trainer:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        torch.manual_seed(1)
        loader = DataLoader(Images(**images), batch_size=BATCH, shuffle=True, drop_last=True)
        trainer.fit(model, loader, ckpt_path=ckpt_path)
        return trainer

    return run
