"""The names of the classes that a run's labels stand for."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.analysis.untrusted import encodable
from solo_hardneg.data.listing import class_folders
from solo_hardneg.errors import DataError

FOLDERS = ("custom", "imagenet", "imagenet100", "tinyimagenet")


@cache
def shipped(dataset: str) -> dict[str, str]:
    """The classes of CIFAR-10 or CIFAR-100 in label order, each with its wnid; others: empty.

    From ``synsets_cifar.csv``, where each class has the noun synset of WordNet 3.0 that its images
    show; ``note`` says why, where that isn't plain. In CIFAR-100's own files, the names of the
    images tell which words of WordNet they were searched for with.
    """
    table = resources.files("solo_hardneg.analysis").joinpath("synsets_cifar.csv")
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row["class"]: row["wnid"] for row in rows if row["dataset"] == dataset}


def class_names(data: Mapping[Any, Any]) -> list[str]:
    """The names of a dataset's classes, in the order of their labels.

    Args:
        data: a run's ``data`` config: ``dataset``, ``train_path``, ``format``, ``no_labels``.

    Raises:
        DataError: the images have no labels, or the names of their classes can't be had.
    """
    if isinstance(data, DictConfig):
        data = cast(dict, OmegaConf.to_container(data, resolve=True))
    if data.get("no_labels"):
        do = "Set data.no_labels=False if each class has a folder of its own"
        raise DataError(
            f"data.no_labels={data['no_labels']}: images without labels have no classes. {do}."
        )
    dataset = str(data.get("dataset"))
    if dataset == "digits":
        return [str(digit) for digit in range(10)]
    if shipped(dataset):
        return list(shipped(dataset))
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
        do = "Point it at the training images: the names of the classes are those of its folders"
        raise DataError(f"data.train_path={path}: there is no such folder. {do}.")
    return [encodable(name) for name in class_folders(path, f"data.train_path={path}")]


def readable(names: Sequence[str], synsets: Sequence[str] | None = None) -> list[str]:
    """Names for people: ``n01440764`` becomes ``tench``, ``sweet_pepper`` ``sweet pepper``.

    A wnid is replaced by the first lemma of its synset; where two classes share one, the synset
    above tells them apart (``crane (wading bird)``), or else the name itself. Without WordNet, or
    where it lacks a wnid, wnids stay: this only makes figures easier to read.

    Args:
        names: C names of classes.
        synsets: the wnid of each class, C of them; None: those names that are wnids.
    """
    from solo_hardneg.analysis import wordnet  # it imports this module

    wnids = [
        synset if wordnet.is_wnid(name) else ""
        for name, synset in zip(names, names if synsets is None else synsets, strict=True)
    ]
    try:
        lemmas = wordnet.first_lemmas([wnid for wnid in wnids if wnid])
    except DataError:
        lemmas = {}
    nothing = ("", "")
    plain = [lemmas.get(w, nothing)[0] or n for n, w in zip(names, wnids, strict=True)]
    above = [lemmas.get(w, nothing)[1] for w in wnids]
    labels = [label.replace("_", " ") for label in plain]
    labels = _told_apart(labels, [hypernym.replace("_", " ") for hypernym in above])
    return _told_apart(labels, names)


def _told_apart(labels: Sequence[str], by: Sequence[str]) -> list[str]:
    """Adds ``by`` in brackets to those labels that occur more than once."""
    number = Counter(labels)
    return [
        f"{label} ({extra})" if number[label] > 1 and extra else label
        for label, extra in zip(labels, by, strict=True)
    ]
