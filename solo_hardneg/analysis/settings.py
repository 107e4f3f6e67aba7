"""The config group ``hardness``: what is recorded, how often, and where to."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.limits import check_writable
from solo_hardneg.negatives.numbers import whole

_LONGEST_NAME = 255  # bytes that file systems take
MOST_PERCENTILES = 10_000  # bins of difficulty; each is a row for each step and direction


@dataclass(frozen=True)
class Hardness:
    """What the recorder does.

    Attributes:
        enabled: whether it does anything.
        every_n_steps: it looks at every n-th step of the optimizer, the first one included.
        queries: at how many queries, drawn from the batch (of each process and direction).
        percentiles: how many bins of difficulty.
        dir: where the Parquet files go; below the run's folder, if it is not absolute.
        images: whether to count, for each image, how often it was a negative and a hard one.
        synsets: a file that says which WordNet synset each class is, where its name doesn't.
    """

    enabled: bool = False
    every_n_steps: int = 100
    queries: int = 256
    percentiles: int = 100
    dir: str = "hardness"
    images: bool = True
    synsets: str | None = None


def read_settings(cfg: DictConfig) -> Hardness:
    """Reads and checks ``cfg.hardness``; nothing is recorded where there is none.

    Raises:
        ConfigError: a key is unknown or has a value that can't be used, or another group has
            nearly the same name and what this one holds.
    """
    _refuse_near_misses(cfg)
    group = cfg.get("hardness")
    try:
        given = OmegaConf.to_container(group, resolve=True) if OmegaConf.is_config(group) else group
    except OmegaConfBaseException as error:
        raise ConfigError(f"hardness: can't be resolved. {error}") from error
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise bad_value("hardness", given, "must hold several keys", "Write hardness.enabled=true.")
    defaults = Hardness()
    for name in given:
        known = [field.name for field in fields(Hardness)]
        if name not in known:
            raise unknown_name("hardness", str(name), known, "setting")
    values = {f.name: given.get(f.name, getattr(defaults, f.name)) for f in fields(Hardness)}
    for name in ("enabled", "images"):
        if not isinstance(values[name], bool):
            raise bad_value(f"hardness.{name}", values[name], "must be true or false")
    for name in ("every_n_steps", "queries", "percentiles"):
        most = MOST_PERCENTILES if name == "percentiles" else math.inf
        values[name] = whole(f"hardness.{name}", values[name], least=1, most=most)
    _check_dir(values["dir"], values["enabled"])
    _check_file(values["synsets"])
    return Hardness(**values)


def _refuse_near_misses(cfg: DictConfig) -> None:
    """Methods of others have keys of their own, so what is refused must look like this group."""
    for key in map(str, cfg):
        near = difflib.get_close_matches(key, ["hardness"], cutoff=0.8)
        if near and key != "hardness" and not OmegaConf.is_missing(cfg, key):
            group = cfg.get(key)
            if isinstance(group, DictConfig) and "enabled" in group:
                raise ConfigError(f"{key}: is not read by anything. Did you mean 'hardness'?")


def _check_dir(name: Any, used: bool) -> None:
    right = isinstance(name, str) and name != "" and "\0" not in name
    if not right or max(len(os.fsencode(part)) for part in name.split("/")) > _LONGEST_NAME:
        raise bad_value("hardness.dir", name, "must be the name of a folder")
    if used and Path(name).is_absolute():  # others lie in the run's folder
        check_writable("hardness.dir", name)


def _check_file(synsets: Any) -> None:
    if synsets is not None and not Path(str(synsets)).expanduser().is_file():
        do = "Give a CSV file with the columns class and synset, or null."
        raise bad_value("hardness.synsets", synsets, "is no such file", do)
