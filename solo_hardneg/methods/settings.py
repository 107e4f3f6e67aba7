"""The config of our methods, read and checked before anything is built.

The host accepts any key and value, so a typo in one of our keys would pass silently.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.data.dali import has_dummy_indexes
from solo_hardneg.errors import ConfigError, DataError, bad_value, unknown_name
from solo_hardneg.negatives import Policy, build
from solo_hardneg.negatives.queue import check_queue_size
from solo_hardneg.validate import REQUIRED, Count, apply_rules, check_queue_memory

OUR_GROUPS = ("negatives", "hardness", "backend")


def read_policy(cfg: DictConfig, default: dict[str, Any]) -> Policy:
    """Builds this run's policy; fills in the method's default if ``cfg`` has none.

    Raises:
        ConfigError: The policy is invalid, or needs labels or indexes that the data don't provide.
    """
    for key in map(str, cfg):
        near = difflib.get_close_matches(key, OUR_GROUPS, n=1, cutoff=0.75)
        if near and key not in OUR_GROUPS:
            raise ConfigError(f"{key}: nothing reads this key. Did you mean '{near[0]}'?")
    if "negatives" not in cfg:  # `negatives: null` is the user's choice: all of them
        cfg.negatives = default
    policy = build(cfg.negatives)
    shown = f"negatives={policy.config}"
    if "labels" in policy.needs and cfg.data.get("no_labels", False):
        raise ConfigError(
            f"{shown}: needs labels, and data.no_labels=True declares none. Choose negatives "
            "without 'label', or use labelled data with ++data.no_labels=False."
        )
    if "indexes" in policy.needs and has_dummy_indexes(cfg):
        raise ConfigError(
            f"{shown}: needs dataset indexes, and DALI's are dummies. Set "
            "++dali.encode_indexes_into_labels=True."
        )
    return policy


def check_method_kwargs(cfg: DictConfig, known: Iterable[str]) -> None:
    """Refuses unknown arguments of the method."""
    names, given = set(known), cfg.get("method_kwargs")
    if not OmegaConf.is_dict(given):
        do = f"Known: {', '.join(sorted(names))}."
        raise bad_value("method_kwargs", given, "must hold several keys, not a value", do)
    for name in given:
        if name not in names:
            raise unknown_name("method_kwargs", str(name), names, "argument")


def check_queue(cfg: DictConfig, policy: Policy) -> None:
    """Checks that the queue holds whole batches and that no band of it is empty."""
    apply_rules(cfg, {"method_kwargs.queue_size": (REQUIRED, Count)})
    size = cfg.method_kwargs.queue_size
    check_queue_memory(size, cfg.method_kwargs.get("proj_output_dim"))
    check_queue_size(size, cfg.optimizer.batch_size)
    policy.check(size)


def check_backend(cfg: DictConfig, policy: Policy, keys: int | None) -> None:
    """Checks that ``backend`` exists and supports the policy at all epochs; fills in ``auto``.

    Args:
        cfg: Config to check.
        policy: The run's policy.
        keys: Size of the queue, ``None`` without one.
    """
    from solo_hardneg.kernels.compile import compile_policy
    from solo_hardneg.kernels.dispatch import check_policy

    if cfg.get("backend") is None:
        cfg.backend = "auto"
    for epoch in policy.moments:
        check_policy(cfg.backend, compile_policy(policy.at(epoch)), keys, policy.reserve)


def check_folders(cfg: DictConfig) -> None:
    """Refuses folders that solo-learn would not find, or would misread.

    The standalone host has its own checks. solo-learn fails after the model is built, without
    naming the key.
    """
    from solo_hardneg import host

    if host.NAME != "solo" or cfg.data.dataset not in ("custom", "imagenet", "imagenet100"):
        return
    no_validation = OmegaConf.select(cfg, "data.val_path") is None
    if cfg.data.get("format") == "dali" and no_validation and cfg.get("limit_val_batches") != 0:
        do = "Point it at a folder of images, or add +limit_val_batches=0."
        raise bad_value("data.val_path", None, "solo-learn's DALI loader needs validation", do)
    for key in ("data.train_path", "data.val_path"):
        path = OmegaConf.select(cfg, key)
        if path is None:
            continue
        if not Path(path).exists():
            raise DataError(f"{key}={path}: does not exist. Point {key} at a folder of images.")
        if (Path(path) / "val_annotations.txt").is_file():
            raise bad_value(
                key,
                path,
                "has TinyImageNet's own layout, which solo-learn reads as a single class",
                "Sort its images into one folder per class first, or set data.val_path=null and "
                "evaluate with SOLO_HARDNEG_HOST=standalone.",
            )
