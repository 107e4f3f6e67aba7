"""The config of our methods, read and checked before anything is built.

The host takes any key and any value, so a typo would pass in silence: what is ours we check here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_hardneg import ring
from solo_hardneg.dali import has_dummy_indexes
from solo_hardneg.errors import ConfigError, DataError, bad_value, unknown_name
from solo_hardneg.limits import check_queue_memory
from solo_hardneg.negatives import Policy, build

OUR_GROUPS = ("negatives", "hardness", "backend")


def read_policy(cfg: DictConfig, default: dict[str, Any]) -> Policy:
    """The policy of this run; puts the method's default into ``cfg`` where there is none.

    Raises:
        ConfigError: it can't be built, or needs labels or indexes that the data don't give.
    """
    for key in map(str, cfg):
        near = difflib.get_close_matches(key, OUR_GROUPS, n=1, cutoff=0.75)
        if near and key not in OUR_GROUPS:
            raise ConfigError(f"{key}: is not read by anything. Did you mean '{near[0]}'?")
    if "negatives" not in cfg:  # `negatives: null` is the user's word: all of them
        cfg.negatives = default
    policy = build(cfg.negatives)
    shown = f"negatives={policy.config}"
    if "labels" in policy.needs and cfg.data.get("no_labels", False):
        raise ConfigError(
            f"{shown}: needs labels, and data.no_labels=True says that there are none. "
            "Choose negatives without 'label', or use labelled data with ++data.no_labels=False."
        )
    if "indexes" in policy.needs and has_dummy_indexes(cfg):
        raise ConfigError(
            f"{shown}: needs dataset indexes, and DALI's are dummies unless "
            "++dali.encode_indexes_into_labels=True. Set that."
        )
    return policy


def check_method_kwargs(cfg: DictConfig, known: Iterable[str]) -> None:
    """Refuses arguments of the method that nobody reads."""
    names, given = set(known), cfg.get("method_kwargs")
    if not OmegaConf.is_dict(given):
        do = f"Known: {', '.join(sorted(names))}."
        raise bad_value("method_kwargs", given, "must hold several keys, not a value", do)
    for name in given:
        if name not in names:
            raise unknown_name("method_kwargs", str(name), names, "argument")


def check_choice(cfg: DictConfig, key: str, default: bool) -> None:
    """A key that is true or false; puts the default into ``cfg`` where it is absent."""
    value = OmegaConf.select(cfg, key)
    if value is None:
        value = default
        OmegaConf.update(cfg, key, default, force_add=True)
    if not isinstance(value, bool):
        raise bad_value(key, value, "must be true or false")


def check_number(cfg: DictConfig, key: str, kind: type) -> None:
    """A key that holds a number above 0."""
    value = OmegaConf.select(cfg, key)
    right = isinstance(value, kind | int) and not isinstance(value, bool)
    if not right or not value > 0:
        name = "a whole number" if kind is int else "a number"
        raise bad_value(key, value, f"must be {name} above 0")


def check_queue(cfg: DictConfig, policy: Policy) -> None:
    """The queue's size must hold whole batches, and leave something in every band."""
    check_number(cfg, "method_kwargs.queue_size", int)
    size = cfg.method_kwargs.queue_size
    check_queue_memory(size, cfg.method_kwargs.get("proj_output_dim"))
    ring.check_divisible(size, cfg.optimizer.batch_size)
    policy.check(cfg.method_kwargs.queue_size)


def check_backend(cfg: DictConfig, policy: Policy, keys: int | None) -> None:
    """``backend`` must be known, and follow the policy in all its epochs; fills in ``auto``.

    ``keys`` is the queue's size, ``None`` where there is no queue.
    """
    from solo_hardneg.kernels.backends import check_plan
    from solo_hardneg.kernels.plan import plan_of

    if cfg.get("backend") is None:
        cfg.backend = "auto"
    for epoch in policy.moments:
        check_plan(cfg.backend, plan_of(policy.at(epoch)), keys, policy.reserve)


def check_folders(cfg: DictConfig) -> None:
    """Refuses folders that solo-learn would not find, or would read as something else.

    The standalone host has its own checks; solo-learn finds out after the model is built, and
    doesn't say which key named the folder.
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
            raise DataError(f"{key}={path}: is not there. Point {key} at the folder of images.")
        if (Path(path) / "val_annotations.txt").is_file():
            raise bad_value(
                key,
                path,
                "is TinyImageNet's own layout, which solo-learn reads as a single class",
                "Sort its images into one folder per class first, or set data.val_path=null and "
                "evaluate with SOLO_HARDNEG_HOST=standalone.",
            )
