"""MoCo v2+ (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297), symmetric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from solo_hardneg.distributed import gather
from solo_hardneg.limits import check_queue_memory
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.ring import check_divisible
from solo_hardneg.standalone.base import PROJECTOR_SIZES, ProjectedMomentumMethod, check_head
from solo_hardneg.standalone.checks import COUNT, POSITIVE, REQUIRED, Rules, settle

PROJECTOR_RULES: Rules = {
    **PROJECTOR_SIZES,
    "method_kwargs.temperature": (REQUIRED, POSITIVE),
}


def build_projector(features_dim: int, method_kwargs: DictConfig) -> nn.Sequential:
    """The head (B, features_dim) -> (B, proj_output_dim) that the contrastive loss looks at.

    Raises:
        ConfigError: it would not fit into this machine's memory.
    """
    check_head("method_kwargs.proj_hidden_dim", features_dim, *_sizes(method_kwargs))
    return nn.Sequential(
        nn.Linear(features_dim, method_kwargs.proj_hidden_dim),
        nn.ReLU(),
        nn.Linear(method_kwargs.proj_hidden_dim, method_kwargs.proj_output_dim),
    )


def _sizes(method_kwargs: DictConfig) -> tuple[int, int]:
    return method_kwargs.proj_hidden_dim, method_kwargs.proj_output_dim


class MoCoV2Plus(ProjectedMomentumMethod):
    """Each view's queries against the other view's keys, and a queue of earlier keys per view."""

    queue: Tensor  # (2, D, K): unit vectors
    queue_ptr: Tensor  # (1,): where the next keys go

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.temperature: float = cfg.method_kwargs.temperature
        self.queue_size: int = cfg.method_kwargs.queue_size
        check_queue_memory(self.queue_size, cfg.method_kwargs.proj_output_dim)
        queue = torch.randn(2, cfg.method_kwargs.proj_output_dim, self.queue_size)
        self.register_buffer("queue", F.normalize(queue, dim=1))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Fills in the defaults of MoCo, and checks what is there."""
        cfg = super(MoCoV2Plus, MoCoV2Plus).add_and_assert_specific_cfg(cfg)
        settle(cfg, {**PROJECTOR_RULES, "method_kwargs.queue_size": (65536, COUNT)})
        return cfg

    def make_projector(self, method_kwargs: DictConfig) -> nn.Module:
        """The projector of MoCo, which is SimCLR's as well."""
        return build_projector(self.features_dim, method_kwargs)

    def setup(self, stage: str) -> None:
        """Checks, once the number of processes is known, that whole batches fill the queue."""
        if stage == "fit":
            check_divisible(self.queue_size, self.batch_size * self.trainer.world_size)

    def forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, and the queries ``z`` (B, D), unit vectors."""
        out = super().forward(X)
        return {**out, "z": F.normalize(out["z"], dim=-1)}

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, and the keys ``z`` (B, D), unit vectors without gradient."""
        out = super().momentum_forward(X)
        return {**out, "z": F.normalize(out["z"], dim=-1)}

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """Puts keys (2, N, D) in the place of the oldest ones."""
        start = int(self.queue_ptr)
        self.queue[:, :, start : start + keys.shape[1]] = keys.transpose(1, 2)
        self.queue_ptr[0] = (start + keys.shape[1]) % self.queue_size

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """The contrastive loss of both views, and the loss of the classifier."""
        out = super().training_step(batch, batch_idx)
        q1, q2 = out["z"]
        k1, k2 = out["momentum_z"]
        queue = self.queue.clone()  # the backward pass needs it as it is now
        nce_loss = (
            mocov2plus_loss_func(q1, k2, queue[1], self.temperature)
            + mocov2plus_loss_func(q2, k1, queue[0], self.temperature)
        ) / 2
        self._dequeue_and_enqueue(torch.stack((gather(k1), gather(k2))))
        self.log("train_nce_loss", nce_loss, on_epoch=True, sync_dist=True, batch_size=len(q1))
        return nce_loss + out["loss"]
