"""SimCLR with a policy over its negatives (Dong et al. 2023; Cai et al. 2020, appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg.data.dali import has_dummy_indexes
from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.host import BaseMethod, SimCLR
from solo_hardneg.losses import check_no_queue, simclr_loss_func
from solo_hardneg.methods import finite
from solo_hardneg.methods.contrastive import ContrastiveMethod
from solo_hardneg.methods.encoder_chunks import chunk_encoder, read_chunk
from solo_hardneg.negatives import Policy
from solo_hardneg.validate import REQUIRED, Count, apply_rules


class SimCLRBanded(ContrastiveMethod, SimCLR):
    """The host's SimCLR with a policy over its negatives.

    The default is that of Cai et al. 2020 (arXiv 2010.06682, appendix A.2): all negatives in the
    first epoch, then the hardest 5 %; with the latter alone it did not converge.
    """

    default_negatives: ClassVar[dict[str, Any]] = {"keep": {"band": [0.95, 1.0], "from_epoch": 1}}
    known_method_kwargs = ("proj_hidden_dim", "proj_output_dim", "temperature")

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._dummy_indexes = has_dummy_indexes(self.cfg)
        chunk_encoder(self.backbone, read_chunk(self.cfg))

    @classmethod
    def check_family(cls, cfg: DictConfig, policy: Policy) -> None:
        """Refuses verbs that need a queue or leave no negatives."""
        apply_rules(cfg, {"optimizer.batch_size": (REQUIRED, Count)})
        check_no_queue(policy)
        read_chunk(cfg)
        if "image" in policy.config.get("keep", {}):
            raise ConfigError(
                "negatives.keep.image=same: leaves no negatives, because SimCLR's are the views of "
                "other images. Remove it."
            )

    def setup(self, stage: str) -> None:
        """Checks the policy with the negatives of the global batch."""
        super().setup(stage)
        if stage == "fit":
            error = _single_image_error(self.cfg, self.trainer.world_size)
            if error is not None:
                raise error
            images = self.cfg.optimizer.batch_size * self.trainer.world_size
            self.policy.check(self.num_crops * (images - 1))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Returns the contrastive loss plus the online classifier's, a scalar.

        Args:
            batch: ``[indexes (B,), views (B, C, H, W) each, targets (B,)]``.
            batch_idx: Step of the epoch.
        """
        self.check_step()
        indexes, _, targets = batch
        self.check_labels(targets)
        if self._dummy_indexes:
            # DALI's are distinct on one node only; which images they are of doesn't matter here.
            positions = torch.arange(len(indexes), device=indexes.device)
            indexes = positions + self.global_rank * len(indexes)
        out = BaseMethod.training_step(self, batch, batch_idx)
        is_finite = finite.outputs_finite(out["z"], out["loss"], targets)
        policy, images = self.policy_at(batch_idx), indexes.repeat(self.num_crops)
        nce_loss = simclr_loss_func(
            torch.cat(out["z"]).masked_fill(~is_finite, 0.0),
            images,
            self.temperature,
            policy=policy,
            query_labels=targets.repeat(self.num_crops),
            **self.loss_settings(images),
        )
        self.log_step(batch, policy, is_finite, nce_loss)
        return nce_loss + out["loss"]


class SimCLRSSCL(SimCLRBanded):
    """SimCLR, by default with the synthetic, reweighted and debiased negatives of SSCL.

    Source: Dong et al. 2023 (arXiv 2304.02971), Table 2: s = 32, k = 8, β = 1 and, for ten
    classes, τ⁺ = 0.1.
    """

    default_negatives: ClassVar[dict[str, Any]] = {
        "mix": {"hardest": 32, "pairs": 8},
        "reweight": {"beta": 1.0},
        "debias": {"tau_plus": 0.1},
    }


class WarnOfFewNegatives(Callback):
    """Warns if SimCLR accumulates gradients, and if the host's own trains on single images."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the global batch."""
        if not isinstance(pl_module, SimCLR):
            return
        if trainer.accumulate_grad_batches > 1:
            rank_zero_warn(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}: adds no negatives, "
                "because SimCLR's are the other images of one batch. For more of them in the same "
                "memory, raise optimizer.batch_size and set performance.encoder_chunk "
                "(simclr_banded, simclr_sscl)."
            )
        if not isinstance(pl_module, ContrastiveMethod):  # ours refuse it
            error = _single_image_error(pl_module.cfg, trainer.world_size)
            if error is not None:
                rank_zero_warn(str(error))


def _single_image_error(cfg: DictConfig, world_size: int) -> ConfigError | None:
    """The error if the global batch is one image, which has no negatives."""
    batch = cfg.optimizer.batch_size
    if batch * world_size > 1:
        return None
    reason = f"{cfg.method}'s negatives are the other images of the batch, and there are none"
    return bad_value("optimizer.batch_size", batch, reason, "Set it to 2 or more.")
