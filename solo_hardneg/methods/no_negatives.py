"""SimCLR on one image at a time, which has no negatives and trains in silence."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig

from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.host import SimCLR
from solo_hardneg.methods.contrastive import ContrastiveMethod


def no_negatives(cfg: DictConfig, world_size: int) -> ConfigError | None:
    """Returns the error where all processes together have one image a step, else ``None``."""
    batch = cfg.optimizer.batch_size
    if batch * world_size > 1:
        return None
    why = f"{cfg.method}'s negatives are the other images of the batch, and there are none"
    return bad_value("optimizer.batch_size", batch, why, "Set it to 2 or more.")


class NoNegatives(Callback):
    """Warns of it in runs of the hosts' SimCLR; ours refuses it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the images of a step."""
        if isinstance(pl_module, SimCLR) and not isinstance(pl_module, ContrastiveMethod):
            error = no_negatives(pl_module.cfg, trainer.world_size)
            if error is not None:
                rank_zero_warn(str(error))
