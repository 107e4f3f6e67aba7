"""Parses a config as solo-learn does, into a copy: defaults, scaled learning rates, checks."""

from __future__ import annotations

import copy
import os
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from solo_hardneg.data.datasets import DATASETS, FOLDERS, class_folder_names
from solo_hardneg.environment import INPUTS, resolve_paths
from solo_hardneg.errors import bad_value, resolve
from solo_hardneg.standalone.base import METHOD_RULES
from solo_hardneg.standalone.knn import DISTANCES
from solo_hardneg.standalone.training import TrainedModule
from solo_hardneg.validate import (
    REQUIRED,
    Count,
    Finite,
    Positive,
    Rules,
    Seed,
    Text,
    apply_rules,
    check_memory,
    check_writable,
    number_of_devices,
    read,
)

FORMATS = ("image_folder", "resident")
_COMMON_RULES: Rules = {
    "data.dataset": (REQUIRED, DATASETS),
    "data.format": ("image_folder", Text),
    "data.num_workers": (4, Annotated[int, Field(ge=0, le=1024)]),
    "data.download": (False, bool),
    "data.no_labels": (False, bool),
    "data.fraction": (-1, Finite),
    "checkpoint.enabled": (False, bool),
    "checkpoint.dir": ("trained_models", Text),
    "checkpoint.frequency": (1, Count),
    "checkpoint.keep_prev": (False, bool),
    "auto_resume.enabled": (False, bool),
    "auto_resume.max_hours": (36, Positive),
    "wandb.enabled": (False, bool),
    "wandb.entity": (None, Text),
    "wandb.project": ("solo-learn", Text),
    "wandb.offline": (False, bool),
    "seed": (5, Seed),
    "resume_from_checkpoint": (None, Text),
    "strategy": ("auto", Text),
    "devices": (1, Any),
    "num_nodes": (1, Count),
}
_PRETRAIN_RULES: Rules = {
    **METHOD_RULES,
    "method": (REQUIRED, Text),
    "momentum": ({}, dict),
    "augmentations": (REQUIRED, Any),
}
_LINEAR_RULES: Rules = {
    **{key: rule for key, rule in METHOD_RULES.items() if key.startswith("knn_eval")},
    "knn_eval.distance_func": ("cosine", DISTANCES),
    "data.val_path": (REQUIRED, Any),
    "pretrained_feature_extractor": (REQUIRED, Text),
    "pretrain_method": (None, Text),
}
_SOLO_LEARN_ONLY = (
    *("finetune", "mixup", "cutmix", "label_smoothing", "auto_augment"),
    "optimizer.layer_decay",
)
_LONGEST_NAME = 200  # bytes; file systems take 255, and checkpoint names append to it
_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
_OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
    "adamw": {"betas": [0.9, 0.999]},
}


def parse_pretrain(cfg: DictConfig) -> DictConfig:
    """Returns a checked copy of a pretraining config with all defaults.

    As in solo-learn, learning rates are multiplied by the global batch size / 256.

    Raises:
        ConfigError: A key is missing or its value is refused.
        DataError: The folder whose classes are counted isn't there.
    """
    cfg = _parse(cfg, _PRETRAIN_RULES)
    _refuse(cfg, "momentum.classifier")
    if OmegaConf.is_missing(cfg.data, "val_path") and not cfg.data.no_labels:
        do = "Set it to a folder, or to null to train without validation."
        raise bad_value("data.val_path", "???", "must be set", do)
    cfg.data.val_path = read(cfg, "data.val_path")
    cfg.optimizer.classifier_lr *= _scale(cfg)
    entries = cfg.augmentations
    if not OmegaConf.is_list(entries) or not all(OmegaConf.is_dict(e) for e in entries):
        do = "configs/augmentations has examples."
        raise bad_value("augmentations", entries, "must be a list of pipelines", do)
    for i in range(len(entries)):
        apply_rules(cfg, {f"augmentations.{i}.num_crops": (REQUIRED, Count)})
    _check_crop(cfg, "augmentations.0.crop_size", views=2)
    views = sum(entry.num_crops for entry in entries)
    if views != 2 or len({entry.get("crop_size") for entry in entries}) != 1:
        do = "Let num_crops add up to 2, of one crop_size; multi-crop is in solo-learn only."
        raise bad_value("augmentations", entries, "must give two views of one size", do)
    cfg.data.num_large_crops, cfg.data.num_small_crops = 2, 0
    return cfg


def parse_linear(cfg: DictConfig) -> DictConfig:
    """Returns a checked copy of a config of linear evaluation; see :func:`parse_pretrain`."""
    cfg = _parse(cfg, _LINEAR_RULES)
    _refuse(cfg, *_SOLO_LEARN_ONLY)
    if cfg.data.no_labels:
        raise bad_value("data.no_labels", True, "a classifier needs labels", "Leave it out.")
    crop = read(cfg, "data.suggest.crop_size", 224)
    apply_rules(cfg, {"data.augmentations.crop_size": (crop, Count)})
    _check_crop(cfg, "data.augmentations.crop_size", views=1)
    return cfg


def _parse(cfg: DictConfig, rules: Rules) -> DictConfig:
    cfg = OmegaConf.create(cfg) if isinstance(cfg, dict) else copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    apply_rules(cfg, {**_COMMON_RULES, **rules})
    TrainedModule.add_and_assert_specific_cfg(cfg)
    resolve(cfg)
    resolve_paths(cfg, INPUTS)
    if cfg.data.format not in FORMATS:
        do = "DALI and HDF5 need solo-learn."
        raise bad_value("data.format", cfg.data.format, f"must be {' or '.join(FORMATS)}", do)
    if cfg.data.fraction != -1 and not 0 < cfg.data.fraction < 1:
        allowed = "must lie between 0 and 1, or be -1 for all images"
        raise bad_value("data.fraction", cfg.data.fraction, allowed)
    name = f"{read(cfg, 'method', 'linear')}-{cfg.data.dataset}"
    train_path = "builtin" if cfg.data.dataset == "digits" else REQUIRED
    apply_rules(cfg, {"name": (name, Any), "data.train_path": (train_path, Any)})
    _check_name(cfg)
    check_writable("checkpoint.dir", cfg.checkpoint.dir)
    for key, value in _OPTIMIZER_DEFAULTS.get(cfg.optimizer.name, {}).items():
        apply_rules(cfg, {f"optimizer.kwargs.{key}": (value, Any)})
    cfg.optimizer.lr *= _scale(cfg)
    if cfg.data.dataset in FOLDERS:
        cfg.data.num_classes = 1 if cfg.data.no_labels else len(class_folder_names(cfg))
    else:
        cfg.data.num_classes = _CLASSES[cfg.data.dataset]
    return cfg


def _refuse(cfg: DictConfig, *keys: str) -> None:
    for key in keys:
        if read(cfg, key):
            do = "Leave it out, or run solo-learn's program."
            raise bad_value(key, read(cfg, key), "only solo-learn has it", do)


def _check_crop(cfg: DictConfig, key: str, views: int) -> None:
    crop = read(cfg, key)
    if isinstance(crop, int):  # the augmentation pipeline refuses other types
        check_memory(key, crop, 4 * 3 * views * cfg.optimizer.batch_size * crop**2, "a batch")


def _check_name(cfg: DictConfig) -> None:
    if isinstance(cfg.name, bool | bytes) or OmegaConf.is_config(cfg.name):
        raise bad_value("name", cfg.name, "must be a name")
    cfg.name = str(cfg.name)
    if "/" in cfg.name or "\0" in cfg.name or len(os.fsencode(cfg.name)) > _LONGEST_NAME:
        allowed = f"must hold no slash, and at most {_LONGEST_NAME} bytes: files are named after it"
        raise bad_value("name", cfg.name, allowed)


def _scale(cfg: DictConfig) -> float:
    return cfg.optimizer.batch_size * number_of_devices(cfg) * cfg.num_nodes / 256
