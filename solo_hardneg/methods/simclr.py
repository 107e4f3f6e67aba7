"""SimCLR with a say over its negatives (Dong et al. 2023; Cai et al. 2020, appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo_hardneg.dali import has_dummy_indexes
from solo_hardneg.errors import ConfigError
from solo_hardneg.host import BaseMethod, SimCLR
from solo_hardneg.losses import check_no_queue, simclr_loss_func
from solo_hardneg.methods import finite, settings
from solo_hardneg.methods.contrastive import ContrastiveMethod
from solo_hardneg.methods.no_negatives import no_negatives
from solo_hardneg.negatives import Policy


class SimCLRBanded(ContrastiveMethod, SimCLR):
    """The host's SimCLR, on the negatives that a policy leaves.

    By default, as Cai et al. 2020 (arXiv 2010.06682, appendix A.2) had it, these are all of them
    in the first epoch and the hardest 5 % from then on; with the latter alone it did not converge.
    """

    default_negatives: ClassVar[dict[str, Any]] = {"keep": {"band": [0.95, 1.0], "from_epoch": 1}}
    known_method_kwargs = ("proj_hidden_dim", "proj_output_dim", "temperature")

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._dummy_indexes = has_dummy_indexes(self.cfg)

    @classmethod
    def check_family(cls, cfg: DictConfig, policy: Policy) -> None:
        """Refuses what needs a queue, and what leaves no negatives."""
        settings.check_number(cfg, "optimizer.batch_size", int)
        check_no_queue(policy)
        if "image" in policy.config.get("keep", {}):
            raise ConfigError(
                "negatives.keep.image=same: leaves no negatives, because SimCLR's are the views of "
                "other images. Take it out."
            )

    def setup(self, stage: str) -> None:
        """Checks the policy on as many negatives as all processes have together."""
        super().setup(stage)
        if stage == "fit":
            error = no_negatives(self.cfg, self.trainer.world_size)
            if error is not None:
                raise error
            images = self.cfg.optimizer.batch_size * self.trainer.world_size
            self.policy.check(self.num_crops * (images - 1))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """One step on ``[indexes, views, targets]``.

        Returns:
            The contrastive loss plus that of the online classifier, a scalar.
        """
        self.read_step()
        indexes, _, targets = batch
        self.check_labels(targets)
        if self._dummy_indexes:
            # DALI's differ on one node only; which images they are of doesn't matter here.
            places = torch.arange(len(indexes), device=indexes.device)
            indexes = places + self.global_rank * len(indexes)
        out = BaseMethod.training_step(self, batch, batch_idx)
        fine = finite.outputs_finite(out["z"], out["loss"], targets)
        nce_loss = simclr_loss_func(
            torch.cat(out["z"]).masked_fill(~fine, 0.0),
            indexes.repeat(self.num_crops),
            self.temperature,
            policy=self.policy_at(batch_idx),
            query_labels=targets.repeat(self.num_crops),
            **self.loss_settings(),
        )
        self.finish_forward(batch, fine, nce_loss)
        return nce_loss + out["loss"]


class SimCLRSSCL(SimCLRBanded):
    """The same, by default with the synthetic, reweighted and debiased negatives of SSCL.

    Dong et al. 2023 (arXiv 2304.02971), Table 2: s = 32, k = 8, β = 1 and, for ten classes,
    τ⁺ = 0.1.
    """

    default_negatives: ClassVar[dict[str, Any]] = {
        "mix": {"hardest": 32, "pairs": 8},
        "reweight": {"beta": 1.0},
        "debias": {"tau_plus": 0.1},
    }
