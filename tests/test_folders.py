"""Datasets as people have them on their disks, and SSCL's split of them."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torchvision.datasets import ImageFolder

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.folders import Expected, Layout, check, split
from solo_hardneg.standalone.data import load_split

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


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tiny(tmp_path / "data")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return tiny(tmp_path / "flat", inner="")


@pytest.mark.parametrize("inner", ["images/", ""])
def test_a_complete_dataset(tmp_path, inner):
    layout = look(tiny(tmp_path, inner))
    assert layout.classes == NAMES
    assert layout.train == dict.fromkeys(NAMES, 4)
    assert layout.val == dict.fromkeys(NAMES, 2)
    assert len(layout.notes) == (1 if inner else 0)
    assert all("solo-learn needs one folder per class" in note for note in layout.notes)


def test_imagenet100_and_the_published_sizes(flat):
    assert look(flat, "imagenet100").notes == ()
    for dataset, classes in (("tinyimagenet", 200), ("imagenet100", 100)):
        with pytest.raises(DataError, match=f"3 classes, not {classes}. Add or remove") as caught:
            check(dataset, flat)
        assert str(caught.value).startswith(f"path={flat}: ")


def test_sizes_are_noted(flat):
    notes = look(flat, expected=Expected(3, 5, 6, 1)).notes
    assert notes[0].startswith("train: 3 classes have fewer than 5 images: n00000001 (4), ")
    assert notes[1].startswith("val: 3 classes have more than 1 images: n00000001 (2), ")
    (flat / "split.json").touch()
    (note,) = look(flat, expected=Expected(3, 5, 6, 1)).notes
    assert "a split was drawn here" in note


def test_odd_files_are_noted(own):
    (own / "train" / NAMES[0] / "images" / "Thumbs.db").touch()
    put(own / "train" / "loose.JPEG")
    put(own / "val" / "images" / "more.JPEG")
    first, second, _ = look(own).notes
    assert first.startswith("train: 2 files are no images of a class: train/loose.JPEG, train/n0")
    assert second == "val: 1 files not in the table, and not used: more.JPEG."


def test_names_that_are_not_wordnets(flat):
    for part in ("train", "val"):
        (flat / part / NAMES[0]).rename(flat / part / "cat")
    assert look(flat).notes == ("train: 1 class names aren't WordNet's: cat.",)
    with pytest.raises(
        DataError, match=r"not 2\. train: 1 class names aren't WordNet's: cat\. Add"
    ):
        look(flat, expected=Expected(2, 4, 4, 2))


@pytest.mark.parametrize(
    ("dataset", "page"), [("tinyimagenet", "CS231n"), ("imagenet100", "image-net.org")]
)
def test_how_to_get_what_is_not_there(tmp_path, dataset, page):
    with pytest.raises(DataError, match=rf"^path=.*nowhere: there is no such folder\..*{page}"):
        check(dataset, tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"no folder 'train' in it.*{page}"):
        check(dataset, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="it is a file"):
        check(dataset, tmp_path / "file")
    put(tmp_path / "train/n00000001/a.png")
    with pytest.raises(DataError, match=f"no folder 'val' in it.*{page}"):
        check(dataset, tmp_path, Expected(1, 1, 1, 1))


def test_an_unknown_dataset(tmp_path):
    with pytest.raises(ConfigError, match="dataset: unknown dataset 'tinyimagnet'. Did you mean"):
        check("tinyimagnet", tmp_path)


@pytest.mark.parametrize(
    "given", ["..", "../..", "train", "val", "val/images", f"train/{NAMES[0]}"]
)
def test_the_folder_above_or_below(tmp_path, given):
    root = tiny(tmp_path / "a" / "b")
    with pytest.raises(DataError, match=f"'train' isn't in it, but in {root}. Give path={root}"):
        look(root / given)
    with pytest.raises(DataError, match=f"Give path={root}"):
        split(root / given, tmp_path / "out")


def test_a_path_from_where_one_stands(own, monkeypatch):
    monkeypatch.chdir(own)
    assert look(Path(".")).classes == NAMES
    assert split(Path("."), Path("../out"), 5, 2).val == 5
    monkeypatch.setenv("HOME", str(own.parent))
    assert look(Path("~/data")).classes == NAMES


# What is done to the dataset, in which layout, and what is said of it.
SPOILED = [
    ("", lambda r: shutil.rmtree(r / "train" / NAMES[0]), "val aren't those of train; it has besi"),
    ("", lambda r: shutil.rmtree(r / "val" / NAMES[0]), "it lacks 1: n00000001.*Unpack or copy"),
    ("", lambda r: put(r / "val/n9/a.png"), "it has besides 1: n9"),
    ("", lambda r: (r / "train/n00000009").mkdir(), "1 class folders without images: n00000009"),
    ("", lambda r: (r / "val/images").mkdir(), "it has besides 1: images"),
    ("", lambda r: (r / TABLE).write_text("a.png\tn9"), "it lacks 3: .* has besides 1: n9"),
    ("images/", lambda r: shutil.rmtree(r / "train" / NAMES[0]), "of wnids.txt; it lacks 1: n000"),
    ("images/", lambda r: (r / TABLE).unlink(), "no class folders of its own.*val_annotations"),
    ("images/", lambda r: (r / TABLE).write_text(""), "it lacks 3"),
    ("images/", lambda r: (r / TABLE).write_text("no table"), "it has besides 1: no table"),
    ("images/", lambda r: shutil.rmtree(r / "val/images"), "lacks 6 images.*Unpack"),
    ("images/", lambda r: (r / "val/images").rename(r / "val/n1"), "lacks 6.*Remove val_annotat"),
    ("images/", lambda r: put(r / f"train/{NAMES[0]}/._a.JPEG"), r"macOS's \(\._\*\): train/n0"),
    ("images/", lambda r: (r / f"train/{NAMES[0]}/a.png").touch(), "1 files are empty"),
    ("images/", lambda r: (r / f"train/{NAMES[0]}/a.png").symlink_to("b"), "1 files.* dead links"),
]


@pytest.mark.parametrize(("inner", "spoil", "message"), SPOILED)
def test_what_would_stop_training(tmp_path, inner, spoil, message):
    spoil(tiny(tmp_path, inner))
    classes = sum(folder.is_dir() for folder in (tmp_path / "train").iterdir())
    with pytest.raises(DataError, match=f"^path={tmp_path}: .*{message}"):
        look(tmp_path, expected=Expected(classes, 4, 4, 2))


def test_a_train_folder_without_classes(tmp_path):
    put(tmp_path / "train" / "a.png")
    with pytest.raises(DataError, match="train has no class folders .*Give each class a folder"):
        look(tmp_path)


def test_imagenets_flat_validation_images(flat):
    shutil.rmtree(flat / "val")
    put(flat / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match=r"no class folders of its own.*val/<wnid>.*valprep\.sh"):
        look(flat, "imagenet100")


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_leaves_nothing(own, tmp_path, monkeypatch, error):
    link, calls = os.symlink, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == 6:
            raise error
        link(source, target)

    monkeypatch.setattr(os, "symlink", stop)
    with pytest.raises(error):
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
    other = (
        r"holds another split: seed=2 instead of 3, sha256=\w+ instead of \w+. Choose another out"
    )
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


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "no json"])
def test_a_folder_with_something_else(own, tmp_path, text):
    put(tmp_path / "out" / "mine.JPEG")
    if text is not None:
        (tmp_path / "out" / "split.json").write_text(text)
    for out in (tmp_path / "out", tmp_path / "out" / "mine.JPEG"):
        with pytest.raises(
            DataError, match=f"^out={out}: it exists .* no split. Choose another out"
        ):
            split(own, out, 5, seed=2)
    assert (tmp_path / "out" / "mine.JPEG").is_file()


@pytest.mark.parametrize("out", [".", "..", "train", "train/new", "val/new/deeper"])
def test_the_dataset_is_not_written_into(own, out):
    with pytest.raises(DataError, match="^out=.*it holds images or lies among them. Choose"):
        split(own, own / out, 5, seed=2)


def test_numbers_out_of_range(own, tmp_path):
    for held_out in (-1, 0, 12, 10_000):
        with pytest.raises(
            ConfigError, match=f"held_out={held_out}: must be from 1 to 11, as train"
        ):
            split(own, tmp_path / "out", held_out)
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=f"seed={seed}: must be from 0 to 4294967295"):
            split(own, tmp_path / "out", 5, seed)
    with pytest.raises(
        DataError, match="held_out=10: train would have no image of .* Hold out fewer"
    ):
        split(own, tmp_path / "out", 10)
    with pytest.raises(DataError, match="held_out=2: val would have no image of .* Hold out more"):
        split(own, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_name(own, tmp_path):
    put(own / "train" / NAMES[0] / f"{NAMES[0]}_0.JPEG")
    with pytest.raises(DataError, match="two images of one name.*Keep one of each"):
        split(own, tmp_path / "out", 5, seed=2)


@settings(max_examples=40)
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
