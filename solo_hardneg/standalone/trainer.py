"""Builds Lightning's Trainer from a config, trains, and translates Lightning's refusals."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.errors import ConfigError

# Folders of the code that reads settings; torch.autograd reads detect_anomaly.
_READERS = tuple(str(Path(str(m.__file__)).parent) for m in (lightning, torch.autograd))
_REFUSALS = (MisconfigurationException, ArithmeticError, AttributeError, TypeError, ValueError)


def build_trainer(
    cfg: DictConfig, logger: Sequence[Logger], callbacks: Sequence[Callback]
) -> Trainer:
    """Builds a Trainer from those keys of a config that are its arguments.

    Raises:
        ConfigError: Lightning refuses them.
    """
    settings = {
        **_trainer_arguments(cfg),
        "logger": logger,
        "callbacks": callbacks,
        "enable_checkpointing": cfg.checkpoint.enabled,
    }
    try:
        return Trainer(**settings)
    except Exception as error:  # also of torch and of missing packages
        raise _refusal(cfg, error) from error


def fit(trainer: Trainer, model: LightningModule, loaders: Any, checkpoint: Path | None) -> None:
    """Trains a module, from a checkpoint if there is one.

    Raises:
        ConfigError: Lightning refuses a setting that it reads only once it has data.
    """
    train, val = loaders
    path = None if checkpoint is None else str(checkpoint)
    try:
        trainer.fit(model, train, val, ckpt_path=path)
    except _REFUSALS as error:
        # Errors of the model or the data, which Lightning only calls, keep their traceback.
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if not raised_in.startswith(_READERS):
            raise
        raise _refusal(model.cfg, error) from error  # type: ignore[arg-type]
    if trainer.interrupted:  # Lightning 2.1 swallows the exception
        raise KeyboardInterrupt


def _trainer_arguments(cfg: DictConfig) -> dict[str, Any]:
    known = inspect.signature(Trainer.__init__).parameters
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return {key: value for key, value in settings.items() if key in known}


def _refusal(cfg: DictConfig, error: Exception) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:! ")
    given = ", ".join(f"{key}={value}" for key, value in _trainer_arguments(cfg).items())
    return ConfigError(
        f"Lightning's Trainer refuses the config: {reason}. Change one of its settings: {given}. "
        "What it takes depends on the machine, too."
    )
