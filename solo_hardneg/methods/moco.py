"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297) with a policy over its negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg.distributed import gather
from solo_hardneg.errors import DivergedError, bad_value
from solo_hardneg.host import BaseMethod, MoCoV2Plus
from solo_hardneg.kernels.fused_grad import precompute_grad
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.methods import finite, settings
from solo_hardneg.methods.contrastive import ContrastiveMethod
from solo_hardneg.methods.encoder_chunks import refuse_chunk
from solo_hardneg.negatives import Policy
from solo_hardneg.negatives.queue import KeyQueue, check_queue_size
from solo_hardneg.validate import apply_rules


class MoCoV2Banded(ContrastiveMethod, MoCoV2Plus):
    """The host's MoCo v2 with a policy over its negatives; by default the hardest 5 %.

    ``method_kwargs.symmetric=True``, the default, is the host's loss: both views are queries, each
    with a queue. ``False`` is the paper's MoCo v2: view 1 is the query, view 2 the key, one queue.

    The queue has L = K + reserve slots; see :class:`~solo_hardneg.negatives.queue.KeyQueue`.
    """

    queue: Tensor
    queue_labels: Tensor
    queue_indexes: Tensor
    default_negatives: ClassVar[dict[str, Any]] = {"keep": {"band": [0.95, 1.0]}}
    known_method_kwargs = (
        "proj_hidden_dim",
        "proj_output_dim",
        "queue_size",
        "temperature",
        "symmetric",
    )

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.symmetric: bool = self.cfg.method_kwargs.symmetric
        if not self.symmetric:
            self.num_large_crops = self.num_crops = 1  # only one view is encoded as query
        length = self.queue_size + math.ceil(self.policy.reserve * self.queue_size)
        views = 2 if self.symmetric else 1
        dimensions = self.queue.shape[1]
        # Replaces the host's queue, whose random initial vectors are not keys of images.
        self.key_queue = KeyQueue(self, views, dimensions, length, self.policy.retains)

    @classmethod
    def check_family(cls, cfg: DictConfig, policy: Policy) -> None:
        """Fills in ``symmetric``; checks the queue's size and the number of views."""
        apply_rules(cfg, {"method_kwargs.symmetric": (True, bool)})
        settings.check_queue(cfg, policy)
        refuse_chunk(cfg)
        if cfg.momentum.get("classifier") and not cfg.method_kwargs.symmetric:
            raise bad_value(
                "momentum.classifier",
                True,
                "needs method_kwargs.symmetric=true, because one direction doesn't train it",
                "Change one of the two.",
            )
        views = cfg.data.get("num_large_crops", 2) + cfg.data.get("num_small_crops", 0)
        if views != 2:
            raise bad_value("augmentations", f"{views} views", "MoCo takes exactly two views")

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Returns the contrastive loss plus the online classifier's, a scalar.

        Args:
            batch: ``[indexes (B,), [view 1, view 2] (B, C, H, W), targets (B,)]``.
            batch_idx: Step of the epoch.
        """
        self.check_step()
        indexes, _, targets = batch
        self.check_labels(targets)
        queries, keys, class_loss = self._encode(batch, batch_idx)
        is_finite = finite.outputs_finite([*queries, *keys], class_loss, targets)
        queries, keys = ([v.masked_fill(~is_finite, 0.0) for v in part] for part in (queries, keys))
        policy = self.policy_at(batch_idx)
        # A query is contrasted with the queue of its key's view.
        pairs = zip(queries, reversed(keys), reversed(range(len(keys))), strict=True)
        losses = []
        for query, key, view in pairs:
            loss = partial(
                mocov2plus_loss_func,
                temperature=self.temperature,
                policy=policy,
                query_labels=targets,
                query_indexes=indexes,
                **self._negatives(view, policy),
                **self.loss_settings(indexes),
            )
            # The queue is overwritten before the backward pass, so take the gradient now.
            losses.append(precompute_grad(loss, query, key))
        nce_loss = torch.stack(losses).mean()
        shares = [stats.hard_share for stats in self._stats if stats.hard_share is not None]
        is_finite = self.log_step(batch, policy, is_finite, nce_loss)
        self.key_queue.score(shares, policy.retention, is_finite)
        new_keys = gather(torch.stack(keys, dim=1)).transpose(0, 1)
        labels, images = gather(torch.stack([targets, indexes], dim=1)).unbind(dim=1)
        self.key_queue.enqueue(new_keys, labels, images, policy.retention, is_finite)
        return nce_loss + class_loss

    def _encode(
        self, batch: Sequence[Any], batch_idx: int
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Returns queries and keys of each view, (B, D) each, and the online classifier's loss."""
        if self.symmetric:
            # The host's step without its contrastive loss.
            out = super(MoCoV2Plus, self).training_step(batch, batch_idx)
            return out["z"], out["momentum_z"], out["loss"]
        indexes, (query_view, key_view), targets = batch
        # The host's step without the momentum encoder, on one view (see num_large_crops above).
        out = BaseMethod.training_step(self, [indexes, [query_view], targets], batch_idx)
        return out["z"], [self.momentum_forward(key_view)["z"]], out["loss"]

    def _negatives(self, view: int, policy: Policy) -> dict[str, Any]:
        """Returns the filled part of one view's queue, as arguments of the loss."""
        usable = self.key_queue.filled
        if usable < self.queue_size and not (usable and policy.fits(usable)):
            # While the queue fills, a narrow band may be empty: the step then has no negatives.
            # For the full queue, this was checked before the run.
            usable = 0
        return {
            "queue": self.queue[view, :, :usable],
            "queue_labels": self.queue_labels[:usable],
            "queue_indexes": self.queue_indexes[:usable],
            "queue_age": self.key_queue.ages(usable, policy.retention),
            "queue_size": self.queue_size,
        }

    def check_step(self) -> None:
        """Checks the last step; if it diverged, also resets the queue's pointer."""
        try:
            super().check_step()
        except DivergedError:
            self.key_queue.read_counters()
            raise

    def on_train_epoch_end(self) -> None:
        """Checks that the queue is equal on all ranks; DDP does not synchronize it."""
        super().on_train_epoch_end()
        self.key_queue.check_ranks(self.current_epoch)

    def setup(self, stage: str) -> None:
        """Checks the queue's size against the global batch."""
        super().setup(stage)
        if stage == "fit":
            batch = self.cfg.optimizer.batch_size * self.trainer.world_size
            check_queue_size(self.queue_size, batch)

    @property
    def identity(self) -> dict[str, Any]:
        """Values that must be equal to resume a checkpoint."""
        queue = {"queue_size": self.queue_size, "symmetric": self.symmetric}
        return {**super().identity, **queue}

    def on_train_start(self) -> None:
        """Sets step and momentum of a resumed run; the host would start from step 0."""
        super().on_train_start()
        self.last_step = (
            self.trainer.global_step
        )  # with the host's 0, it would average once too often
        self.momentum_updater.update_tau(
            self.trainer.global_step, self.trainer.estimated_stepping_batches
        )


class MoCoV2SSCL(MoCoV2Banded):
    """MoCo v2, by default with the synthetic and reweighted negatives of SSCL.

    Source: Dong et al. 2023 (arXiv 2304.02971), section 4.4: s = k = 1024, β = 0.2, τ⁺ = 0.
    """

    default_negatives: ClassVar[dict[str, Any]] = {
        "mix": {"hardest": 1024, "pairs": 1024},
        "reweight": {"beta": 0.2},
    }
