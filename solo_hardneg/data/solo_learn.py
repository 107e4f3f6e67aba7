"""Applies the rules of this folder inside solo-learn, whose files are not changed.

solo-learn's functions look up ``ImageFolder``, ``DataLoader`` and ``os`` in their modules when they
are called, so these names are rebound there.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torchvision.datasets import ImageFolder

from solo_hardneg.data import images
from solo_hardneg.data.listing import class_folders, is_hidden, labelled_images, unlabelled_images
from solo_hardneg.data.loader import CheckedLoader
from solo_hardneg.data.mixins import add_mixin

_LOADERS = ("solo.data.pretrain_dataloader", "solo.data.classification_dataloader")
_COUNT_CLASSES = ("solo.args.pretrain", "solo.args.linear")


class Folders(ImageFolder):
    """torchvision's ImageFolder with our rules for classes, images, and opening them."""

    def __init__(self, root: str | Path, transform: Any = None) -> None:
        super().__init__(str(root), transform, loader=images.open_rgb)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The class folders and their labels.

        Raises:
            DataError: The folder has no class folders, or can't be read.
        """
        classes = class_folders(directory, str(directory), "set ++data.no_labels=true")
        return classes, {name: label for label, name in enumerate(classes)}

    @staticmethod
    def make_dataset(
        directory: str | Path, class_to_idx: Mapping[str, int], *_: Any, **__: Any
    ) -> list[tuple[str, int]]:
        """The images with their labels."""
        return labelled_images(directory, class_to_idx)


def extend_loaders() -> None:
    """Applies our rules to solo-learn's datasets and loaders; calling it again is harmless."""
    for name in _LOADERS:
        module: Any = importlib.import_module(name)
        module.ImageFolder, module.DataLoader = Folders, CheckedLoader
        for part, mixin in _MIXINS.items():
            add_mixin(module, [part], mixin)
    for name in _COUNT_CLASSES:
        counting: Any = importlib.import_module(name)
        counting.os = visible_os()


def visible_os() -> ModuleType:
    """``os`` with a ``scandir`` that skips hidden names; solo-learn counts classes with it."""
    stand_in = ModuleType("os")
    vars(stand_in).update(vars(os))
    stand_in.scandir = _visible_entries  # type: ignore[attr-defined]
    return stand_in


def _visible_entries(path: Any) -> list[os.DirEntry[str]]:
    return [entry for entry in os.scandir(path) if not is_hidden(entry.name)]


class _Unlabelled:
    """Mixin for solo-learn's ``CustomDatasetWithoutLabels``."""

    def __init__(self, root: str | Path, transform: Any = None) -> None:
        super().__init__(root, transform)  # type: ignore[call-arg]
        self.root, self.transform = Path(root), transform
        self.images = [os.path.relpath(image, root) for image in unlabelled_images(root)]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = images.open_rgb(self.root / self.images[index])
        return image if self.transform is None else self.transform(image), -1


class _OpensRGB:
    """Mixin for solo-learn's ``H5Dataset``."""

    h5_path: Any
    h5_file: Any

    def _load_img(self, class_name: str, img: str) -> Any:
        content = self.h5_file[class_name][img][:]
        return images.open_rgb(io.BytesIO(content), f"{self.h5_path}: {class_name}/{img}")


_MIXINS = {"H5Dataset": _OpensRGB, "CustomDatasetWithoutLabels": _Unlabelled}
