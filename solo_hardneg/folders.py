"""Whether folders hold TinyImageNet or ImageNet-100, and SSCL's split; nothing is decoded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo_hardneg.data.listing import class_folders, class_images, find_classes, some
from solo_hardneg.errors import DataError, bad_value, unknown_name


@dataclass(frozen=True)
class Expected:
    """How many there should be: classes, and images of each in training and validation."""

    classes: int
    fewest: int
    most: int
    val: int


# TinyImageNet by its makers; ImageNet-100 is a part of ILSVRC 2012, whose classes have 732 to 1,300
# training images and 50 for validation (Russakovsky et al. 2015, Table 2).
EXPECTED = {
    "tinyimagenet": Expected(200, 500, 500, 50),
    "imagenet100": Expected(100, 732, 1300, 50),
}
_GET = {
    "tinyimagenet": "Get tiny-imagenet-200.zip from the page of Stanford's course CS231n "
    "(cs231n.stanford.edu), unpack it, and give the folder tiny-imagenet-200",
    "imagenet100": "Get ILSVRC 2012 from ImageNet's page (image-net.org), link 100 classes (such "
    "as HobbitLong/CMC's on GitHub) to train/<wnid> and val/<wnid>, and give the folder above",
}
_FLAT = {
    "tinyimagenet": "Unpack tiny-imagenet-200.zip again: its val_annotations.txt says the classes",
    "imagenet100": "Move each to the folder of its class, val/<wnid>, for the classes of train; "
    "valprep.sh (soumith/imagenetloader.torch on GitHub) knows the classes of ILSVRC 2012",
}
VERSION = 1  # of the split: another one may draw other images from the same seed
Names = Collection[str]
WAYS = ("symbolic links", "hard links", "copies")  # the first that the file system can do


@dataclass(frozen=True)
class Layout:
    """Classes, their images in training and validation, and what is odd but stops neither."""

    classes: tuple[str, ...]
    train: Mapping[str, int]
    val: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A split, made in one of ``WAYS``, or ``existing`` before and left alone.

    ``sha256`` is that of the held-out names: ``class/file``, sorted by bytes, each with a newline.
    """

    classes: int
    train: int
    val: int
    seed: int
    sha256: str
    way: str
    existing: bool
    notes: tuple[str, ...]


def check(dataset: str, path: Path, expected: Expected | None = None) -> Layout:
    """Looks how complete a dataset is, compared with ``expected``, else with the published one.

    ``path`` is the folder with ``train`` and ``val``, ``dataset`` one of ``EXPECTED``.

    Raises:
        ConfigError: the dataset has another name.
        DataError: training or validation would fail, or use other classes than the dataset's.
    """
    if dataset not in EXPECTED:
        raise unknown_name("dataset", dataset, EXPECTED, "dataset")
    want = expected or EXPECTED[dataset]
    root, notes = _root(path, _GET[dataset]), list[str]()
    train = {name: len(files) for name, files in _images(root, "train", notes).items()}
    if (root / "wnids.txt").is_file():
        _same(root, "train", train, "wnids.txt", (root / "wnids.txt").read_text("latin1").split())
    if strange := [name for name in train if not re.fullmatch(r"n\d{8}", name)]:
        notes.append(f"train: {len(strange)} class names aren't WordNet's: {some(strange)}.")
    if len(train) != want.classes:
        what = " ".join([f"train has {len(train):,} classes, not {want.classes:,}.", *notes])
        raise _wrong(root, what.removesuffix("."), f"Add or remove classes. {_GET[dataset]}")
    val = _val(root, dataset, train, notes)
    if (root / "split.json").is_file():
        notes.append("split.json: a split was drawn here, so numbers of images aren't checked.")
    else:
        notes += _sizes("train", train, want.fewest, want.most)
        notes += _sizes("val", val, want.val, want.val)
    return Layout(tuple(train), train, val, tuple(notes))


def split(path: Path, out: Path, held_out: int = 10_000, seed: int = 0) -> Split:
    """Draws a validation set from the training images of ``path``, and writes both to ``out``.

    Dong et al. 2023 (SSCL), section 4.1.1: 10,000 of TinyImageNet's 100,000 training images, drawn
    uniformly, not class by class; the paper doesn't say which. They depend on the seed and on the
    names of classes and images alone, so both layouts of TinyImageNet give the same. ``out`` gets
    ``train``, ``val`` and ``split.json``, all or nothing. If it has the same ones, it stays.

    Raises:
        ConfigError: ``held_out`` or ``seed`` is out of range.
        DataError: images are missing, a class would have none left for training or validation, or
            ``out`` can't be written or holds something else.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    root = Path(os.path.realpath(_root(path, "Give the folder that holds train")))
    out = Path(os.path.realpath(out.expanduser()))
    among = any(out.is_relative_to(os.path.realpath(root / part)) for part in ("train", "val"))
    if among or root.is_relative_to(out):
        raise _wrong(out, "it holds images or lies among them", "Choose a folder elsewhere", "out")
    notes = list[str]()
    found = [file for files in _images(root, "train", notes).values() for file in files]
    # named as in one folder per class, without the folders "images" of TinyImageNet's own layout
    images = {os.path.relpath(f, root / "train").replace("/images/", "/", 1): f for f in found}
    if twice := set(found) - set(images.values()):
        what = f"train has two images of one name, the other in images/: {some(twice)}"
        raise _wrong(root, what, "Keep one of each")
    if not 0 < held_out < len(images):
        allowed = f"must be from 1 to {len(images) - 1:,}, as train has {len(images):,} images"
        raise bad_value("held_out", held_out, allowed)
    if not 0 <= seed < 2**32:
        raise bad_value("seed", seed, "must be from 0 to 4294967295")
    names = sorted(images, key=os.fsencode)  # the file system's order is anybody's guess
    drawn = train_test_split(names, test_size=held_out, random_state=seed)
    parts = {"train": drawn[0], "val": sorted(drawn[1], key=os.fsencode)}
    classes = {name.split("/")[0] for name in names}
    for part, do in (("train", "fewer"), ("val", "more")):
        if left := classes - {name.split("/")[0] for name in parts[part]}:
            what = f"{part} would have no image of {len(left)} classes: {some(left)}"
            raise _wrong(held_out, what, f"Hold out {do}, or try another seed", "held_out")
    lines = b"".join(os.fsencode(name) + b"\n" for name in parts["val"])
    counts: dict[str, Any] = {part: len(parts[part]) for part in parts}
    counts |= {"classes": len(classes), "seed": seed, "sha256": hashlib.sha256(lines).hexdigest()}
    # the way from out to the dataset, as both may be moved
    facts = {"version": VERSION, "dataset": os.path.relpath(root, out), **counts}
    files = {f"{part}/{name}": images[name] for part in parts for name in parts[part]}
    existing = out.is_file() or (out.is_dir() and any(out.iterdir()))
    way = (_found if existing else _write)(out, facts, files)
    return Split(**counts, way=way, existing=existing, notes=tuple(notes))


def _wrong(value: Any, what: str, do: str, key: str = "path") -> DataError:
    return DataError(f"{key}={value}: {what}. {do}.")


def _root(path: Path, get: str) -> Path:
    """The folder with ``train``; the error names it where it is above or below ``path``."""
    given = Path(os.path.abspath(path.expanduser()))
    if not given.is_dir():
        raise _wrong(path, "it is a file" if given.exists() else "there is no such folder", get)
    if (given / "train").is_dir():
        return given
    parts = ("train", "val", "test")
    near = [up for up in given.parents if given.relative_to(up).parts[0] in parts]
    for pattern in ("*/train", "*/*/train"):
        near += sorted(folder.parent for folder in given.glob(pattern))
    for root in near:
        if (root / "train").is_dir():
            raise _wrong(path, f"'train' isn't in it, but in {root}", f"Give path={root}")
    raise _wrong(path, "there is no folder 'train' in it", get)


def _images(root: Path, part: str, notes: list[str]) -> dict[str, list[str]]:
    """The images of each class folder of ``root/part``, as the loaders will find them."""
    folder = str(root / part)
    classes = class_folders(folder, f"path={root}: {part}")
    found, passed = class_images(folder, classes)
    # TinyImageNet's, as they should be
    boxes = {os.path.join(folder, name, f"{name}_boxes.txt") for name in classes}
    others = [file for file in passed.others if file not in boxes]
    if empty := [name for name, files in found.items() if not files]:
        what = f"{part} has {len(empty)} class folders without images: {some(empty)}"
        raise _wrong(root, what, "Fill them or remove them")
    if broken := [file for files in found.values() for file in files if _broken(file)]:
        names = some([os.path.relpath(file, root) for file in broken])
        what = f"{len(broken)} files are empty or dead links: {names}"
        raise _wrong(root, what, "Get these images again")
    for kind, what in ((others, "files are no images of a class"), (passed.hidden, "are hidden")):
        if kind:
            names = some([os.path.relpath(path, root) for path in kind])
            notes.append(f"{part}: {len(kind):,} {what}: {names}.")
    return found


def _broken(file: str) -> bool:
    return not (os.path.isfile(file) and os.path.getsize(file) > 0)


def _val(root: Path, dataset: str, train: Names, notes: list[str]) -> dict[str, int]:
    """The number of validation images per class, from class folders or TinyImageNet's table."""
    val, images, table = root / "val", root / "val/images", root / "val/val_annotations.txt"
    if not val.is_dir():
        raise _wrong(root, "there is no folder 'val' in it", _GET[dataset])
    folders = set(find_classes(val))
    if not table.is_file():
        if folders <= {"images"}:
            what = "val has no class folders of its own, so the classes of its images aren't known"
            raise _wrong(root, what, _FLAT[dataset])
        _same(root, "val", folders, "train", train)
        return {name: len(files) for name, files in _images(root, "val", notes).items()}
    rows = [line.split("\t") for line in table.read_text("latin1").splitlines() if line]
    classes = {row[0]: row[:2][-1] for row in rows}
    _same(root, "val/val_annotations.txt", set(classes.values()), "train", train)
    if lost := [name for name in classes if _broken(str(images / name))]:
        what = f"val/images lacks {len(lost):,} images of val_annotations.txt: {some(lost)}"
        do = "Remove val_annotations.txt, as the images are in class folders"
        raise _wrong(root, what, do if folders - {"images"} else _FLAT["tinyimagenet"])
    if more := {file.name for file in images.iterdir()} - set(classes):
        notes.append(f"val: {len(more):,} files not in the table, and not used: {some(more)}.")
    notes.append("val: solo-learn needs one folder per class here; the standalone host doesn't.")
    return dict(sorted(Counter(classes.values()).items()))


def _same(root: Path, part: str, got: Names, by: str, want: Names) -> None:
    sets = {"lacks": set(want) - set(got), "has besides": set(got) - set(want)}
    texts = [f"it {verb} {len(names):,}: {some(names)}" for verb, names in sets.items() if names]
    if texts:
        do = "Unpack or copy the dataset again, and remove folders that don't belong"
        raise _wrong(root, f"the classes of {part} aren't those of {by}; {'; '.join(texts)}", do)


def _sizes(part: str, counts: Mapping[str, int], fewest: int, most: int) -> list[str]:
    few = [f"{name} ({n:,})" for name, n in counts.items() if n < fewest]
    many = [f"{name} ({n:,})" for name, n in counts.items() if n > most]
    texts = [(few, f"fewer than {fewest:,}"), (many, f"more than {most:,}")]
    return [f"{part}: {len(c)} classes have {t} images: {some(c)}." for c, t in texts if c]


def _found(out: Path, facts: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Makes sure that ``out`` holds this split; in which way."""
    try:
        stored = json.loads((out / "split.json").read_text(encoding="utf-8"))
        way = str(stored.pop("way"))
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise _wrong(out, "it exists and holds no split", "Choose another out", "out") from error
    if keys := [k for k in {**stored, **facts} if stored.get(k) != facts.get(k)]:
        other = ", ".join(f"{k}={stored.get(k)} instead of {facts.get(k)}" for k in keys)
        do = "Choose another out, or delete this one"
        raise _wrong(out, f"it exists and holds another split: {other}", do, "out")
    if lost := [file for file in files if not (out / file).is_file()]:
        what = f"it holds this split, but {len(lost):,} images are gone: {some(lost)}"
        raise _wrong(out, what, "Delete out and run this again", "out")
    return way


def _write(out: Path, facts: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Builds the split beside ``out`` in the first way that works, and renames it."""
    places: list[Callable[..., object]] = [os.symlink, os.link, shutil.copyfile]
    for way, place in zip(WAYS, places, strict=True):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as room:
                made = Path(room, out.name)  # not the room itself, which only its owner may read
                for name, file in files.items():
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    link = os.path.relpath(file, (out / name).parent)  # as read after renaming
                    place(link if place is os.symlink else os.path.realpath(file), made / name)
                (made / "split.json").write_text(
                    json.dumps({**facts, "way": way}, indent=2), encoding="utf-8"
                )
                os.rename(made, out)
            return way
        except OSError as error:
            if (out / "split.json").is_file():  # another process was faster
                return _found(out, facts, files)
            reason = error
    do = "Set out to a folder that can be written to"
    raise _wrong(out, f"it can't be written ({reason})", do, "out") from reason
