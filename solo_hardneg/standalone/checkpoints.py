"""Writing a run's folder, finding a run to resume, and reading checkpoints of either host."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_hardneg.errors import CheckpointError
from solo_hardneg.standalone.checks import read

# What must be equal for a run to be resumed by itself; the host's list.
_SHOULD_MATCH = (
    "name",
    "backbone",
    "method",
    "data.dataset",
    "max_epochs",
    "optimizer.name",
    "optimizer.batch_size",
    "optimizer.lr",
    "optimizer.weight_decay",
    "wandb.project",
    "wandb.entity",
    "pretrained_feature_extractor",
)
_SHOWN = 10  # so many folders a message names


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
        """Writes the config as the method has filled it in."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            args: Any = OmegaConf.to_container(self.cfg, resolve=True)
            args["wandb_run_id"] = self.wandb_run_id
            text = json.dumps(args, indent=1, default=str)
            (self.folder / "args.json").write_text(text)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if it is this epoch's turn."""
        self._epoch = trainer.current_epoch
        if (self._epoch + 1) % self.cfg.checkpoint.frequency == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last epoch if it hasn't been its turn."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        # Not the host's "-ep=7": Hydra's command line takes a path with "=" only in quotes.
        path = self.folder / f"{self.cfg.name}-{self.folder.name}-ep{self._epoch}.ckpt"
        # Reduces what was logged on all processes; the first one has, for its progress bar, and
        # the others would wait in the barrier of saving while it waits for them.
        _ = trainer.callback_metrics
        partial = path.with_suffix(".part")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(path)  # a run that is killed while it saves leaves no half checkpoint
        previous, self.newest, self._saved_step = self.newest, path, trainer.global_step
        if previous is None or previous == path or self.cfg.checkpoint.keep_prev:
            return
        if trainer.is_global_zero:
            previous.unlink(missing_ok=True)  # only now that the newer one is on the disk


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in a run's folder that was written last."""
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)


def find_checkpoint(folder: Path, cfg: DictConfig) -> tuple[Path | None, str | None]:
    """The newest checkpoint under ``folder`` of a run like this one, and its wandb id.

    Runs older than ``auto_resume.max_hours`` and folders without readable ``args.json`` don't
    count.
    """

    def plain(config: DictConfig, key: str) -> Any:
        value = read(config, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    oldest = time.time() - cfg.auto_resume.max_hours * 3600
    found: list[tuple[float, Path, str | None]] = []
    for args in folder.glob("*/args.json"):
        newest = newest_checkpoint(args.parent)
        if newest is None or newest.stat().st_mtime < oldest:
            continue
        try:
            saved = OmegaConf.create(json.loads(args.read_text()))
        except ValueError:  # the run was killed while it wrote
            continue
        if all(plain(saved, key) == plain(cfg, key) for key in _SHOULD_MATCH):
            found.append((newest.stat().st_mtime, newest, saved.get("wandb_run_id")))
    return max(found, key=lambda run: run[0])[1:] if found else (None, None)


def read_checkpoint(key: str, path: Path) -> tuple[Path, dict[str, Any]]:
    """The content of a checkpoint: tensors and plain values; nothing in it is executed.

    Args:
        key: the key of the config that named it, for messages.
        path: the file, or the folder of a run, whose newest one is taken.

    Returns:
        the file, and what it holds.

    Raises:
        CheckpointError: it isn't there, is damaged, or is no Lightning checkpoint.
    """
    file = newest_checkpoint(path) if path.is_dir() else path
    if file is None or not file.is_file():
        raise CheckpointError(f"{key}={path}: there is {_nothing(path)}")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch have an error each
        raise CheckpointError(f"{key}={file}: can't be read; {_reason(error)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{key}={file}: holds no 'state_dict', so it is no checkpoint of a training run. "
            "Take one that pretraining wrote."
        )
    return file, checkpoint


def _nothing(path: Path) -> str:
    """What is said where there is no checkpoint: those below a folder are named."""
    if not path.is_dir():
        return "no such file. Check the path."
    below = sorted({file.parent for file in path.rglob("*.ckpt")})
    text = "no checkpoint (*.ckpt) in this folder"
    if not below:
        return f"{text}. Check the path."
    shown = ", ".join(map(str, below[:_SHOWN])) + (", ..." if len(below) > _SHOWN else "")
    return f"{text}, but below it, in: {shown}. Give the folder of a run."


def _reason(error: Exception) -> str:
    """Why a file can't be read, and what to do; torch's own words advise to execute it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}. Check the path."
    found = re.search(r"Unsupported class (\S+)|GLOBAL (\S+)", str(error))  # torch 2.1, and later
    if found:
        text = f"it asks for {found[1] or found[2]}, and only tensors and plain values are read"
        return f"{text}. Take a checkpoint that pretraining wrote."
    return "it is cut off, or no checkpoint. Take another checkpoint of the run."


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
