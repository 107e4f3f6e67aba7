"""BYOL (Grill et al. 2020, arXiv 2006.07733): views predict each other, without negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from pydantic import Field
from torch import Tensor

from solo_hardneg.standalone.base import BaseMomentumMethod, build_mlp
from solo_hardneg.validate import REQUIRED, Count, Rules


def byol_loss_func(p: Tensor, z: Tensor) -> Tensor:
    """Loss of one direction: mean squared distance of unit vectors (equation 2).

    Args:
        p: (B, D) predictions from one view.
        z: (B, D) momentum projections of the other view; they get no gradient.

    Returns:
        Scalar 2 - 2 cos(p, z), in [0, 4].
    """
    return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=1).mean()


class BYOL(BaseMomentumMethod):
    """Predicts the momentum projection of each view from the other view."""

    config_rules: ClassVar[Rules] = {
        "method_kwargs.pred_hidden_dim": (REQUIRED, Count),
        "optimizer.batch_size": (REQUIRED, Annotated[int, Field(ge=2)]),  # for BatchNorm
    }
    projector_norm = True

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.predictor = build_mlp(kwargs, kwargs.proj_output_dim, "pred_hidden_dim", True)

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's parameter groups and the predictor's."""
        predictor = {"name": "predictor", "params": self.predictor.parameters()}
        return [*super().learnable_params, predictor]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, with predictions ``p`` (B, D), not normalized."""
        out = super().forward(X)
        return {**out, "p": self.predictor(out["z"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Sum of both directions' losses, plus the classifier's loss."""
        out = super().training_step(batch, batch_idx)
        p1, p2 = out["p"]
        z1, z2 = out["momentum_z"]
        byol_loss = byol_loss_func(p1, z2) + byol_loss_func(p2, z1)
        # Near 1/sqrt(D) while images have different projections, 0 once they have collapsed.
        spread = F.normalize(torch.stack(out["z"]).detach(), dim=2).std(dim=1).mean()
        self.log_epoch({"train_neg_cos_sim": byol_loss, "train_z_std": spread}, p1)
        return byol_loss + out["loss"]
