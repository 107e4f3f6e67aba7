"""Images and their labels, and the loaders that hand them to training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset

from solo_hardneg.data.images import read_image
from solo_hardneg.data.listing import class_folders, labelled_images, unlabelled_images
from solo_hardneg.data.loader import CheckedLoader
from solo_hardneg.errors import DataError, bad_value
from solo_hardneg.standalone.checks import number_of_devices, read
from solo_hardneg.standalone.trainer import check_trainer
from solo_hardneg.standalone.transforms import Views, plain_pipeline

FOLDERS = ("custom", "imagenet", "imagenet100", "tinyimagenet")
DATASETS = ("cifar10", "cifar100", "digits", *FOLDERS)
FORMATS = ("image_folder", "resident", "dali")


@dataclass(frozen=True)
class Split:
    """The images of a training or a validation set.

    ``images`` holds paths, or arrays (H, W, 3) of uint8; ``targets`` the index of each one's
    class in ``classes``, or -1 where labels are not used.
    """

    images: Sequence[Any]
    targets: Sequence[int]
    classes: Sequence[str]

    def subset(self, indexes: Sequence[int]) -> Split:
        """The images at these indexes, in this order."""
        images, targets = self.images, self.targets
        return Split([images[i] for i in indexes], [targets[i] for i in indexes], self.classes)


class ImageDataset(Dataset):
    """Items ``(transformed image, target)``, or ``(index, transformed image, target)``."""

    def __init__(self, split: Split, transform: Callable[..., Any], indexed: bool = False) -> None:
        self.split, self.transform, self.indexed = split, transform, indexed
        self.classes, self.targets = split.classes, split.targets

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        item = (self.transform(read_image(self.split.images[index])), int(self.targets[index]))
        return (index, *item) if self.indexed else item


class IndexDataset(Dataset):
    """Items ``(index, [], target)``: the views are made elsewhere, and no image is read."""

    def __init__(self, split: Split) -> None:
        self.split, self.classes, self.targets = split, split.classes, split.targets

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> tuple[int, list[Any], int]:
        return index, [], int(self.targets[index])


def folder(cfg: DictConfig, key: str) -> Path:
    """The folder that ``key`` names; raises DataError if there is none."""
    path = Path(str(read(cfg, key))).expanduser()
    if not path.is_dir():
        raise DataError(f"{key}={path}: there is no such folder. Point {key} at the images.")
    return path


def class_names(cfg: DictConfig, key: str = "data.train_path") -> list[str]:
    """The names of the class folders under the folder of ``key``, sorted."""
    path = folder(cfg, key)
    return class_folders(path, f"{key}={path}", "set ++data.no_labels=true")


def load_split(cfg: DictConfig, train: bool) -> Split:
    """The training or the validation set of a parsed config, with ``data.fraction`` applied.

    Raises:
        DataError: files or classes are missing.
    """
    dataset, no_labels = cfg.data.dataset, read(cfg, "data.no_labels", False)
    key = "data.train_path" if train else "data.val_path"
    if dataset == "digits":
        split = _digits(train)
    elif dataset in FOLDERS:
        split = _unlabelled(cfg, key) if no_labels else _folders(cfg, key, train)
    else:
        split = _cifar(cfg, key, train)
    if no_labels:
        split = Split(split.images, [-1] * len(split.images), split.classes)
    fraction = read(cfg, "data.fraction", -1)
    return _part(split, fraction, no_labels) if train and fraction > 0 else split


def _digits(train: bool) -> Split:
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


def _cifar(cfg: DictConfig, key: str, train: bool) -> Split:
    path, download = Path(str(read(cfg, key))).expanduser(), read(cfg, "data.download", False)
    name = cfg.data.dataset.upper()
    try:
        data = getattr(torchvision.datasets, name)(str(path), train=train, download=download)
    except (RuntimeError, OSError) as error:
        reason = f"{name} couldn't be downloaded to it" if download else f"{name} isn't in it"
        do = "Point it at the folder that holds torchvision's files, or set data.download=true"
        raise DataError(f"{key}={path}: {reason} ({error}). {do}.") from error
    return Split(data.data, data.targets, data.classes)


def _unlabelled(cfg: DictConfig, key: str) -> Split:
    path = folder(cfg, key)
    files = unlabelled_images(path, f"{key}={path}")
    return Split(files, [-1] * len(files), ["unlabelled"])


def _folders(cfg: DictConfig, key: str, train: bool) -> Split:
    path, classes = folder(cfg, key), class_names(cfg)
    if not train and (path / "val_annotations.txt").is_file():
        return _tiny_imagenet_val(path, classes)
    differing = set(classes) ^ set(class_names(cfg, key))
    if differing:
        some = ", ".join(sorted(differing)[:5])
        text = f"{key}={path}: its classes aren't those of data.train_path; {len(differing)} differ"
        raise DataError(f"{text}: {some}. Both need the same class folders.")
    labels = {name: label for label, name in enumerate(classes)}
    samples = labelled_images(path, labels, f"{key}={path}")
    return Split([s[0] for s in samples], [s[1] for s in samples], classes)


def _tiny_imagenet_val(path: Path, classes: list[str]) -> Split:
    """TinyImageNet's own layout: all images in one folder, their classes in a table."""
    rows = (path / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    pairs = [row.split("\t")[:2] for row in rows if row.strip()]
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted({pair[-1] for pair in pairs} - set(classes))
    if unknown or not pairs or any(len(pair) != 2 for pair in pairs):
        text = f"data.val_path={path}: val_annotations.txt names classes that data.train_path lacks"
        raise DataError(f"{text}, or none: {', '.join(unknown[:5])}. Point both at one dataset.")
    images = [str(path / "images" / name) for name, _ in pairs]
    return Split(images, [index[name] for _, name in pairs], classes)


def _part(split: Split, fraction: float, no_labels: bool) -> Split:
    from sklearn.model_selection import train_test_split

    labels = None if no_labels else split.targets
    try:
        # random_state as in the host: the same images
        kept, _ = train_test_split(
            range(len(split.images)), train_size=fraction, stratify=labels, random_state=42
        )
    except ValueError as error:
        raise bad_value("data.fraction", fraction, f"too few images for it: {error}") from error
    return split.subset(kept)


def make_loader(cfg: DictConfig, dataset: Any, train: bool) -> DataLoader:
    """Batches of a dataset: in random order and complete for training, else all and in order."""
    if train:
        _check_batch(cfg, len(dataset))
    return CheckedLoader(
        dataset,
        batch_size=cfg.optimizer.batch_size,
        shuffle=train,
        drop_last=train,
        # with nothing to decode, to hand a batch over would take longer than to make it
        num_workers=0 if isinstance(dataset, IndexDataset) else read(cfg, "data.num_workers", 0),
        pin_memory=torch.cuda.is_available(),
    )


def _check_batch(cfg: DictConfig, images: int) -> None:
    batch = cfg.optimizer.batch_size
    share = images // (number_of_devices(cfg) * read(cfg, "num_nodes", 1))
    if share < batch:
        allowed = f"there are only {share} training images for each device, not one full batch"
        raise bad_value("optimizer.batch_size", batch, allowed, f"Set it to {share} or less.")


def plain_loader(cfg: DictConfig, train: bool, crop: int) -> DataLoader:
    """All images of a set once and in order, without augmentation: batches ``[X, targets]``."""
    dataset = ImageDataset(load_split(cfg, train), plain_pipeline(cfg.data.dataset, crop, False))
    return make_loader(cfg, dataset, train=False)


def _training_loader(cfg: DictConfig, transform: Any, indexed: bool) -> Any:
    """Complete batches in random order, of the views that torchvision's pipelines describe."""
    split = load_split(cfg, True)
    if read(cfg, "data.format") == "dali":
        _check_batch(cfg, len(split.images))
        from solo_hardneg.resident.recipe import read_pipeline
        from solo_hardneg.standalone.dali import DaliLoader

        pipelines = transform.pipelines if indexed else [transform]
        return DaliLoader(split, [read_pipeline(p) for p in pipelines], cfg, indexed)
    if read(cfg, "data.format") == "resident":
        return make_loader(cfg, IndexDataset(split), train=True)
    return make_loader(cfg, ImageDataset(split, transform, indexed), train=True)


def pretrain_loaders(cfg: DictConfig) -> tuple[Any, DataLoader | None]:
    """Loaders of ``[indexes, [X1, X2], targets]`` and, with ``data.val_path``, ``[X, targets]``.

    With ``data.format=resident`` there are no views: a callback puts them in on the device. For
    training the classifier it's the same. With ``data.format=dali`` DALI reads the files.
    """
    entries: Any = OmegaConf.to_container(cfg.augmentations, resolve=True)
    train = _training_loader(cfg, Views(cfg.data.dataset, entries), indexed=True)
    val = None
    if cfg.data.val_path is not None and not cfg.data.no_labels:
        val = plain_loader(cfg, False, entries[0]["crop_size"])
    return _checked(cfg, train, val)


def linear_loaders(cfg: DictConfig) -> tuple[Any, DataLoader]:
    """Loaders of ``[X, targets]`` for training the classifier, and for validation."""
    crop = cfg.data.augmentations.crop_size
    train = _training_loader(cfg, plain_pipeline(cfg.data.dataset, crop, True), indexed=False)
    return _checked(cfg, train, plain_loader(cfg, False, crop))


def _checked(cfg: DictConfig, train: Any, val: Any) -> tuple[Any, Any]:
    """The loaders, once Lightning is known to take the config with so many batches."""
    if number_of_devices(cfg) * read(cfg, "num_nodes", 1) > 1:
        check_trainer(cfg, None, None)  # each gets a part, how many Lightning decides
    else:
        check_trainer(cfg, len(train), None if val is None else len(val))
    return train, val
