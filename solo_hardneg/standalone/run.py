"""Pretraining and linear evaluation from a config, with whichever host there is."""

from __future__ import annotations

import inspect
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import TensorDataset

from solo_hardneg import plugin
from solo_hardneg.environment import check_wandb
from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.safety.auto_resume import find_checkpoint
from solo_hardneg.safety.reading import read_checkpoint, read_or_older
from solo_hardneg.standalone.backbones import build_backbone
from solo_hardneg.standalone.checkpoints import RunFolder, load_backbone
from solo_hardneg.standalone.config import parse_linear, parse_pretrain
from solo_hardneg.standalone.data import linear_loaders, make_loader, plain_loader, pretrain_loaders
from solo_hardneg.standalone.knn import knn_accuracy
from solo_hardneg.standalone.linear import LinearModel, embed


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    ``folder`` holds ``metrics.csv``, and ``args.json`` and the checkpoints if they are enabled;
    ``checkpoint`` is the newest one; ``metrics`` are the last values of all that was logged.
    """

    folder: Path
    checkpoint: Path | None
    metrics: dict[str, float]


def pretrain(cfg: DictConfig) -> Result:
    """Pretrains ``cfg.method``, as the host's ``main_pretrain.py`` does.

    Raises:
        ConfigError, DataError, CheckpointError: before training, wherever that can be known.
    """
    from solo_hardneg.host import METHODS  # which host there is, is decided on import
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
    return _fit(METHODS[cfg.method](cfg), loaders, cfg, cfg.method)


def linear(cfg: DictConfig) -> Result:
    """Evaluates the backbone of ``cfg.pretrained_feature_extractor`` by a linear classifier.

    With ``knn_eval.enabled`` the accuracy of the nearest neighbours is reported as well.

    Raises:
        ConfigError, DataError, CheckpointError: before training, wherever that can be known.
    """
    plugin.register()
    cfg = parse_linear(cfg)
    check_wandb(cfg)
    seed_everything(cfg.seed)
    key, path = "pretrained_feature_extractor", Path(cfg.pretrained_feature_extractor).expanduser()
    path, checkpoint = read_checkpoint(key, path)
    backbone, features_dim = build_backbone(
        cfg.backbone.name, cfg.pretrain_method, cfg.backbone.kwargs, cfg.data.dataset
    )
    load_backbone(backbone, checkpoint["state_dict"], key, path)
    loaders = linear_loaders(cfg)
    if cfg.data.dataset == "digits":  # never changed at random, so it is embedded only once
        device = torch.device("cpu")
        crop = cfg.data.augmentations.crop_size
        parts = (embed(backbone, plain_loader(cfg, train, crop), device) for train in (True, False))
        sets = [TensorDataset(*map(torch.from_numpy, part)) for part in parts]
        loaders = make_loader(cfg, sets[0], train=True), make_loader(cfg, sets[1], train=False)
    model = LinearModel(backbone, cfg, features_dim)
    return _fit(model, loaders, cfg, "linear", after=_knn if cfg.knn_eval.enabled else None)


def _knn(model: Any, cfg: DictConfig, device: torch.device) -> dict[str, float]:
    crop = cfg.data.augmentations.crop_size
    train, val = (
        embed(model.backbone, plain_loader(cfg, part, crop), device) for part in (True, False)
    )
    acc1, acc5 = knn_accuracy(*train, *val, cfg.knn_eval.k, cfg.knn_eval.distance_func)
    return {"val_knn_acc1": acc1, "val_knn_acc5": acc5}


def _resume(cfg: DictConfig, folder: Path, model: Any) -> tuple[Path | None, str | None]:
    """The checkpoint to go on from, if any, and the wandb id of its run."""
    key, wandb_id = "resume_from_checkpoint", None
    if cfg.resume_from_checkpoint is not None:
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


def _loggers(cfg: DictConfig, run_folder: RunFolder, resumes: bool) -> list[Logger]:
    folder = run_folder.folder
    loggers: list[Logger] = [CSVLogger(folder.parent.parent, folder.parent.name, folder.name)]
    if cfg.wandb.enabled:
        names = ("project", "entity", "offline")
        settings = {name: cfg.wandb[name] for name in names}
        wandb = WandbLogger(
            cfg.name,
            id=run_folder.wandb_run_id,
            resume="allow" if resumes else None,
            **settings,
        )
        hyperparameters: Any = OmegaConf.to_container(cfg, resolve=True)
        wandb.log_hyperparams(hyperparameters)
        loggers.append(wandb)
    return loggers


def _fit(
    model: LightningModule, loaders: Any, cfg: DictConfig, kind: str, after: Any = None
) -> Result:
    """Trains, and writes to ``{checkpoint.dir}/{kind}/{version}``.

    ``after``, if given, is called with the model, the config and the device, and returns more
    metrics.
    """
    root = Path(cfg.checkpoint.dir).expanduser() / kind
    resume, wandb_id = _resume(cfg, root, model)
    version = uuid.uuid4().hex[:8]  # not from the seeded generators
    if cfg.wandb.enabled:
        run_folder = RunFolder(root / version, cfg, wandb_id or version)
    else:
        run_folder = RunFolder(root / f"offline-{version}", cfg, None)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    known = inspect.signature(Trainer.__init__).parameters
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: value for key, value in settings.items() if key in known}
    settings["logger"] = _loggers(cfg, run_folder, wandb_id is not None)
    settings["enable_checkpointing"] = cfg.checkpoint.enabled
    settings["callbacks"] = [LearningRateMonitor("epoch")] + [run_folder] * cfg.checkpoint.enabled
    trainer = Trainer(**settings)
    train, val = loaders
    trainer.fit(model, train, val, ckpt_path=None if resume is None else str(resume))
    if trainer.interrupted:  # Lightning 2.1 returns as if it had come to the end
        raise KeyboardInterrupt
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if after is not None:
        extra = after(model, cfg, trainer.strategy.root_device)
        metrics.update(extra)
        for logger in trainer.loggers:
            logger.log_metrics(extra, step=trainer.global_step)
            logger.save()
    if trainer.is_global_zero:
        print(f"Run folder: {run_folder.folder}")
    return Result(run_folder.folder, run_folder.newest, metrics)
