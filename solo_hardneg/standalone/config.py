"""Parsing a config the way the host does, into a copy: defaults, scaled rates, checks."""

from __future__ import annotations

import copy
import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.dali import DEVICES, check_dali
from solo_hardneg.environment import INPUTS, resolve_paths
from solo_hardneg.errors import bad_value, resolve
from solo_hardneg.limits import check_memory, check_writable
from solo_hardneg.standalone.base import METHOD_RULES
from solo_hardneg.standalone.checks import (
    COUNT,
    POSITIVE,
    REQUIRED,
    Number,
    Rules,
    number_of_devices,
    read,
    settle,
)
from solo_hardneg.standalone.data import DATASETS, FOLDERS, FORMATS, class_names
from solo_hardneg.standalone.trainer import check_kinds
from solo_hardneg.standalone.training import TrainedModule

_COMMON_RULES: Rules = {
    "data.dataset": (REQUIRED, DATASETS),
    "data.format": ("image_folder", str),
    "dali.device": ("gpu", DEVICES),
    "dali.encode_indexes_into_labels": (True, bool),
    "data.num_workers": (4, Number(least=0, most=1024, whole=True)),
    "data.download": (False, bool),
    "data.no_labels": (False, bool),
    "data.fraction": (-1, Number()),
    "checkpoint.enabled": (False, bool),
    "checkpoint.dir": ("trained_models", str),
    "checkpoint.frequency": (1, COUNT),
    "checkpoint.keep_prev": (False, bool),
    "auto_resume.enabled": (False, bool),
    "auto_resume.max_hours": (36, POSITIVE),
    "wandb.enabled": (False, bool),
    "wandb.entity": (None, str),
    "wandb.project": ("solo-learn", str),
    "wandb.offline": (False, bool),
    "seed": (5, Number(least=0, most=2**32 - 1, whole=True)),
    "resume_from_checkpoint": (None, str),
    "strategy": ("auto", str),
    "devices": (1, None),
    "num_nodes": (1, COUNT),
}
_PRETRAIN_RULES: Rules = {
    **METHOD_RULES,
    "method": (REQUIRED, str),
    "momentum": ({}, dict),
    "augmentations": (REQUIRED, None),
}
_LINEAR_RULES: Rules = {
    **{key: rule for key, rule in METHOD_RULES.items() if key.startswith("knn_eval")},
    "knn_eval.distance_func": ("cosine", METHOD_RULES["knn_eval.distance_func"][1]),
    "data.val_path": (REQUIRED, None),
    "pretrained_feature_extractor": (REQUIRED, str),
    "pretrain_method": (None, str),
}
_SOLO_LEARN_ONLY = (
    *("finetune", "mixup", "cutmix", "label_smoothing", "auto_augment"),
    "optimizer.layer_decay",
)
_LONGEST_NAME = 200  # file systems take 255, and ours have something behind it
_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
_OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
    "adamw": {"betas": [0.9, 0.999]},
}


def parse_pretrain(cfg: DictConfig) -> DictConfig:
    """A copy of a pretraining config with everything filled in and checked.

    Learning rates are scaled by the global batch / 256, as in the host, but in the copy: parsing
    the same config twice gives the same.

    Raises:
        ConfigError: a key is missing or has a value that can't be used.
        DataError: the classes can't be counted, because the folder isn't there.
    """
    cfg = _parse(cfg, _PRETRAIN_RULES)
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
        settle(cfg, {f"augmentations.{i}.num_crops": (REQUIRED, COUNT)})
    _check_crop(cfg, "augmentations.0.crop_size")
    views = sum(entry.num_crops for entry in entries)
    if views != 2 or len({entry.get("crop_size") for entry in entries}) != 1:
        do = "Let num_crops add up to 2, of one crop_size; multi-crop is in solo-learn only."
        raise bad_value("augmentations", entries, "must give two views of one size", do)
    cfg.data.num_large_crops, cfg.data.num_small_crops = 2, 0
    return cfg


def parse_linear(cfg: DictConfig) -> DictConfig:
    """The same for a config of linear evaluation."""
    cfg = _parse(cfg, _LINEAR_RULES)
    for key in _SOLO_LEARN_ONLY:
        if read(cfg, key):
            do = "Leave it out, or evaluate with solo-learn's main_linear.py."
            raise bad_value(key, read(cfg, key), "only solo-learn has it", do)
    if cfg.data.no_labels:
        raise bad_value("data.no_labels", True, "a classifier needs labels", "Leave it out.")
    crop = read(cfg, "data.suggest.crop_size", 224)
    settle(cfg, {"data.augmentations.crop_size": (crop, COUNT)})
    _check_crop(cfg, "data.augmentations.crop_size")
    return cfg


def _parse(cfg: DictConfig, rules: Rules) -> DictConfig:
    cfg = OmegaConf.create(cfg) if isinstance(cfg, dict) else copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    settle(cfg, {**_COMMON_RULES, **rules})
    TrainedModule.add_and_assert_specific_cfg(cfg)
    resolve(cfg)
    resolve_paths(cfg, INPUTS)
    check_kinds(cfg)
    if cfg.data.format not in FORMATS:
        allowed = "must be image_folder, resident or dali; h5 is in solo-learn only"
        raise bad_value("data.format", cfg.data.format, allowed)
    _check_dali(cfg)
    if cfg.data.fraction != -1 and not 0 < cfg.data.fraction < 1:
        allowed = "must lie between 0 and 1, or be -1 for all images"
        raise bad_value("data.fraction", cfg.data.fraction, allowed)
    name = f"{read(cfg, 'method', 'linear')}-{cfg.data.dataset}"
    train_path = "builtin" if cfg.data.dataset == "digits" else REQUIRED
    settle(cfg, {"name": (name, None), "data.train_path": (train_path, None)})
    _check_name(cfg)
    check_writable("checkpoint.dir", cfg.checkpoint.dir)
    for key, value in _OPTIMIZER_DEFAULTS.get(cfg.optimizer.name, {}).items():
        settle(cfg, {f"optimizer.kwargs.{key}": (value, None)})
    cfg.optimizer.lr *= _scale(cfg)
    cfg.data.num_classes = _num_classes(cfg)
    return cfg


def _check_dali(cfg: DictConfig) -> None:
    check_dali(cfg)
    if cfg.data.format == "dali" and cfg.data.dataset not in FOLDERS:
        allowed = f"reads image files, and data.dataset={cfg.data.dataset} has none"
        raise bad_value("data.format", "dali", allowed, "Use image_folder or resident.")
    if not cfg.dali.encode_indexes_into_labels:
        allowed = "only solo-learn makes dummies of the indexes; here they are always true"
        raise bad_value("dali.encode_indexes_into_labels", False, allowed, "Leave it out.")


def _check_crop(cfg: DictConfig, key: str) -> None:
    crop = read(cfg, key)
    if isinstance(crop, int):  # what else it may be, the pipeline says
        views = 2 if key.startswith("augmentations") else 1
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


def _num_classes(cfg: DictConfig) -> int:
    if cfg.data.dataset not in FOLDERS:
        return _CLASSES[cfg.data.dataset]
    return 1 if cfg.data.no_labels else len(class_names(cfg))
