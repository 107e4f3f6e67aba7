"""SSCL's split of a dataset's training images."""

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
from folder_helpers import NAMES, held, listing, look, put, tiny
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torchvision.datasets import ImageFolder

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.folders import split
from solo_hardneg.standalone.data import load_split


def test_the_split(own, tmp_path):
    out = tmp_path / "new" / "out"
    made = split(own, out, 5, seed=2)
    assert (made.classes, made.train, made.val, made.seed) == (3, 7, 5, 2)
    assert (made.way, made.existing, made.notes) == ("symbolic links", False, ())
    train, val = listing(out / "train"), listing(out / "val")
    assert (len(train), len(val)) == (7, 5)
    assert sorted(train + val) == [f"{c}/{c}_{i}.JPEG" for c in NAMES for i in range(4)]
    assert all(not os.readlink(file).startswith("/") for file in out.rglob("*.JPEG"))
    assert all(file.resolve().name == file.name for file in out.rglob("*.JPEG"))
    assert made.sha256 == hashlib.sha256("".join(f"{name}\n" for name in val).encode()).hexdigest()
    stored = json.loads((out / "split.json").read_text())
    assert (stored.pop("version"), stored.pop("dataset")) == (1, "../../data")
    assert stored.pop("sha256") == made.sha256
    assert stored == {"seed": 2, "classes": 3, "train": 7, "val": 5, "way": "symbolic links"}
    assert listing(own) == listing(tiny(tmp_path / "again"))  # the dataset is as it was


def test_the_same_images_on_every_machine_and_version(own, tmp_path):
    split(own, tmp_path / "out", 5, seed=2)
    images = sorted(name.removesuffix(".JPEG")[-3:] for name in held(tmp_path / "out"))
    assert images == ["1_1", "2_0", "2_1", "2_3", "3_1"]


def test_the_seed_decides_and_nothing_else(own, tmp_path):
    first = split(own, tmp_path / "1", 5, seed=2)
    for name, inner in (("backwards", "images/"), ("plain", "")):
        other = tiny(tmp_path / name, inner, backwards=True)
        assert split(other, tmp_path / f"{name}_out", 5, seed=2).sha256 == first.sha256
        assert held(tmp_path / f"{name}_out") == held(tmp_path / "1")
    assert split(own, tmp_path / "2", 5, seed=3).sha256 != first.sha256
    assert held(tmp_path / "2") != held(tmp_path / "1")


def test_the_draw_is_uniform_and_not_class_by_class(tmp_path):
    root, counts = tiny(tmp_path / "data", train=20), []
    for seed in range(30):
        split(root, tmp_path / str(seed), 30, seed)
        counts += Counter(name.split("/")[0] for name in held(tmp_path / str(seed))).values()
    mean = sum(counts) / len(counts)
    variance = sum((n - mean) ** 2 for n in counts) / len(counts)
    assert mean == 10
    assert 1.5 < variance < 6  # hypergeometric: 3.39; class by class: 0


def test_both_loaders_read_it(own, tmp_path):
    out = tmp_path / "out"
    split(own, out, 5, seed=2)
    for part, size in (("train", 7), ("val", 5)):
        images = ImageFolder(str(out / part))
        assert (images.classes, len(images)) == (list(NAMES), size)
        assert images[0][0].size == (2, 2)
        data = {"dataset": "custom", "train_path": f"{out}/train", "val_path": f"{out}/val"}
        ours = load_split(OmegaConf.create({"data": data}), part == "train")
        assert list(zip(ours.images, ours.targets, strict=True)) == images.samples
    (note,) = look(out).notes
    assert "a split was drawn here" in note


def test_links_hold_after_moving_both(tmp_path):
    root = tiny(tmp_path / "a" / "data")
    (tmp_path / "link").symlink_to(tmp_path / "a")  # reached by a detour
    split(tmp_path / "link" / "data", tmp_path / "link" / "splits" / "out", 5, seed=2)
    (tmp_path / "b").mkdir()
    (tmp_path / "a").rename(tmp_path / "b" / "c")
    out = tmp_path / "b/c/splits/out"
    assert not root.exists()
    assert all(file.is_file() for file in out.rglob("*.JPEG"))
    assert split(tmp_path / "b/c/data", out, 5, seed=2).existing


def test_linked_classes_and_images(own, tmp_path):
    (own / "train" / NAMES[0]).rename(tmp_path / "elsewhere")
    (own / "train" / NAMES[0]).symlink_to("../../elsewhere")
    assert look(own).train == dict.fromkeys(NAMES, 4)
    split(own, tmp_path / "out", 5, seed=2)
    assert len(ImageFolder(str(tmp_path / "out" / "train"))) == 7


def fail(*_: object, **__: object) -> None:
    raise OSError("not on this file system")


@pytest.mark.parametrize(
    ("broken", "way"), [(["symlink"], "hard links"), (["symlink", "link"], "copies")]
)
def test_where_links_cannot_be_made(own, tmp_path, monkeypatch, broken, way):
    for name in broken:
        monkeypatch.setattr(os, name, fail)
    made, out = split(own, tmp_path / "out", 5, seed=2), tmp_path / "out"
    assert (made.way, split(own, out, 5, seed=2).way) == (way, way)
    assert len(held(out)) == 5
    for file in out.rglob("*.JPEG"):
        assert not file.is_symlink()
        assert file.stat().st_nlink == (2 if way == "hard links" else 1)
    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(DataError, match=r"^out=.*: it can't be written \(not on this.*Set out to"):
        split(own, tmp_path / "other", 5, seed=2)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["data", "out"]


def test_an_interrupted_run_leaves_nothing(own, tmp_path, monkeypatch):
    link, calls = os.symlink, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == 6:
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr(os, "symlink", stop)
    with pytest.raises(KeyboardInterrupt):
        split(own, tmp_path / "out", 5, seed=2)
    assert len(calls) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["data"]
    assert split(own, tmp_path / "out", 5, seed=2).existing is False


def test_a_repeated_run(own, tmp_path):
    out = tmp_path / "out"
    out.mkdir()  # empty: as good as none
    first = split(own, out, 5, seed=2)
    before = (out / "split.json").stat().st_mtime_ns
    again = split(own, out, 5, seed=2)
    assert (first.existing, again.existing, again.sha256) == (False, True, first.sha256)
    assert (out / "split.json").stat().st_mtime_ns == before
    other = r"another split: seed=2 instead of 3, sha256=\w+ instead of \w+. Choose another out"
    with pytest.raises(DataError, match=other):
        split(own, out, 5, seed=3)
    put(own / "train" / NAMES[0] / "images" / "new.JPEG")
    with pytest.raises(DataError, match="holds another split: train=7 instead of 8"):
        split(own, out, 5, seed=2)
    (own / "train" / NAMES[0] / "images" / "new.JPEG").unlink()
    next((out / "val").rglob("*.JPEG")).unlink()
    with pytest.raises(DataError, match="holds this split, but 1 images are gone: val/n0.*Delete"):
        split(own, out, 5, seed=2)


def test_another_process_that_was_faster(own, tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        monkeypatch.setattr(os, "rename", rename)
        split(own, tmp_path / "out", 5, seed=2)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert split(own, tmp_path / "out", 5, seed=2).val == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize("text", [None, "{}", "no json"])
def test_a_folder_with_something_else(own, tmp_path, text):
    put(tmp_path / "out" / "mine.JPEG")
    if text is not None:
        (tmp_path / "out" / "split.json").write_text(text)
    for out in (tmp_path / "out", tmp_path / "out" / "mine.JPEG"):
        message = f"^out={out}: it exists .* no split. Choose another out"
        with pytest.raises(DataError, match=message):
            split(own, out, 5, seed=2)
    assert (tmp_path / "out" / "mine.JPEG").is_file()


@pytest.mark.parametrize("out", ["..", "train", "val/new/deeper"])
def test_the_dataset_is_not_written_into(own, out):
    with pytest.raises(DataError, match="^out=.*it holds images or lies among them. Choose"):
        split(own, own / out, 5, seed=2)


def test_numbers_out_of_range(own, tmp_path):
    for held_out in (0, 12):
        message = f"held_out={held_out}: must be from 1 to 11, as train"
        with pytest.raises(ConfigError, match=message):
            split(own, tmp_path / "out", held_out)
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=f"seed={seed}: must be from 0 to 4294967295"):
            split(own, tmp_path / "out", 5, seed)
    for held_out, lacks in (
        (10, "train would .* Hold out fewer"),
        (2, "val would .* Hold out more"),
    ):
        with pytest.raises(DataError, match=f"held_out={held_out}: {lacks}"):
            split(own, tmp_path / "out", held_out)
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_name(own, tmp_path):
    put(own / "train" / NAMES[0] / f"{NAMES[0]}_0.JPEG")
    with pytest.raises(DataError, match="two images of one name.*Keep one of each"):
        split(own, tmp_path / "out", 5, seed=2)


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
            made = split(root, out, held_out, seed)
        except DataError as error:
            refused = str(error)
        if refused:
            assert "would have no image of" in refused
            assert os.listdir(folder) == ["data"]
            return
        train, val = (listing(out / part) for part in ("train", "val"))
        assert (len(train), len(val)) == (sum(sizes) - held_out, held_out)
        assert (made.train, made.val) == (len(train), len(val))
        assert sorted(train + val) == listing(root / "train")
        assert {name[0] for name in train} == {name[0] for name in val}


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, solo_hardneg.folders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
