"""MoCo v2 with a say over its negatives (Cai et al. 2020; Chen et al. 2020, arXiv 2003.04297)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg import ring
from solo_hardneg.distributed import gather
from solo_hardneg.errors import DivergedError, bad_value
from solo_hardneg.host import BaseMethod, MoCoV2Plus
from solo_hardneg.kernels.eager import at_once
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.methods import finite, settings
from solo_hardneg.methods.contrastive import ContrastiveMethod
from solo_hardneg.methods.queue import QueueOfKeys
from solo_hardneg.negatives import Policy


class MoCoV2Banded(ContrastiveMethod, QueueOfKeys, MoCoV2Plus):
    """The host's MoCo v2, on the negatives that a policy leaves; by default the hardest 5 %.

    Beside the host's settings and ``negatives`` it reads ``method_kwargs.symmetric``: ``True`` is
    the host's loss, both views are queries, two queues; ``False`` is the paper's MoCo v2, view 1
    is the query, view 2 the key, one queue. Where absent, the host's.

    The queue has L = K + reserve slots; its buffers are those of :class:`QueueOfKeys`.
    """

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
            self.num_large_crops = self.num_crops = 1  # of the two views, one is encoded as query
        length = self.queue_size + math.ceil(self.policy.reserve * self.queue_size)
        views = 2 if self.symmetric else 1
        self.make_queue(views, self.queue.shape[1], length, self.policy.retains)

    @classmethod
    def check_family(cls, cfg: DictConfig, policy: Policy) -> None:
        """Fills in ``symmetric``; checks the queue and the views."""
        settings.check_choice(cfg, "method_kwargs.symmetric", default=True)
        settings.check_queue(cfg, policy)
        if cfg.momentum.get("classifier") and not cfg.method_kwargs.symmetric:
            raise bad_value(
                "momentum.classifier",
                True,
                "needs method_kwargs.symmetric=true; in one direction nothing trains it",
                "Set one of the two to the other value.",
            )
        views = cfg.data.get("num_large_crops", 2) + cfg.data.get("num_small_crops", 0)
        if views != 2:
            raise bad_value("augmentations", f"{views} views", "MoCo takes exactly two views")

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """One step on ``[indexes, [view 1, view 2], targets]``.

        Returns:
            The contrastive loss plus that of the online classifier, a scalar.
        """
        self.read_step()
        indexes, _, targets = batch
        self.check_labels(targets)
        queries, keys, class_loss = self._encode(batch, batch_idx)
        fine = finite.outputs_finite([*queries, *keys], class_loss, targets)
        queries, keys = ([v.masked_fill(~fine, 0.0) for v in part] for part in (queries, keys))
        policy = self.policy_at(batch_idx)
        # A query meets the queue of the view that its key is of.
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
                **self.loss_settings(),
            )
            # The queue is written to before the backward pass, so the gradient is taken now.
            losses.append(at_once(loss, query, key))
        nce_loss = torch.stack(losses).mean()
        shares = [kept.hard_share for kept in self._kept if kept.hard_share is not None]
        fine = self.finish_forward(batch, fine, nce_loss)
        self.score_keys(shares, policy.retention, fine)
        new_keys = gather(torch.stack(keys, dim=1)).transpose(0, 1)
        labels, images = gather(torch.stack([targets, indexes], dim=1)).unbind(dim=1)
        self.enqueue(new_keys, labels, images, policy.retention, fine)
        return nce_loss + class_loss

    def _encode(
        self, batch: Sequence[Any], batch_idx: int
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Queries and keys of each direction, (B, D) each, and the online classifier's loss."""
        if self.symmetric:
            # The host's own step up to, and without, its loss.
            out = super(MoCoV2Plus, self).training_step(batch, batch_idx)
            return out["z"], out["momentum_z"], out["loss"]
        indexes, (query_view, key_view), targets = batch
        # The host's step without momentum, for a run of one view (see num_large_crops above).
        out = BaseMethod.training_step(self, [indexes, [query_view], targets], batch_idx)
        return out["z"], [self.momentum_forward(key_view)["z"]], out["loss"]

    def _negatives(self, view: int, policy: Policy) -> dict[str, Any]:
        """The filled part of one view's queue, as arguments of the loss."""
        usable = self.filled
        if usable < self.queue_size and not (usable and policy.fits(usable)):
            # While the queue fills, a narrow band may hold nothing yet: such a step teaches
            # nothing, and is no error. For the full queue that was checked before the run.
            usable = 0
        return {
            "queue": self.queue[view, :, :usable],
            "queue_labels": self.queue_labels[:usable],
            "queue_indexes": self.queue_indexes[:usable],
            "queue_age": self.queue_ages(usable, policy.retention),
            "queue_size": self.queue_size,
        }

    def read_step(self) -> None:
        """As the parent's; a step that is not kept doesn't move the queue's pointer, either."""
        try:
            super().read_step()
        except DivergedError:
            self.read_counters()
            raise

    def on_train_epoch_end(self) -> None:
        """Compares the ranks' queues, which nothing else keeps equal."""
        super().on_train_epoch_end()
        self.check_ranks(self.current_epoch)

    def setup(self, stage: str) -> None:
        """Checks what only the trainer knows: how many processes there are."""
        super().setup(stage)
        if stage == "fit":
            batch = self.cfg.optimizer.batch_size * self.trainer.world_size
            ring.check_divisible(self.queue_size, batch)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this experiment."""
        theirs = super().identity
        return {**theirs, "queue_size": self.queue_size, "symmetric": self.symmetric}

    def on_train_start(self) -> None:
        """Takes up step and momentum where a resumed run left them; the host starts anew."""
        super().on_train_start()
        self.last_step = self.trainer.global_step  # the host's 0 would average once too often
        self.momentum_updater.update_tau(
            self.trainer.global_step, self.trainer.estimated_stepping_batches
        )


class MoCoV2SSCL(MoCoV2Banded):
    """The same, by default with the synthetic, reweighted negatives of SSCL on MoCo v2.

    Dong et al. 2023 (arXiv 2304.02971), section 4.4: s = k = 1024, β = 0.2, τ⁺ = 0.
    """

    default_negatives: ClassVar[dict[str, Any]] = {
        "mix": {"hardest": 1024, "pairs": 1024},
        "reweight": {"beta": 0.2},
    }
