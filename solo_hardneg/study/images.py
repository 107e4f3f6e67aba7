"""The images of a study: which are drawn, their classes, and their transforms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.data import classes, wordnet
from solo_hardneg.data.datasets import DATASETS, Split, load_split
from solo_hardneg.data.transforms import Views, plain_pipeline
from solo_hardneg.errors import ConfigError, DataError, bad_value
from solo_hardneg.validate import REQUIRED, Finite, Rules, apply_rules, read

_DATA_RULES: Rules = {
    "data.dataset": (REQUIRED, DATASETS),
    "data.format": ("image_folder", Any),
    "data.no_labels": (False, bool),
    "data.download": (False, bool),
    "data.fraction": (-1, Finite),
}
DATA_KEYS = {
    *(key.removeprefix("data.") for key in _DATA_RULES),
    *("train_path", "val_path", "num_workers", "suggest"),
}


@dataclass(frozen=True)
class Images:
    """The images of a study.

    Attributes:
        split: All images of the dataset's split.
        queries, negatives: (N,) and (M,) indexes of those drawn.
        names: C class names.
        depths: (C, C) depths of common ancestors in WordNet, if known.
        notes: What is missing.
        data: Config with the group ``data``.
    """

    split: Split
    queries: NDArray[Any]
    negatives: NDArray[Any]
    names: Sequence[str] = ()
    depths: NDArray[Any] | None = None
    notes: Sequence[str] = ()
    data: Any = None


def data_config(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The run's group ``data`` with single keys changed, or the group given as ``data=...``."""
    own, given = config.get("data") or {}, cfg.get("data") or {}
    is_group = "suggest" in given  # only whole groups of configs have this key
    data = OmegaConf.create({"data": given if is_group else OmegaConf.merge(own, given)})
    apply_rules(data, _DATA_RULES)
    if data.data.format not in ("image_folder", "resident", "dali"):  # they read the same files
        do = "Set data.format=image_folder, and data.train_path to the same images as folders."
        allowed = "must be image_folder, resident or dali"
        raise bad_value("data.format", data.data.format, allowed, do)
    return data


def draw_images(
    number: int, queries: int, negatives: int, seed: int
) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Draws queries and negatives among ``number`` images without replacement.

    With too few images both shrink in proportion, and a note says so.

    Returns:
        Their indexes, (N,) and (M,), and notes.

    Raises:
        DataError: There are fewer than four images.
    """
    if number < 4:
        raise DataError(f"There are {number} images; a study needs at least four. Take more.")
    notes = []
    if queries + negatives > number:
        fewer = min(max(number * queries // (queries + negatives), 1), number - 2)
        notes.append(
            f"There are only {number} images: {fewer} queries and {number - fewer} negatives are "
            f"used, not {queries} and {negatives}."
        )
        queries, negatives = fewer, number - fewer
    order = np.random.default_rng(seed).permutation(number)
    return order[:queries], order[queries : queries + negatives], notes


def find_images(config: Mapping[str, Any], cfg: DictConfig, cache: dict[str, Images]) -> Images:
    """Draws the images to study a run with.

    Args:
        config: Config of the run.
        cfg: Settings of the study.
        cache: Images of earlier runs, so that equal data are read once.

    Raises:
        ConfigError, DataError: The images are missing or can't be read.
    """
    data = data_config(config, cfg)
    key = json.dumps(OmegaConf.to_container(data, resolve=True), sort_keys=True, default=str)
    if key not in cache:
        split = load_split(data, train=cfg.split == "train")
        queries, negatives, notes = draw_images(
            len(split.images), cfg.queries, cfg.negatives, cfg.seed
        )
        names, depths, missing = _find_classes(split, data, cfg)
        cache[key] = Images(split, queries, negatives, names, depths, [*notes, *missing], data)
    return cache[key]


def _find_classes(
    split: Split, data: DictConfig, cfg: DictConfig
) -> tuple[Sequence[str], NDArray[Any] | None, list[str]]:
    """Names of the classes, (C, C) depths of common ancestors, and notes on what is missing."""
    if data.data.no_labels or max(split.targets) < 0:
        text = "The images have no labels: figures 4 and 5a-b and the tables of classes are missing"
        return [], None, [f"{text}, since the classes of the negatives are unknown."]
    try:
        names = classes.class_names(data.data)
    except DataError:
        names = [*split.classes]
    if len(names) != len(split.classes):
        names = [*split.classes]
    if len(set(split.targets)) < 2:
        text = (
            "All images are of one class: figures 4 and 5a-b and the tables of classes are missing"
        )
        return wordnet.readable_names(names), None, [f"{text}, since they compare classes."]
    try:
        synsets = wordnet.synsets_of(names, data.data.dataset, cfg.synsets, "synsets")
        depths = wordnet.lca_depths(synsets, "synsets")
    except DataError as error:
        note = f"Nearness in WordNet (figures 4b and 5b) is missing. {error}"
        return wordnet.readable_names(names), None, [note]
    return wordnet.readable_names(names, synsets), depths, []


def make_pipelines(
    config: Mapping[str, Any], images: Images, cfg: DictConfig, file: Path
) -> tuple[Any, Any]:
    """The transforms of queries and of negatives, as in the run of a checkpoint.

    Raises:
        ConfigError: The run's augmentations or image size are unknown.
    """
    dataset, entries = images.data.data.dataset, config.get("augmentations")
    if cfg.views == "augmented":
        if not entries:
            text = f"the augmentations of {file} are unknown: no args.json beside it has any"
            raise bad_value("views", "augmented", text, "Set views=plain.")
        pipelines = Views(dataset, entries).pipelines
        return pipelines[0], pipelines[-1]  # if there are two, the second is for the keys
    crop = cfg.crop_size or (entries or [{}])[0].get("crop_size")
    linear = OmegaConf.create({"data": config.get("data") or {}})
    for config in (linear, images.data):
        for key in ("data.augmentations.crop_size", "data.suggest.crop_size"):
            crop = crop or read(config, key)
    if not isinstance(crop, int):  # an unresolved reference is a string
        text = f"crop_size: the image size of {file} is unknown"
        raise ConfigError(f"{text}. Add crop_size=224, for instance, as in training.")
    return (plain_pipeline(dataset, crop, augment=False),) * 2
