"""Pretraining and linear evaluation from a config, with the methods of either host."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import TensorDataset

from solo_hardneg import plugin
from solo_hardneg.environment import check_wandb
from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.models.backbones import build_backbone, load_backbone
from solo_hardneg.models.checkpoints import read_checkpoint, read_encoder, read_or_older
from solo_hardneg.safety.auto_resume import find_checkpoint
from solo_hardneg.standalone.config import parse_linear, parse_pretrain
from solo_hardneg.standalone.knn import knn_accuracy
from solo_hardneg.standalone.linear import LinearModel, encode
from solo_hardneg.standalone.loaders import (
    linear_loaders,
    make_loader,
    plain_loader,
    pretrain_loaders,
)
from solo_hardneg.standalone.run_folder import RunFolder
from solo_hardneg.standalone.trainer import build_trainer, fit


@dataclass(frozen=True)
class RunOutput:
    """Output of a run.

    Attributes:
        folder: Holds ``metrics.csv``, and ``args.json`` and checkpoints if they are enabled.
        checkpoint: Newest checkpoint.
        metrics: Last value of everything that was logged.
    """

    folder: Path
    checkpoint: Path | None
    metrics: dict[str, float]


def pretrain(cfg: DictConfig) -> RunOutput:
    """Pretrains ``cfg.method``, as solo-learn's ``main_pretrain.py`` does.

    Raises:
        ConfigError, DataError, CheckpointError: Before training, wherever possible.
    """
    from solo_hardneg.host import METHODS  # importing it chooses the host
    from solo_hardneg.methods import OUR_METHODS

    plugin.register()
    cfg = parse_pretrain(cfg)
    check_wandb(cfg)
    if cfg.method not in METHODS:
        error = unknown_name("method", cfg.method, METHODS, "method")
        raise ConfigError(f"{error} Any other method needs solo-learn.")
    if cfg.get("negatives") and cfg.method not in OUR_METHODS:
        do = f"Use one of {', '.join(OUR_METHODS)}, or leave negatives out."
        raise bad_value("negatives", cfg.negatives, f"method={cfg.method} reads none", do)
    seed_everything(cfg.seed)
    loaders = pretrain_loaders(cfg)
    return _run_output(*_train(METHODS[cfg.method](cfg), loaders, cfg, cfg.method))


def linear(cfg: DictConfig) -> RunOutput:
    """Trains a linear classifier on the backbone of ``cfg.pretrained_feature_extractor``.

    With ``knn_eval.enabled``, the metrics include the kNN accuracy.

    Raises:
        ConfigError, DataError, CheckpointError: Before training, wherever possible.
    """
    plugin.register()
    cfg = parse_linear(cfg)
    check_wandb(cfg)
    seed_everything(cfg.seed)
    key, path = "pretrained_feature_extractor", Path(cfg.pretrained_feature_extractor).expanduser()
    path, checkpoint = read_encoder(key, path)
    backbone, features_dim = build_backbone(
        cfg.backbone.name, cfg.pretrain_method, cfg.backbone.kwargs, cfg.data.dataset
    )
    load_backbone(backbone, checkpoint["state_dict"], key, path)
    loaders = linear_loaders(cfg)
    if cfg.data.dataset == "digits":  # not augmented, so each image is encoded only once
        parts = (_encode_split(backbone, cfg, train, "cpu") for train in (True, False))
        sets = [TensorDataset(*map(torch.from_numpy, part)) for part in parts]
        loaders = make_loader(cfg, sets[0], train=True), make_loader(cfg, sets[1], train=False)
    model = LinearModel(backbone, cfg, features_dim)
    trainer, run_folder = _train(model, loaders, cfg, "linear")
    knn: dict[str, float] = {}
    if cfg.knn_eval.enabled:
        device = trainer.strategy.root_device
        train, val = (_encode_split(backbone, cfg, part, device) for part in (True, False))
        accuracies = knn_accuracy(*train, *val, cfg.knn_eval.k, cfg.knn_eval.distance_func)
        knn = dict(zip(("val_knn_acc1", "val_knn_acc5"), accuracies, strict=True))
        for logger in trainer.loggers:
            logger.log_metrics(knn, step=trainer.global_step)
            logger.save()
    return _run_output(trainer, run_folder, knn)


def _encode_split(
    backbone: nn.Module, cfg: DictConfig, train: bool, device: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    loader = plain_loader(cfg, train, cfg.data.augmentations.crop_size)
    return encode(backbone, loader, torch.device(device))


def _train(
    model: LightningModule, loaders: Any, cfg: DictConfig, kind: str
) -> tuple[Trainer, RunFolder]:
    """Trains a module and writes to ``{checkpoint.dir}/{kind}/{version}``."""
    root = Path(cfg.checkpoint.dir).expanduser() / kind
    checkpoint, wandb_id = _find_resumed(cfg, root, model)
    version = uuid.uuid4().hex[:8]  # independent of the seed
    if cfg.wandb.enabled:
        run_folder = RunFolder(root / version, cfg, wandb_id or version)
    else:
        run_folder = RunFolder(root / f"offline-{version}", cfg, None)
    folder = run_folder.folder
    loggers: list[Logger] = [CSVLogger(root.parent, kind, folder.name)]
    if cfg.wandb.enabled:
        where = {name: cfg.wandb[name] for name in ("project", "entity", "offline")}
        resume = "allow" if wandb_id else None
        loggers.append(WandbLogger(cfg.name, id=run_folder.wandb_run_id, resume=resume, **where))
    callbacks = [LearningRateMonitor("epoch")] + [run_folder] * cfg.checkpoint.enabled
    trainer = build_trainer(cfg, loggers, callbacks)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            hyperparameters: Any = OmegaConf.to_container(cfg, resolve=True)
            logger.log_hyperparams(hyperparameters)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    fit(trainer, model, loaders, checkpoint)
    return trainer, run_folder


def _find_resumed(cfg: DictConfig, folder: Path, model: Any) -> tuple[Path | None, str | None]:
    """Finds the checkpoint to resume, if any, and the wandb id of its run."""
    wandb_id: str | None = None
    if cfg.resume_from_checkpoint is not None:
        key = "resume_from_checkpoint"
        path, checkpoint = read_checkpoint(key, Path(cfg.resume_from_checkpoint).expanduser())
    elif cfg.auto_resume.enabled:
        found, wandb_id = find_checkpoint(folder, cfg, cfg.auto_resume.max_hours)
        if found is None:
            return None, None
        key = "auto_resume.enabled=True found"
        path, checkpoint = read_or_older(key, found)
        print(f"Resuming {path}")
    else:
        return None, None
    load_backbone(model.backbone, checkpoint["state_dict"], key, path)
    return path, wandb_id


def _run_output(
    trainer: Trainer, run_folder: RunFolder, knn: dict[str, float] | None = None
) -> RunOutput:
    if trainer.is_global_zero:
        print(f"Run folder: {run_folder.folder}")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return RunOutput(run_folder.folder, run_folder.newest, {**metrics, **(knn or {})})
