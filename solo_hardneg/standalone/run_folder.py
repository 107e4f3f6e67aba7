"""Writes a run's folder: its config and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import CheckpointError
from solo_hardneg.files import write_atomically
from solo_hardneg.safety.checkpoint_io import unwritable


class RunFolder(Checkpoint):
    """Writes ``args.json``, and a checkpoint every n epochs and after the last one.

    Args:
        folder: Folder to write to.
        cfg: Parsed config.
        wandb_run_id: Id of the wandb run, if there is one.
    """

    def __init__(self, folder: Path, cfg: DictConfig, wandb_run_id: str | None) -> None:
        self.folder, self.cfg, self.wandb_run_id = folder, cfg, wandb_run_id
        self.newest: Path | None = None
        self._saved_step = self._epoch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes over the first process's folder: each has drawn its own name."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the config, with the defaults of the method.

        Raises:
            CheckpointError: It can't be written. All ranks raise it.
        """
        all_or_none(lambda: self._write_args() if trainer.is_global_zero else None)

    def _write_args(self) -> None:
        args: Any = OmegaConf.to_container(self.cfg, resolve=True)
        args["wandb_run_id"] = self.wandb_run_id
        text = json.dumps(args, indent=1, default=str)
        try:
            write_atomically(self.folder / "args.json", text)
        except OSError as error:
            raise CheckpointError(unwritable(self.folder, error)) from error

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the epoch: after the last one Lightning counts one more."""
        self._epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves every ``checkpoint.frequency`` epochs."""
        if (trainer.current_epoch + 1) % self.cfg.checkpoint.frequency == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last epoch."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves a checkpoint unless this step is saved, and removes the previous one.

        All ranks must call it together.
        """
        if trainer.global_step == self._saved_step:
            return
        # Not solo-learn's "-ep=7": Hydra's command line takes a path with "=" only in quotes.
        path = self.folder / f"{self.cfg.name}-{self.folder.name}-ep{self._epoch}.ckpt"
        # Reduces the logged metrics on all ranks. The progress bar already does so on rank 0,
        # which would wait there while the other ranks wait in the barrier of saving.
        _ = trainer.callback_metrics
        trainer.save_checkpoint(path)
        previous, self.newest, self._saved_step = self.newest, path, trainer.global_step
        if previous is None or previous == path or self.cfg.checkpoint.keep_prev:
            return
        if trainer.is_global_zero:
            previous.unlink(missing_ok=True)  # only now that the newer one is on the disk
