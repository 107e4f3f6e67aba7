"""SimCLR (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig

from solo_hardneg.losses import simclr_loss_func
from solo_hardneg.standalone.base import BaseMethod
from solo_hardneg.validate import REQUIRED, Positive, Rules


class SimCLR(BaseMethod):
    """Contrasts each view with the other view of its image; all other views are negatives."""

    config_rules: ClassVar[Rules] = {"method_kwargs.temperature": (REQUIRED, Positive)}

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.temperature: float = cfg.method_kwargs.temperature

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Contrastive loss of all views plus the classifier's loss."""
        out = super().training_step(batch, batch_idx)
        indexes = batch[0].repeat(self.num_large_crops)
        nce_loss = simclr_loss_func(torch.cat(out["z"]), indexes, self.temperature)
        self.log_epoch({"train_nce_loss": nce_loss}, batch[0])
        return nce_loss + out["loss"]
