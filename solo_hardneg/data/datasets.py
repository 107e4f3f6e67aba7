"""The datasets of the standalone host: images and their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from omegaconf import DictConfig
from torch.utils.data import Dataset

from solo_hardneg.data.classes import FOLDERS
from solo_hardneg.data.images import read_image
from solo_hardneg.data.listing import class_folders, labelled_images, unlabelled_images
from solo_hardneg.errors import DataError, bad_value
from solo_hardneg.validate import read

DATASETS = ("cifar10", "cifar100", "digits", *FOLDERS)


@dataclass(frozen=True)
class Split:
    """A training or a validation set.

    Attributes:
        images: N paths, or arrays (H, W, 3) of uint8.
        targets: N indexes into ``classes``; -1 without labels.
        classes: Names of the classes.
    """

    images: Sequence[Any]
    targets: Sequence[int]
    classes: Sequence[str]

    def subset(self, indexes: Sequence[int]) -> Split:
        """The images at some indexes, in their order."""
        images, targets = self.images, self.targets
        return Split([images[i] for i in indexes], [targets[i] for i in indexes], self.classes)


class ImageDataset(Dataset):
    """Items ``(view, target)``, or ``(index, view, target)`` if ``indexed``."""

    def __init__(self, split: Split, transform: Callable[..., Any], indexed: bool = False) -> None:
        self.split, self.transform, self.indexed = split, transform, indexed
        self.classes, self.targets = split.classes, split.targets

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        item = (self.transform(read_image(self.split.images[index])), int(self.targets[index]))
        return (index, *item) if self.indexed else item


class IndexDataset(Dataset):
    """Items ``(index, [], target)``, for views that are made on the device; reads no image."""

    def __init__(self, split: Split) -> None:
        self.split, self.classes, self.targets = split, split.classes, split.targets

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> tuple[int, list[Any], int]:
        return index, [], int(self.targets[index])


def _data_folder(cfg: DictConfig, key: str) -> Path:
    path = Path(str(read(cfg, key))).expanduser()
    if not path.is_dir():
        raise DataError(f"{key}={path}: there is no such folder. Point {key} at the images.")
    return path


def class_folder_names(cfg: DictConfig, key: str = "data.train_path") -> list[str]:
    """The names of the class folders in the folder that ``key`` names, sorted.

    Raises:
        DataError: The folder is missing, or has no class folders.
    """
    path = _data_folder(cfg, key)
    return class_folders(path, f"{key}={path}", "set ++data.no_labels=true")


def load_split(cfg: DictConfig, train: bool) -> Split:
    """Loads the training or the validation set of a parsed config, and applies ``data.fraction``.

    Raises:
        ConfigError: ``data.fraction`` leaves too few images.
        DataError: Files or classes are missing.
    """
    dataset, no_labels = cfg.data.dataset, read(cfg, "data.no_labels", False)
    key = "data.train_path" if train else "data.val_path"
    if dataset == "digits":
        split = _load_digits(train)
    elif dataset in FOLDERS:
        split = _load_unlabelled(cfg, key) if no_labels else _load_folders(cfg, key, train)
    else:
        split = _load_cifar(cfg, key, train)
    if no_labels:
        split = Split(split.images, [-1] * len(split.images), split.classes)
    fraction = read(cfg, "data.fraction", -1)
    return _subsample(split, fraction, no_labels) if train and fraction > 0 else split


def _load_digits(train: bool) -> Split:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    gray = np.round(digits.images * 255 / 16).astype(np.uint8)
    images = np.repeat(gray[..., None], 3, axis=3)
    names = [str(n) for n in range(10)]
    return Split(list(images), digits.target.tolist(), names).subset(parts[0 if train else 1])


def _load_cifar(cfg: DictConfig, key: str, train: bool) -> Split:
    path, download = Path(str(read(cfg, key))).expanduser(), read(cfg, "data.download", False)
    name = cfg.data.dataset.upper()
    try:
        data = getattr(torchvision.datasets, name)(str(path), train=train, download=download)
    except (RuntimeError, OSError) as error:
        reason = f"{name} couldn't be downloaded to it" if download else f"{name} isn't in it"
        do = "Point it at the folder that holds torchvision's files, or set data.download=true"
        raise DataError(f"{key}={path}: {reason} ({error}). {do}.") from error
    return Split(data.data, data.targets, data.classes)


def _load_unlabelled(cfg: DictConfig, key: str) -> Split:
    path = _data_folder(cfg, key)
    files = unlabelled_images(path, f"{key}={path}")
    return Split(files, [-1] * len(files), ["unlabelled"])


def _load_folders(cfg: DictConfig, key: str, train: bool) -> Split:
    path, classes = _data_folder(cfg, key), class_folder_names(cfg)
    if not train and (path / "val_annotations.txt").is_file():
        return _load_annotated(path, classes)
    differing = set(classes) ^ set(class_folder_names(cfg, key))
    if differing:
        some = ", ".join(sorted(differing)[:5])
        text = f"{key}={path}: its classes aren't those of data.train_path; {len(differing)} differ"
        raise DataError(f"{text}: {some}. Both need the same class folders.")
    labels = {name: label for label, name in enumerate(classes)}
    samples = labelled_images(path, labels, f"{key}={path}")
    return Split([s[0] for s in samples], [s[1] for s in samples], classes)


def _load_annotated(path: Path, classes: list[str]) -> Split:
    """TinyImageNet's validation set as in its archive: one folder, with the classes in a table."""
    rows = (path / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    pairs = [row.split("\t")[:2] for row in rows if row.strip()]
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted({pair[-1] for pair in pairs} - set(classes))
    if unknown or not pairs or any(len(pair) != 2 for pair in pairs):
        text = f"data.val_path={path}: val_annotations.txt names classes that data.train_path lacks"
        raise DataError(f"{text}, or none: {', '.join(unknown[:5])}. Use one dataset for both.")
    images = [str(path / "images" / name) for name, _ in pairs]
    return Split(images, [index[name] for _, name in pairs], classes)


def _subsample(split: Split, fraction: float, no_labels: bool) -> Split:
    from sklearn.model_selection import train_test_split

    labels = None if no_labels else split.targets
    try:
        # random_state as in solo-learn, which gives the same images
        kept, _ = train_test_split(
            range(len(split.images)), train_size=fraction, stratify=labels, random_state=42
        )
    except ValueError as error:
        raise bad_value("data.fraction", fraction, f"too few images for it: {error}") from error
    return split.subset(kept)
