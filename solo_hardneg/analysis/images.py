"""Which images a checkpoint is studied with, their classes, and how they become tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.analysis import classes, wordnet
from solo_hardneg.errors import ConfigError, DataError, bad_value
from solo_hardneg.standalone.checks import REQUIRED, Number, Rules, read, settle
from solo_hardneg.standalone.data import DATASETS, Split, load_split
from solo_hardneg.standalone.transforms import Views, plain_pipeline

_DATA_RULES: Rules = {
    "data.dataset": (REQUIRED, DATASETS),
    "data.format": ("image_folder", None),
    "data.no_labels": (False, bool),
    "data.download": (False, bool),
    "data.fraction": (-1, Number()),
}
DATA_KEYS = {
    *(key.removeprefix("data.") for key in _DATA_RULES),
    *("train_path", "val_path", "num_workers", "suggest"),
}


@dataclass(frozen=True)
class Images:
    """The images of a study.

    Attributes:
        split: all there are.
        queries, negatives: which of them are drawn.
        names, depths: the classes and their nearness, as far as they are known.
        notes: what is missing.
        data: their config.
    """

    split: Split
    queries: NDArray[Any]
    negatives: NDArray[Any]
    names: Sequence[str] = ()
    depths: NDArray[Any] | None = None
    notes: Sequence[str] = ()
    data: Any = None


def data_config(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """``data`` of the run, or of ``data=...``, with single keys changed."""
    own, given = config.get("data") or {}, cfg.get("data") or {}
    # Only a whole group says both; single keys change what the run had.
    whole = "suggest" in given
    data = OmegaConf.create({"data": given if whole else OmegaConf.merge(own, given)})
    settle(data, _DATA_RULES)
    if data.data.format not in ("image_folder", "resident", "dali"):  # all read the same files
        do = "Set data.format=image_folder, and data.train_path to the same images as folders."
        allowed = "must be image_folder, resident or dali"
        raise bad_value("data.format", data.data.format, allowed, do)
    return data


def draw(number: int, queries: int, negatives: int, seed: int) -> tuple[Any, Any, list[str]]:
    """Draws queries and negatives, which are different images.

    Where there are too few images, both shrink in proportion, and a note says so.

    Returns:
        their indexes, (N,) and (M,), and notes.

    Raises:
        DataError: there are fewer than four images.
    """
    if number < 4:
        raise DataError(f"There are {number} images; a study needs at least four. Take more.")
    notes = []
    if queries + negatives > number:
        fewer = min(max(number * queries // (queries + negatives), 1), number - 2)
        notes.append(
            f"There are only {number} images: {fewer} queries and {number - fewer} negatives were "
            f"taken, not {queries} and {negatives}."
        )
        queries, negatives = fewer, number - fewer
    order = np.random.default_rng(seed).permutation(number)
    return order[:queries], order[queries : queries + negatives], notes


def find_images(config: Mapping[str, Any], cfg: DictConfig, known: dict[str, Images]) -> Images:
    """Draws the images to study a run with.

    Args:
        config: the run's.
        cfg: the settings of the study.
        known: those of runs before; equal data are read once.

    Raises:
        ConfigError, DataError: the images can't be had.
    """
    data = data_config(config, cfg)
    key = json.dumps(OmegaConf.to_container(data, resolve=True), sort_keys=True, default=str)
    if key not in known:
        split = load_split(data, train=cfg.split == "train")
        queries, negatives, notes = draw(len(split.images), cfg.queries, cfg.negatives, cfg.seed)
        names, depths, missing = _classes(split, data, cfg)
        known[key] = Images(split, queries, negatives, names, depths, [*notes, *missing], data)
    return known[key]


def _classes(
    split: Split, data: DictConfig, cfg: DictConfig
) -> tuple[Sequence[str], NDArray[Any] | None, list[str]]:
    """The names of the classes, their nearness in WordNet, and what is missing."""
    if data.data.no_labels or max(split.targets) < 0:
        text = "The images have no labels: figures 4 and 5a-b and the tables of classes are missing"
        return [], None, [f"{text}, because it isn't known which negatives are of which class."]
    try:
        names = classes.class_names(data.data)
    except DataError:
        names = [*split.classes]
    if len(names) != len(split.classes):
        names = [*split.classes]
    if len(set(split.targets)) < 2:
        text = "All images are of one class: figures 4 and 5a-b and the tables of classes are"
        return classes.readable(names), None, [f"{text} missing, because they compare classes."]
    try:
        synsets = wordnet.synsets_of(names, data.data.dataset, cfg.synsets, "synsets")
        depths = wordnet.lca_depths(synsets, "synsets")
    except DataError as error:
        note = f"Nearness in WordNet (figures 4b and 5b) is missing. {error}"
        return classes.readable(names), None, [note]
    return classes.readable(names, synsets), depths, []


def pipelines_of(
    config: Mapping[str, Any], images: Images, cfg: DictConfig, file: Path
) -> tuple[Any, Any]:
    """What makes tensors of the queries and of the negatives of the run of a checkpoint.

    Raises:
        ConfigError: it isn't known how the run's images were made.
    """
    dataset, entries = images.data.data.dataset, config.get("augmentations")
    if cfg.views == "augmented":
        if not entries:
            text = f"the augmentations of {file} are not known: no args.json beside it has any"
            raise bad_value("views", "augmented", text, "Set views=plain.")
        pipelines = Views(dataset, entries).pipelines
        return pipelines[0], pipelines[-1]  # where they differ, the second one is the keys'
    crop = cfg.crop_size or (entries or [{}])[0].get("crop_size")
    linear = OmegaConf.create({"data": config.get("data") or {}})
    for config in (linear, images.data):
        for key in ("data.augmentations.crop_size", "data.suggest.crop_size"):
            crop = crop or read(config, key)
    if not isinstance(crop, int):  # a reference that can't be filled in is a text
        text = f"crop_size: it isn't known how large the images of {file} were"
        raise ConfigError(f"{text}. Add crop_size=224, for instance, as in training.")
    return (plain_pipeline(dataset, crop, augment=False),) * 2
