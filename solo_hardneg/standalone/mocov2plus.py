"""MoCo v2+ (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297), symmetric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg.distributed import gather
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives.queue import check_queue_size
from solo_hardneg.standalone.base import BaseMomentumMethod
from solo_hardneg.validate import REQUIRED, Count, Positive, Rules, check_queue_memory


class MoCoV2Plus(BaseMomentumMethod):
    """Contrasts each view's queries with the other view's keys and a queue of earlier keys."""

    config_rules: ClassVar[Rules] = {
        "method_kwargs.temperature": (REQUIRED, Positive),
        "method_kwargs.queue_size": (65536, Count),
    }

    queue: Tensor  # (2, D, K): unit vectors
    queue_ptr: Tensor  # (1,): position of the next keys

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__(cfg)
        self.temperature: float = cfg.method_kwargs.temperature
        self.queue_size: int = cfg.method_kwargs.queue_size
        check_queue_memory(self.queue_size, cfg.method_kwargs.proj_output_dim)
        queue = torch.randn(2, cfg.method_kwargs.proj_output_dim, self.queue_size)
        self.register_buffer("queue", F.normalize(queue, dim=1))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def setup(self, stage: str) -> None:
        """Raises ConfigError unless whole global batches fill the queue."""
        if stage == "fit":
            check_queue_size(self.queue_size, self.batch_size * self.trainer.world_size)

    def forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, with queries ``z`` (B, D) of unit length."""
        out = super().forward(X)
        return {**out, "z": F.normalize(out["z"], dim=-1)}

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Any]:
        """As the parent's, with keys ``z`` (B, D) of unit length."""
        out = super().momentum_forward(X)
        return {**out, "z": F.normalize(out["z"], dim=-1)}

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest keys of the queue by new ones (2, N, D)."""
        start = int(self.queue_ptr)
        self.queue[:, :, start : start + keys.shape[1]] = keys.transpose(1, 2)
        self.queue_ptr[0] = (start + keys.shape[1]) % self.queue_size

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Contrastive loss of both directions plus the classifier's loss."""
        out = super().training_step(batch, batch_idx)
        q1, q2 = out["z"]
        k1, k2 = out["momentum_z"]
        queue = self.queue.clone()  # the backward pass needs it unchanged
        nce_loss = (
            mocov2plus_loss_func(q1, k2, queue[1], self.temperature)
            + mocov2plus_loss_func(q2, k1, queue[0], self.temperature)
        ) / 2
        self._dequeue_and_enqueue(torch.stack((gather(k1), gather(k2))))
        self.log_epoch({"train_nce_loss": nce_loss}, q1)
        return nce_loss + out["loss"]
