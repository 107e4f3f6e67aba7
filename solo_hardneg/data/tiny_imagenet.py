"""SSCL's split of TinyImageNet: validation images held out of the training images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo_hardneg.data.listing import abbreviate, class_folders, class_images, list_images
from solo_hardneg.errors import DataError, bad_value

DATASETS = ("tinyimagenet", "imagenet100")
VERSION = 1  # of the split; to be raised if the same seed ever draws other images


@dataclass(frozen=True)
class HeldOut:
    """A split on disk.

    Attributes:
        classes: Number of classes.
        train: Number of training images left.
        val: Number of validation images held out.
        seed: Seed of the draw.
        sha256: Digest of the held-out names ``class/file``, sorted by bytes, one per line.
        way: How images were placed: ``symbolic links``, ``hard links`` or ``copies``.
        existing: Whether the split was there already.
    """

    classes: int
    train: int
    val: int
    seed: int
    sha256: str
    way: str
    existing: bool


def count_images(path: Path) -> tuple[int, int, int]:
    """Counts the classes, the training images and the validation images of ``path``.

    Raises:
        DataError: ``train`` or ``val`` is missing, or a class has no images.
    """
    root = _dataset_folder(path)
    images = _training_images(root)
    return len(images), sum(map(len, images.values())), len(list_images(root / "val").images)


def hold_out(path: Path, out: Path, held_out: int = 10_000, seed: int = 0) -> HeldOut:
    """Draws a validation set from the training images of ``path``, and writes both to ``out``.

    Dong et al. 2023 (SSCL), section 4.1.1: 10,000 of TinyImageNet's 100,000 training images. The
    paper does not list them; here they are drawn uniformly over all classes. The draw depends only
    on the seed and on the names of classes and images, so both layouts of TinyImageNet (as
    downloaded, or one folder per class) give the same split. ``out`` gets ``train``, ``val`` and
    ``split.json``, all or nothing. A split that is already there is kept if it is the same.

    Args:
        path: Folder that holds ``train``, with one folder per class.
        out: Folder of the split.
        held_out: Number of validation images.
        seed: Seed of the draw.

    Raises:
        ConfigError: ``held_out`` or ``seed`` is out of range.
        DataError: Images are missing, a class would have none left for training or validation, or
            ``out`` can't be written or holds something else.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    root, out = _dataset_folder(path), Path(os.path.realpath(out.expanduser()))
    inside = any(out.is_relative_to(os.path.realpath(root / part)) for part in ("train", "val"))
    if inside or root.is_relative_to(out):
        raise _data_error(
            "out", out, "is inside the dataset or contains it", "Choose another folder"
        )
    images = _images_by_name(root)
    if not 0 < held_out < len(images):
        allowed = f"must be from 1 to {len(images) - 1:,}, as train has {len(images):,} images"
        raise bad_value("held_out", held_out, allowed)
    if not 0 <= seed < 2**32:
        raise bad_value("seed", seed, "must be from 0 to 4294967295")
    names = sorted(images, key=os.fsencode)  # independent of file system and locale
    drawn = train_test_split(names, test_size=held_out, random_state=seed)
    parts = {"train": drawn[0], "val": sorted(drawn[1], key=os.fsencode)}
    classes = {name.split("/")[0] for name in names}
    for part, remedy in (("train", "fewer"), ("val", "more")):
        if missing := classes - {name.split("/")[0] for name in parts[part]}:
            problem = f"{part} would have no image of {len(missing)} classes: {abbreviate(missing)}"
            remedy = f"Hold out {remedy}, or try another seed"
            raise _data_error("held_out", held_out, problem, remedy)
    lines = b"".join(os.fsencode(name) + b"\n" for name in parts["val"])
    counts: dict[str, Any] = {part: len(parts[part]) for part in parts}
    counts |= {"classes": len(classes), "seed": seed, "sha256": hashlib.sha256(lines).hexdigest()}
    # The path is relative, so that dataset and split can be moved together.
    facts = {"version": VERSION, "dataset": os.path.relpath(root, out), **counts}
    files = {f"{part}/{name}": images[name] for part in parts for name in parts[part]}
    existing = out.is_file() or (out.is_dir() and any(out.iterdir()))
    way = (_check_existing if existing else _write_split)(out, facts, files)
    return HeldOut(**counts, way=way, existing=existing)


def _data_error(key: str, value: Any, problem: str, remedy: str) -> DataError:
    return DataError(f"{key}={value}: {problem}. {remedy}.")


def _dataset_folder(path: Path) -> Path:
    root = Path(os.path.realpath(path.expanduser()))
    if not (root / "train").is_dir():
        problem = "there is no folder 'train' in it" if root.is_dir() else "there is no such folder"
        raise _data_error("path", path, problem, "Give the folder that holds train and val")
    return root


def _training_images(root: Path) -> dict[str, list[str]]:
    classes = class_folders(root / "train", f"path={root}: train")
    images, _ = class_images(root / "train", classes)
    if empty := [name for name in classes if not images[name]]:
        problem = f"train has {len(empty)} class folders without images: {abbreviate(empty)}"
        raise _data_error("path", root, problem, "Fill them or remove them")
    return images


def _images_by_name(root: Path) -> dict[str, str]:
    """The file of each training image by its name ``class/file``, in either layout."""
    files = [file for of_class in _training_images(root).values() for file in of_class]
    images = {os.path.relpath(f, root / "train").replace("/images/", "/", 1): f for f in files}
    if hidden := set(files) - set(images.values()):
        problem = f"train has two images of one name, the other in images/: {abbreviate(hidden)}"
        raise _data_error("path", root, problem, "Keep one of each")
    return images


def _check_existing(out: Path, facts: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Checks that ``out`` holds this split; returns how its images were placed."""
    try:
        stored = json.loads((out / "split.json").read_text(encoding="utf-8"))
        way = str(stored.pop("way"))
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        problem = "it exists and holds no split"
        raise _data_error("out", out, problem, "Choose another out") from error
    if keys := [k for k in {**stored, **facts} if stored.get(k) != facts.get(k)]:
        changes = ", ".join(f"{k}={stored.get(k)} instead of {facts.get(k)}" for k in keys)
        problem = f"it exists and holds another split: {changes}"
        raise _data_error("out", out, problem, "Choose another out, or delete this one")
    if missing := [file for file in files if not (out / file).is_file()]:
        problem = (
            f"it holds this split, but {len(missing):,} images are gone: {abbreviate(missing)}"
        )
        raise _data_error("out", out, problem, "Delete out and run this again")
    return way


def _write_split(out: Path, facts: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Writes the split in the first way that the file system supports; returns which."""
    ways: dict[str, Callable[..., object]] = {
        "symbolic links": os.symlink,
        "hard links": os.link,
        "copies": shutil.copyfile,
    }
    for way, place in ways.items():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
                made = Path(temporary, out.name)  # the temporary folder itself is private
                for name, file in files.items():
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    relative = os.path.relpath(file, (out / name).parent)
                    place(relative if place is os.symlink else os.path.realpath(file), made / name)
                text = json.dumps({**facts, "way": way}, indent=2)
                (made / "split.json").write_text(text, encoding="utf-8")
                os.rename(made, out)
            return way
        except OSError as error:
            if (out / "split.json").is_file():  # another process was faster
                return _check_existing(out, facts, files)
            reason = error
    problem = f"it can't be written ({reason})"
    raise _data_error("out", out, problem, "Set out to a folder that can be written to") from reason
