"""The names of a run's classes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.data.listing import class_folders
from solo_hardneg.errors import DataError
from solo_hardneg.files import encodable

FOLDERS = ("custom", "imagenet", "imagenet100", "tinyimagenet")


@cache
def shipped_synsets(dataset: str) -> dict[str, str]:
    """The classes of CIFAR-10 or CIFAR-100 in label order, with their wnids; else empty.

    ``synsets_cifar.csv`` gives each class the noun synset of WordNet 3.0 that its images show, with
    the reason in ``note`` where it isn't obvious. The file names in CIFAR-100 contain the words of
    WordNet with which the images were searched.
    """
    table = resources.files("solo_hardneg.data").joinpath("synsets_cifar.csv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row["class"]: row["wnid"] for row in rows if row["dataset"] == dataset}


def class_names(data: Mapping[Any, Any]) -> list[str]:
    """The names of a dataset's classes, in the order of their labels.

    Args:
        data: The run's ``data`` config: ``dataset``, ``train_path``, ``format``, ``no_labels``.

    Raises:
        DataError: The images have no labels, or the names of their classes are unknown.
    """
    if isinstance(data, DictConfig):
        data = cast(dict, OmegaConf.to_container(data, resolve=True))
    if data.get("no_labels"):
        do = "Set data.no_labels=False if each class has its own folder"
        raise DataError(
            f"data.no_labels={data['no_labels']}: images without labels have no classes. {do}."
        )
    dataset = str(data.get("dataset"))
    if dataset == "digits":
        return [str(digit) for digit in range(10)]
    if shipped_synsets(dataset):
        return list(shipped_synsets(dataset))
    if dataset not in FOLDERS:
        known = ", ".join(("cifar10", "cifar100", "digits", *FOLDERS))
        text = f"data.dataset={dataset}: the names of its classes are not known; known: {known}"
        raise DataError(f"{text}. With one folder per class, data.dataset=custom reads any images.")
    if data.get("format") == "h5":
        do = "Set data.format=image_folder and data.train_path to the same images as folders"
        raise DataError(f"data.format=h5: class names are read from folders, not from HDF5. {do}.")
    return _folder_names(data.get("train_path"))


def _folder_names(train_path: Any) -> list[str]:
    """The sub-folders of ``train_path``, sorted as the loaders number them."""
    if train_path in (None, "", "???"):
        do = "Point it at the training images, one folder per class"
        raise DataError(f"data.train_path={train_path}: it names no folder. {do}.")
    path = Path(str(train_path)).expanduser()
    if not path.is_dir():
        do = "Point it at the training images; classes are named after their folders"
        raise DataError(f"data.train_path={path}: there is no such folder. {do}.")
    return [encodable(name) for name in class_folders(path, f"data.train_path={path}")]
