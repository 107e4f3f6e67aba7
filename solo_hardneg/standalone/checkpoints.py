"""Writing a run's folder, and loading a checkpoint's backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import CheckpointError
from solo_hardneg.safety.checkpoint_io import unwritable


class RunFolder(Checkpoint):
    """Writes ``args.json``, and a checkpoint every n epochs and after the last one.

    Args:
        folder: where to write.
        cfg: the parsed config.
        wandb_run_id: what to resume in wandb, if it is in use.
    """

    def __init__(self, folder: Path, cfg: DictConfig, wandb_run_id: str | None) -> None:
        self.folder, self.cfg, self.wandb_run_id = folder, cfg, wandb_run_id
        self.newest: Path | None = None
        self._saved_step = self._epoch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agrees on one folder: each process has made up a name of its own."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the config as the method has filled it in.

        Raises:
            CheckpointError: it can't be written. All ranks raise it.
        """
        all_or_none(lambda: self._write_args() if trainer.is_global_zero else None)

    def _write_args(self) -> None:
        args: Any = OmegaConf.to_container(self.cfg, resolve=True)
        args["wandb_run_id"] = self.wandb_run_id
        text = json.dumps(args, indent=1, default=str)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "args.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(unwritable(self.folder, error)) from error

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes which epoch trains: after the last one Lightning counts one more."""
        self._epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if it is this epoch's turn."""
        if (trainer.current_epoch + 1) % self.cfg.checkpoint.frequency == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last epoch if it hasn't been its turn."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves what there is after this step, unless that is done, and removes the one before.

        All ranks must call it together.
        """
        if trainer.global_step == self._saved_step:
            return
        # Not the host's "-ep=7": Hydra's command line takes a path with "=" only in quotes.
        path = self.folder / f"{self.cfg.name}-{self.folder.name}-ep{self._epoch}.ckpt"
        # Reduces what was logged on all processes; the first one has, for its progress bar, and
        # the others would wait in the barrier of saving while it waits for them.
        _ = trainer.callback_metrics
        trainer.save_checkpoint(path)
        previous, self.newest, self._saved_step = self.newest, path, trainer.global_step
        if previous is None or previous == path or self.cfg.checkpoint.keep_prev:
            return
        if trainer.is_global_zero:
            previous.unlink(missing_ok=True)  # only now that the newer one is on the disk


def load_backbone(backbone: nn.Module, state: dict[str, Tensor], key: str, path: Path) -> None:
    """Loads the ``backbone.*`` entries of a checkpoint's state, all of which must fit.

    Raises:
        CheckpointError: there are none, or they belong to another backbone.
    """
    prefix = "backbone."
    theirs = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    ours = backbone.state_dict()
    if not theirs:
        raise CheckpointError(
            f"{key}={path}: holds no backbone (no key starts with "
            f"'{prefix}'). Take a checkpoint that pretraining wrote."
        )
    wrong = [
        f"{k} is {tuple(theirs[k].shape)}, not {tuple(ours[k].shape)}"
        for k in ours
        if k in theirs and ours[k].shape != theirs[k].shape
    ]
    wrong += [f"{k} is missing" for k in ours if k not in theirs]
    wrong += [f"{k} has no place" for k in theirs if k not in ours]
    if wrong:
        text = f"{key}={path}: its backbone doesn't fit backbone.name and data.dataset of this run"
        raise CheckpointError(
            f"{text}: {'; '.join(wrong[:3])} ({len(wrong)} in all). Set them as "
            "in the pretraining run, whose args.json lies beside the checkpoint."
        )
    backbone.load_state_dict(theirs)
