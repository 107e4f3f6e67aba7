"""SSCL's split of TinyImageNet, in both layouts of the dataset."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torchvision.datasets import ImageFolder

from solo_hardneg.data.datasets import load_split
from solo_hardneg.data.tiny_imagenet import count_images, hold_out
from solo_hardneg.errors import ConfigError, DataError

NAMES = ("n00000001", "n00000002", "n00000003")


def put(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(file, "JPEG")


def make_dataset(
    root: Path, inner: str = "images/", train: int = 4, backwards: bool = False
) -> Path:
    """A small TinyImageNet in the layout of its archive; with ``inner=""``, one folder per class.

    Args:
        root: Folder of the dataset.
        inner: Folder of the images inside the folder of their class.
        train: Number of training images per class.
        backwards: Whether files are created in reverse order.
    """
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
        (root / "val/val_annotations.txt").write_text("".join(rows))
        (root / "wnids.txt").write_text("\n".join(NAMES[::-1]))
    return root


def files_below(root: Path) -> list[str]:
    return sorted(str(f.relative_to(root)) for f in root.rglob("*") if not f.is_dir())


def validation_images(out: Path) -> set[str]:
    return {str(f.relative_to(out / "val")) for f in (out / "val").rglob("*.JPEG")}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data")


@pytest.mark.parametrize("inner", ["images/", ""])
def test_images_are_counted_in_both_layouts(tmp_path, inner):
    assert count_images(make_dataset(tmp_path, inner)) == (3, 12, 6)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "there is no such folder. Give the folder that holds train"),
        ("data/train", "there is no folder 'train' in it. Give the folder"),
    ],
)
def test_a_folder_without_train_is_refused(dataset, tmp_path, path, message):
    for refused in (count_images, lambda path: hold_out(path, tmp_path / "out")):
        with pytest.raises(DataError, match=f"^path={tmp_path / path}: {message}"):
            refused(tmp_path / path)


def test_a_class_without_images_is_refused(dataset, tmp_path):
    (dataset / "train" / "n00000009").mkdir()
    with pytest.raises(DataError, match="1 class folders without images: n00000009. Fill them"):
        hold_out(dataset, tmp_path / "out", 5)


def test_images_are_linked_and_described(dataset, tmp_path):
    out = tmp_path / "new" / "out"
    made = hold_out(dataset, out, 5, seed=2)
    assert (made.classes, made.train, made.val, made.seed) == (3, 7, 5, 2)
    assert (made.way, made.existing) == ("symbolic links", False)
    train, val = files_below(out / "train"), files_below(out / "val")
    assert (len(train), len(val)) == (7, 5)
    assert sorted(train + val) == [f"{c}/{c}_{i}.JPEG" for c in NAMES for i in range(4)]
    assert all(not os.readlink(file).startswith("/") for file in out.rglob("*.JPEG"))
    assert all(file.resolve().name == file.name for file in out.rglob("*.JPEG"))
    assert made.sha256 == hashlib.sha256("".join(f"{name}\n" for name in val).encode()).hexdigest()
    stored = json.loads((out / "split.json").read_text())
    assert (stored.pop("version"), stored.pop("dataset")) == (1, "../../data")
    assert stored.pop("sha256") == made.sha256
    assert stored == {"seed": 2, "classes": 3, "train": 7, "val": 5, "way": "symbolic links"}
    assert files_below(dataset) == files_below(make_dataset(tmp_path / "again"))  # unchanged


def test_a_seed_draws_the_same_images_on_every_machine(dataset, tmp_path):
    hold_out(dataset, tmp_path / "out", 5, seed=2)
    images = sorted(name.removesuffix(".JPEG")[-3:] for name in validation_images(tmp_path / "out"))
    assert images == ["1_1", "2_0", "2_1", "2_3", "3_1"]


def test_the_draw_depends_on_the_seed_only(dataset, tmp_path):
    first = hold_out(dataset, tmp_path / "1", 5, seed=2)
    for name, inner in (("backwards", "images/"), ("plain", "")):
        other = make_dataset(tmp_path / name, inner, backwards=True)
        assert hold_out(other, tmp_path / f"{name}_out", 5, seed=2).sha256 == first.sha256
        assert validation_images(tmp_path / f"{name}_out") == validation_images(tmp_path / "1")
    assert hold_out(dataset, tmp_path / "2", 5, seed=3).sha256 != first.sha256
    assert validation_images(tmp_path / "2") != validation_images(tmp_path / "1")


def test_the_draw_is_uniform_and_not_class_by_class(tmp_path):
    root, counts = make_dataset(tmp_path / "data", train=20), []
    for seed in range(30):
        hold_out(root, tmp_path / str(seed), 30, seed)
        counts += Counter(
            name.split("/")[0] for name in validation_images(tmp_path / str(seed))
        ).values()
    mean = sum(counts) / len(counts)
    variance = sum((n - mean) ** 2 for n in counts) / len(counts)
    assert mean == 10
    assert 1.5 < variance < 6  # hypergeometric: 3.39; class by class: 0


def test_both_loaders_read_the_split(dataset, tmp_path):
    out = tmp_path / "out"
    hold_out(dataset, out, 5, seed=2)
    for part, size in (("train", 7), ("val", 5)):
        images = ImageFolder(str(out / part))
        assert (images.classes, len(images)) == (list(NAMES), size)
        assert images[0][0].size == (2, 2)
        data = {"dataset": "custom", "train_path": f"{out}/train", "val_path": f"{out}/val"}
        split = load_split(OmegaConf.create({"data": data}), part == "train")
        assert list(zip(split.images, split.targets, strict=True)) == images.samples


def test_links_survive_moving_dataset_and_split_together(tmp_path):
    root = make_dataset(tmp_path / "a" / "data")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    hold_out(tmp_path / "link" / "data", tmp_path / "link" / "splits" / "out", 5, seed=2)
    (tmp_path / "b").mkdir()
    (tmp_path / "a").rename(tmp_path / "b" / "c")
    out = tmp_path / "b/c/splits/out"
    assert not root.exists()
    assert all(file.is_file() for file in out.rglob("*.JPEG"))
    assert hold_out(tmp_path / "b/c/data", out, 5, seed=2).existing


def test_linked_class_folders_are_followed(dataset, tmp_path):
    (dataset / "train" / NAMES[0]).rename(tmp_path / "elsewhere")
    (dataset / "train" / NAMES[0]).symlink_to("../../elsewhere")
    assert count_images(dataset) == (3, 12, 6)
    hold_out(dataset, tmp_path / "out", 5, seed=2)
    assert len(ImageFolder(str(tmp_path / "out" / "train"))) == 7


def fail(*_: object, **__: object) -> None:
    raise OSError("not on this file system")


@pytest.mark.parametrize(
    ("broken", "way"), [(["symlink"], "hard links"), (["symlink", "link"], "copies")]
)
def test_hard_links_and_copies_replace_symbolic_links(dataset, tmp_path, monkeypatch, broken, way):
    for name in broken:
        monkeypatch.setattr(os, name, fail)
    made, out = hold_out(dataset, tmp_path / "out", 5, seed=2), tmp_path / "out"
    assert (made.way, hold_out(dataset, out, 5, seed=2).way) == (way, way)
    assert len(validation_images(out)) == 5
    for file in out.rglob("*.JPEG"):
        assert not file.is_symlink()
        assert file.stat().st_nlink == (2 if way == "hard links" else 1)
    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(DataError, match=r"^out=.*: it can't be written \(not on this.*Set out to"):
        hold_out(dataset, tmp_path / "other", 5, seed=2)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["data", "out"]


def test_an_interrupted_run_leaves_nothing(dataset, tmp_path, monkeypatch):
    link, calls = os.symlink, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == 6:
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr(os, "symlink", stop)
    with pytest.raises(KeyboardInterrupt):
        hold_out(dataset, tmp_path / "out", 5, seed=2)
    assert len(calls) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["data"]
    assert hold_out(dataset, tmp_path / "out", 5, seed=2).existing is False


def test_a_second_run_keeps_the_same_split_and_refuses_another(dataset, tmp_path):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder may be used
    first = hold_out(dataset, out, 5, seed=2)
    before = (out / "split.json").stat().st_mtime_ns
    again = hold_out(dataset, out, 5, seed=2)
    assert (first.existing, again.existing, again.sha256) == (False, True, first.sha256)
    assert (out / "split.json").stat().st_mtime_ns == before
    other = r"another split: seed=2 instead of 3, sha256=\w+ instead of \w+. Choose another out"
    with pytest.raises(DataError, match=other):
        hold_out(dataset, out, 5, seed=3)
    put(dataset / "train" / NAMES[0] / "images" / "new.JPEG")
    with pytest.raises(DataError, match="holds another split: train=7 instead of 8"):
        hold_out(dataset, out, 5, seed=2)
    (dataset / "train" / NAMES[0] / "images" / "new.JPEG").unlink()
    next((out / "val").rglob("*.JPEG")).unlink()
    with pytest.raises(DataError, match="holds this split, but 1 images are gone: val/n0.*Delete"):
        hold_out(dataset, out, 5, seed=2)


def test_a_faster_process_wins(dataset, tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        monkeypatch.setattr(os, "rename", rename)
        hold_out(dataset, tmp_path / "out", 5, seed=2)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert hold_out(dataset, tmp_path / "out", 5, seed=2).val == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize("text", [None, "{}", "no json"])
def test_a_folder_with_other_content_is_refused(dataset, tmp_path, text):
    put(tmp_path / "out" / "mine.JPEG")
    if text is not None:
        (tmp_path / "out" / "split.json").write_text(text)
    for out in (tmp_path / "out", tmp_path / "out" / "mine.JPEG"):
        message = f"^out={out}: it exists .* no split. Choose another out"
        with pytest.raises(DataError, match=message):
            hold_out(dataset, out, 5, seed=2)
    assert (tmp_path / "out" / "mine.JPEG").is_file()


@pytest.mark.parametrize("out", ["..", "train", "val/new/deeper"])
def test_out_must_be_outside_the_dataset(dataset, out):
    with pytest.raises(DataError, match="^out=.*is inside the dataset or contains it. Choose"):
        hold_out(dataset, dataset / out, 5, seed=2)


def test_numbers_out_of_range_are_refused(dataset, tmp_path):
    for held_out in (0, 12):
        message = f"held_out={held_out}: must be from 1 to 11, as train"
        with pytest.raises(ConfigError, match=message):
            hold_out(dataset, tmp_path / "out", held_out)
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=f"seed={seed}: must be from 0 to 4294967295"):
            hold_out(dataset, tmp_path / "out", 5, seed)
    for held_out, lacks in (
        (10, "train would .* Hold out fewer"),
        (2, "val would .* Hold out more"),
    ):
        with pytest.raises(DataError, match=f"held_out={held_out}: {lacks}"):
            hold_out(dataset, tmp_path / "out", held_out)
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_name_are_refused(dataset, tmp_path):
    put(dataset / "train" / NAMES[0] / f"{NAMES[0]}_0.JPEG")
    with pytest.raises(DataError, match="two images of one name.*Keep one of each"):
        hold_out(dataset, tmp_path / "out", 5, seed=2)


@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_disjoint_and_complete_or_refused(sizes, seed, data):
    held_out = data.draw(st.integers(1, sum(sizes) - 1))
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "data"), Path(folder, "out")
        for c, size in enumerate(sizes):
            (root / f"train/{c}").mkdir(parents=True)
            for i in range(size):
                (root / f"train/{c}/é {i}.PNG").write_bytes(b"x")
        refused = ""
        try:
            made = hold_out(root, out, held_out, seed)
        except DataError as error:
            refused = str(error)
        if refused:
            assert "would have no image of" in refused
            assert os.listdir(folder) == ["data"]
            return
        train, val = (files_below(out / part) for part in ("train", "val"))
        assert (len(train), len(val)) == (sum(sizes) - held_out, held_out)
        assert (made.train, made.val) == (len(train), len(val))
        assert sorted(train + val) == files_below(root / "train")
        assert {name[0] for name in train} == {name[0] for name in val}


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, solo_hardneg.data.tiny_imagenet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
