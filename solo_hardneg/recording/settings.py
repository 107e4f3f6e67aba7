"""The config group ``hardness``: what is recorded, how often, and where."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.validate import Count, Settings, check_writable, read_group

_LONGEST_NAME = 255  # bytes that file systems take


class Hardness(Settings):
    """Settings of the recorder.

    Attributes:
        enabled: Whether it records.
        every_n_steps: Records every n-th step of the optimizer, the first one included.
        queries: Queries per recorded step, drawn from the batch of each process and direction.
        percentiles: Number of bins of difficulty; each is a row per step and direction.
        dir: Folder of the Parquet files, below the run's folder unless absolute.
        images: Whether to count for each image how often it was a negative and a hard one.
        synsets: CSV file with the WordNet synset of each class whose name doesn't say it.
    """

    enabled: bool = False
    every_n_steps: Count = 100
    queries: Count = 256
    percentiles: Annotated[int, Field(ge=1, le=10_000)] = 100
    dir: str = "hardness"
    images: bool = True
    synsets: str | None = None


def read_hardness(cfg: DictConfig) -> Hardness:
    """Reads and checks ``cfg.hardness``; without it nothing is recorded.

    Raises:
        ConfigError: A key is unknown or has a value that can't be used, or another group has
            nearly the same name and holds ``enabled``.
    """
    for key in map(str, cfg):  # a host's method may have any key, so only a look-alike is refused
        near = difflib.get_close_matches(key, ["hardness"], cutoff=0.8)
        if near and key != "hardness" and not OmegaConf.is_missing(cfg, key):
            group = cfg.get(key)
            if isinstance(group, DictConfig) and "enabled" in group:
                raise ConfigError(f"{key}: is not read by anything. Did you mean 'hardness'?")
    settings = read_group(Hardness, "hardness", cfg.get("hardness"))
    parts = settings.dir.split("/")
    if (
        not settings.dir.strip("\0")
        or max(len(os.fsencode(part)) for part in parts) > _LONGEST_NAME
    ):
        raise bad_value("hardness.dir", settings.dir, "must be the name of a folder")
    if settings.enabled and Path(settings.dir).is_absolute():
        check_writable("hardness.dir", settings.dir)
    if settings.synsets is not None and not Path(settings.synsets).expanduser().is_file():
        do = "Give a CSV file with the columns class and synset, or null."
        raise bad_value("hardness.synsets", settings.synsets, "is no such file", do)
    return settings
