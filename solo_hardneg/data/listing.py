"""Which files are images and which folders are classes, in both hosts and for every loader.

Names that begin with a dot are neither (.ipynb_checkpoints, .Trash-0, ._1.png), nor are files with
an unknown ending. Links are followed. The order is that of torchvision's ImageFolder, so dataset
indexes are the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from solo_hardneg.errors import DataError, printable

# torchvision's, which takes seconds to import
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass
class Listing:
    """The images below a folder, and the paths that were passed over.

    Attributes:
        images: in the order of their dataset indexes.
        hidden: files and folders hidden names.
        others: files that are no images.
    """

    images: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def announce(self, where: str) -> None:
        """Says once how many names were passed over, if any."""
        kinds = ((self.hidden, "hidden names"), (self.others, "that are no images"))
        parts = [
            f"{len(names):,} {what} ({some({*map(os.path.basename, names)})})"
            for names, what in kinds
            if names
        ]
        if parts:
            _say(f"{where}: passed over {' and '.join(parts)}.")


def some(names: Collection[str]) -> str:
    """The first few names, in their order of sorting."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


@cache
def _say(text: str) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only  # takes a second to import

    rank_zero_only(print)(printable(text))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over for its name."""
    return name.startswith(".")


def is_image(name: str) -> bool:
    """Whether a file name has the ending of an image."""
    return name.lower().endswith(EXTENSIONS)


def find_classes(folder: str | Path) -> list[str]:
    """The names of the class folders in a folder, sorted; possibly none.

    Raises:
        OSError: the folder can't be read.
    """
    entries = list(os.scandir(folder))
    return sorted(e.name for e in entries if _is_folder(e) and not is_hidden(e.name))


def class_folders(folder: str | Path, where: str, do: str = "") -> list[str]:
    """The names of the class folders in a folder, sorted, where there must be some.

    Args:
        folder: holds them.
        where: what messages begin with.
        do: another remedy than to make such folders.

    Raises:
        DataError: the folder has no class folders, or can't be read.
    """
    try:
        classes = find_classes(folder)
    except OSError as error:
        raise DataError(f"{where}: it can't be read ({error}). Make it readable.") from error
    if not classes:
        do = f"Put each class in a folder of its own{do and f', or {do}'}."
        raise DataError(f"{where}: it holds no class folders. {do}")
    return classes


def list_images(folder: str | Path) -> Listing:
    """Lists the images below a folder, at any depth.

    Raises:
        DataError: a folder can't be read.
    """
    found = Listing()
    for root, names in sorted(_walk(str(folder), found, ())):
        for name in sorted(names):
            path = os.path.join(root, name)
            if is_hidden(name):
                found.hidden.append(path)
            elif is_image(name):
                found.images.append(path)
            else:
                found.others.append(path)
    return found


def _walk(folder: str, passed: Listing, above: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder with its files; leaves links to a folder above, which would never end."""
    real = os.path.realpath(folder)
    if any(f"{up}{os.sep}".startswith(f"{real}{os.sep}") for up in above):
        passed.others.append(folder)
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        text = f"{folder}: this folder can't be read ({error.strerror})"
        raise DataError(f"{text}. Make it readable, or remove it.") from error
    yield folder, [entry.name for entry in entries if not _is_folder(entry)]
    for entry in entries:
        if _is_folder(entry) and is_hidden(entry.name):
            passed.hidden.append(entry.path)
        elif _is_folder(entry):
            yield from _walk(entry.path, passed, (*above, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def class_images(
    folder: str | Path, classes: Iterable[str]
) -> tuple[dict[str, list[str]], Listing]:
    """Lists the images of class folders.

    Args:
        folder: holds the class folders.
        classes: their names.

    Returns:
        the images of each, and the paths that were passed over.

    Raises:
        DataError: a folder can't be read.
    """
    found, passed = dict[str, list[str]](), Listing()
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            passed.hidden.append(entry.path)
        elif not _is_folder(entry):
            passed.others.append(entry.path)
    for name in classes:
        listing = list_images(os.path.join(folder, name))
        found[name] = listing.images
        passed.hidden += listing.hidden
        passed.others += listing.others
    return found, passed


def labelled_images(
    folder: str | Path, classes: Mapping[str, int], where: str | None = None
) -> list[tuple[str, int]]:
    """The images of class folders with their labels, and says what was passed over.

    Args:
        folder: holds the class folders.
        classes: the label of each.
        where: what messages begin with; the folder by default.

    Raises:
        DataError: a class has no images, or a folder can't be read.
    """
    where = str(folder) if where is None else where
    found, passed = class_images(folder, sorted(classes))
    if empty := [name for name, images in found.items() if not images]:
        known = " ".join(EXTENSIONS)
        text = f"{where}: no image is in the class folders {', '.join(empty[:5])}"
        raise DataError(f"{text}. Remove empty class folders. Known endings: {known}.")
    passed.announce(where)
    return [(image, classes[name]) for name, images in found.items() for image in images]


def unlabelled_images(folder: str | Path, where: str | None = None) -> list[str]:
    """All images below a folder, and says what was passed over.

    Raises:
        DataError: the folder has no images, or a folder in it can't be read.
    """
    where = str(folder) if where is None else where
    found = list_images(folder)
    if not found.images:
        known = " ".join(EXTENSIONS)
        raise DataError(f"{where}: there are no images in it. Known endings: {known}.")
    found.announce(where)
    return found.images
