"""Linear evaluation: a linear classifier on the features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from solo_hardneg.models.backbones import check_output
from solo_hardneg.standalone.training import TrainedModule, class_metrics


class LinearModel(TrainedModule):
    """Trains ``classifier`` on ``backbone``, which stays frozen, batch statistics included.

    Args:
        backbone: Maps images (B, 3, H, W) to features (B, D).
        cfg: Config of linear evaluation.
        features_dim: D; by default the backbone's own attribute.
    """

    def __init__(
        self, backbone: nn.Module, cfg: DictConfig, features_dim: int | None = None
    ) -> None:
        super().__init__()
        cfg = self.add_and_assert_specific_cfg(cfg)
        self.read_settings(cfg)
        self.backbone = backbone.requires_grad_(False)
        dim = features_dim or getattr(backbone, "inplanes", None) or backbone.num_features
        self.classifier = nn.Linear(dim, cfg.data.num_classes)  # type: ignore[arg-type]

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """Parameter group of the classifier."""
        return [{"name": "classifier", "params": self.classifier.parameters()}]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """Images (B, 3, H, W), or features (B, D), to ``feats`` (B, D) and ``logits`` (B, C)."""
        with torch.no_grad():
            feats = X if X.ndim == 2 else self.backbone(self.as_input(X))
        return {"logits": self.classifier(feats), "feats": feats}

    def _step(self, part: str, batch: Sequence[Tensor]) -> Tensor:
        X, targets = batch
        metrics = class_metrics(self(X)["logits"], targets)
        self.log_epoch({f"{part}_{key}": value for key, value in metrics.items()}, targets)
        return metrics["loss"]

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Loss of the classifier on a batch ``[X, targets]``."""
        self.backbone.eval()  # Lightning puts the whole module into training mode
        return self._step("train", batch)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Logs ``val_loss``, ``val_acc1`` and ``val_acc5``."""
        return self._step("val", batch)


@torch.no_grad()
def encode(
    backbone: nn.Module, loader: DataLoader, device: torch.device
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features (N, D) and targets (N,) of all images of a loader.

    Raises:
        ConfigError: The backbone can't take images of their size.
    """
    backbone = backbone.to(device).eval()
    check_output(backbone, next(iter(loader))[0].to(device)[:1], None, "the pretrained run's")
    rows = [(backbone(X.to(device)).float().cpu().numpy(), y.numpy()) for X, y in loader]
    features, targets = zip(*rows, strict=True)
    return np.concatenate(features), np.concatenate(targets)
