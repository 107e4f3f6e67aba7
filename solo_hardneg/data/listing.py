"""Which files are images and which folders are classes, for both hosts and every loader.

Hidden names (.ipynb_checkpoints, .Trash-0, ._1.png) and files with an unknown ending are skipped.
Links are followed. The order is that of torchvision's ImageFolder, so that dataset indexes are the
same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from solo_hardneg.errors import DataError, printable

# torchvision's; importing torchvision takes seconds
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass
class Listing:
    """The images below a folder, and the paths that were skipped.

    Attributes:
        images: Images, in the order of their dataset indexes.
        hidden: Skipped files and folders with hidden names.
        others: Skipped files that are no images.
    """

    images: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def announce_skipped(self, where: str) -> None:
        """Prints the skipped names, if any, once per process."""
        kinds = ((self.hidden, "hidden names"), (self.others, "that are no images"))
        parts = [
            f"{len(names):,} {kind} ({abbreviate({*map(os.path.basename, names)})})"
            for names, kind in kinds
            if names
        ]
        if parts:
            _print_once(f"{where}: skipped {' and '.join(parts)}.")


def abbreviate(names: Collection[str]) -> str:
    """The first five names, sorted, for messages."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


@cache
def _print_once(text: str) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only  # takes a second to import

    rank_zero_only(print)(printable(text))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is skipped because of its name."""
    return name.startswith(".")


def class_folders(folder: str | Path, where: str, remedy: str = "") -> list[str]:
    """The names of the class folders in a folder, sorted.

    Args:
        folder: Folder that holds them.
        where: Beginning of error messages.
        remedy: Another remedy than to make class folders.

    Raises:
        DataError: The folder has no class folders, or can't be read.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{where}: it can't be read ({error}). Make it readable.") from error
    classes = sorted(e.name for e in entries if _is_folder(e) and not is_hidden(e.name))
    if not classes:
        remedy = f"Put each class in its own folder{remedy and f', or {remedy}'}."
        raise DataError(f"{where}: it holds no class folders. {remedy}")
    return classes


def list_images(folder: str | Path) -> Listing:
    """Lists the images below a folder, at any depth.

    Raises:
        DataError: A folder can't be read.
    """
    found = Listing()
    for root, names in sorted(_walk(str(folder), found, ())):
        for name in sorted(names):
            path = os.path.join(root, name)
            if is_hidden(name):
                found.hidden.append(path)
            elif name.lower().endswith(EXTENSIONS):
                found.images.append(path)
            else:
                found.others.append(path)
    return found


def _walk(folder: str, found: Listing, above: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder with its files; skips links to a folder above, which would never end."""
    real = os.path.realpath(folder)
    if any(f"{up}{os.sep}".startswith(f"{real}{os.sep}") for up in above):
        found.others.append(folder)
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        text = f"{folder}: this folder can't be read ({error.strerror})"
        raise DataError(f"{text}. Make it readable, or remove it.") from error
    yield folder, [entry.name for entry in entries if not _is_folder(entry)]
    for entry in entries:
        if _is_folder(entry) and is_hidden(entry.name):
            found.hidden.append(entry.path)
        elif _is_folder(entry):
            yield from _walk(entry.path, found, (*above, real))


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
        folder: Folder that holds the class folders.
        classes: Names of the class folders.

    Returns:
        The images of each class, and a listing of the skipped paths.

    Raises:
        DataError: A folder can't be read.
    """
    images, skipped = dict[str, list[str]](), Listing()
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            skipped.hidden.append(entry.path)
        elif not _is_folder(entry):
            skipped.others.append(entry.path)
    for name in classes:
        listing = list_images(os.path.join(folder, name))
        images[name] = listing.images
        skipped.hidden += listing.hidden
        skipped.others += listing.others
    return images, skipped


def labelled_images(
    folder: str | Path, classes: Mapping[str, int], where: str | None = None
) -> list[tuple[str, int]]:
    """The images of class folders with their labels; prints what was skipped.

    Args:
        folder: Folder that holds the class folders.
        classes: Label of each class folder.
        where: Beginning of messages; the folder by default.

    Raises:
        DataError: A class has no images, or a folder can't be read.
    """
    where = str(folder) if where is None else where
    images, skipped = class_images(folder, sorted(classes))
    if empty := [name for name in images if not images[name]]:
        known = " ".join(EXTENSIONS)
        text = f"{where}: no image is in the class folders {', '.join(empty[:5])}"
        raise DataError(f"{text}. Remove empty class folders. Known endings: {known}.")
    skipped.announce_skipped(where)
    return [(image, classes[name]) for name, of_class in images.items() for image in of_class]


def unlabelled_images(folder: str | Path, where: str | None = None) -> list[str]:
    """All images below a folder; prints what was skipped.

    Raises:
        DataError: The folder has no images, or a folder in it can't be read.
    """
    where = str(folder) if where is None else where
    found = list_images(folder)
    if not found.images:
        known = " ".join(EXTENSIONS)
        raise DataError(f"{where}: there are no images in it. Known endings: {known}.")
    found.announce_skipped(where)
    return found.images
