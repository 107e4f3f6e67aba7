"""BYOL (Grill et al. 2020, arXiv 2006.07733): views predict each other, without negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo_hardneg.standalone.base import PROJECTOR_SIZES, ProjectedMomentumMethod, check_head
from solo_hardneg.standalone.checks import COUNT, REQUIRED, Number, Rules, settle

BYOL_RULES: Rules = {
    **PROJECTOR_SIZES,
    "method_kwargs.pred_hidden_dim": (REQUIRED, COUNT),
    # One image has no batch statistics, which both heads take of vectors.
    "optimizer.batch_size": (REQUIRED, Number(least=2, whole=True)),
}


def build_head(key: str, inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """The form of BYOL's projector and predictor: (B, inputs) -> (B, outputs).

    Raises:
        ConfigError: it would not fit into this machine's memory; ``key`` is the hidden size's.
    """
    check_head(key, inputs, hidden, outputs)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def byol_loss_func(p: Tensor, z: Tensor) -> Tensor:
    """The loss of one direction: the squared distance of unit vectors, averaged (equation 2).

    Args:
        p: (B, D) predictions from one view.
        z: (B, D) the momentum projections of the other; they get no gradient.

    Returns:
        2 - 2 cos(p, z), a scalar in [0, 4].
    """
    return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=1).mean()


class BYOL(ProjectedMomentumMethod):
    """Each view predicts what the momentum network makes of the other."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        width = cfg.method_kwargs.proj_output_dim
        key, hidden = "method_kwargs.pred_hidden_dim", cfg.method_kwargs.pred_hidden_dim
        self.predictor = build_head(key, width, hidden, width)

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Checks the keys of BYOL."""
        cfg = super(BYOL, BYOL).add_and_assert_specific_cfg(cfg)
        settle(cfg, BYOL_RULES)
        return cfg

    def make_projector(self, method_kwargs: DictConfig) -> nn.Module:
        """The projector of BYOL."""
        sizes = method_kwargs.proj_hidden_dim, method_kwargs.proj_output_dim
        return build_head("method_kwargs.proj_hidden_dim", self.features_dim, *sizes)

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parent's groups and the predictor."""
        return [
            *super().learnable_params,
            {"name": "predictor", "params": self.predictor.parameters()},
        ]

    def forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, and the predictions ``p`` (B, D), not normalized."""
        out = super().forward(X)
        return {**out, "p": self.predictor(out["z"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """The loss of both directions, summed, and the loss of the classifier."""
        out = super().training_step(batch, batch_idx)
        p1, p2 = out["p"]
        z1, z2 = out["momentum_z"]
        byol_loss = byol_loss_func(p1, z2) + byol_loss_func(p2, z1)
        # Near 1/sqrt(D) while the images' projections differ, 0 once they have collapsed.
        spread = F.normalize(torch.stack(out["z"]).detach(), dim=2).std(dim=1).mean()
        metrics = {"train_neg_cos_sim": byol_loss, "train_z_std": spread}  # the host's names
        self.log_dict(metrics, on_epoch=True, sync_dist=True, batch_size=len(p1))
        return byol_loss + out["loss"]
