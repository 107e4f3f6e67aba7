"""SimCLR (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg.losses import simclr_loss_func
from solo_hardneg.standalone.base import BaseMethod
from solo_hardneg.standalone.checks import settle
from solo_hardneg.standalone.mocov2plus import PROJECTOR_RULES, build_projector


class SimCLR(BaseMethod):
    """Each view against the other view of its image; all other views are negatives."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.temperature: float = cfg.method_kwargs.temperature
        self.projector = build_projector(self.features_dim, cfg.method_kwargs)

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Checks the keys of SimCLR."""
        cfg = super(SimCLR, SimCLR).add_and_assert_specific_cfg(cfg)
        settle(cfg, PROJECTOR_RULES)
        return cfg

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's groups and the projector."""
        return [
            *super().learnable_params,
            {"name": "projector", "params": self.projector.parameters()},
        ]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, and the projections ``z`` (B, D), not normalized."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """The contrastive loss of all views, and the loss of the classifier."""
        out = super().training_step(batch, batch_idx)
        indexes = batch[0].repeat(self.num_large_crops)
        nce_loss = simclr_loss_func(torch.cat(out["z"]), indexes, self.temperature)
        size = len(batch[0])
        self.log("train_nce_loss", nce_loss, on_epoch=True, sync_dist=True, batch_size=size)
        return nce_loss + out["loss"]
