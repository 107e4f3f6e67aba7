"""Datasets as people have them on their disks, but small."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from solo_hardneg.folders import Expected, Layout, check

NAMES = ("n00000001", "n00000002", "n00000003")
SMALL = Expected(classes=3, fewest=4, most=4, val=2)
TABLE = "val/val_annotations.txt"


def put(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(file, "JPEG")


def tiny(root: Path, inner: str = "images/", train: int = 4, backwards: bool = False) -> Path:
    """TinyImageNet as downloaded, but for its size; with ``inner=""``, one folder per class."""
    files = [f"train/{c}/{inner}{c}_{i}.JPEG" for c in NAMES for i in range(train)]
    rows = []
    for n, c in enumerate(NAMES * 2):
        files.append(f"val/images/val_{n}.JPEG" if inner else f"val/{c}/val_{n}.JPEG")
        rows.append(f"val_{n}.JPEG\t{c}\t0\t0\t1\t1\n")
    for file in reversed(files) if backwards else files:
        put(root / file)
    if inner:
        for c in NAMES:
            (root / f"train/{c}/{c}_boxes.txt").write_text("boxes")
        (root / TABLE).write_text("".join(rows))
        (root / "wnids.txt").write_text("\n".join(NAMES[::-1]))
    return root


def look(root: Path, dataset: str = "tinyimagenet", expected: Expected = SMALL) -> Layout:
    return check(dataset, root, expected)


def listing(root: Path) -> list[str]:
    return sorted(str(f.relative_to(root)) for f in root.rglob("*") if not f.is_dir())


def held(out: Path) -> set[str]:
    return {str(f.relative_to(out / "val")) for f in (out / "val").rglob("*.JPEG")}
