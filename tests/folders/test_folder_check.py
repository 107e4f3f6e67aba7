"""Datasets as people have them on their disks, and what is wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from folder_helpers import NAMES, TABLE, look, put, tiny

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.folders import Expected, check, split


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


def test_hidden_names_are_no_images_and_no_classes(flat):
    for name in (f"train/{NAMES[0]}/._a.JPEG", "train/.Trash-0/a.JPEG", "val/.cache/a.JPEG"):
        put(flat / name)
    layout = look(flat)
    assert layout.classes == NAMES
    assert layout.train == dict.fromkeys(NAMES, 4)
    assert layout.notes == (
        f"train: 2 are hidden: train/.Trash-0, train/{NAMES[0]}/._a.JPEG.",
        "val: 1 are hidden: val/.cache.",
    )


def test_names_that_are_not_wordnets(flat):
    for part in ("train", "val"):
        (flat / part / NAMES[0]).rename(flat / part / "cat")
    assert look(flat).notes == ("train: 1 class names aren't WordNet's: cat.",)
    message = r"not 2\. train: 1 class names aren't WordNet's: cat\. Add"
    with pytest.raises(DataError, match=message):
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


@pytest.mark.parametrize("given", ["..", "../..", "train", "val/images"])
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
    ("", lambda r: (r / "train/n00000009").mkdir(), "1 class folders without images: n00000009"),
    ("", lambda r: (r / TABLE).write_text("a.png\tn9"), "it lacks 3: .* has besides 1: n9"),
    ("images/", lambda r: shutil.rmtree(r / "train" / NAMES[0]), "of wnids.txt; it lacks 1: n000"),
    ("images/", lambda r: (r / TABLE).unlink(), "no class folders of its own.*val_annotations"),
    ("images/", lambda r: (r / TABLE).write_text("no table"), "it has besides 1: no table"),
    ("images/", lambda r: shutil.rmtree(r / "val/images"), "lacks 6 images.*Unpack"),
    ("images/", lambda r: (r / "val/images").rename(r / "val/n1"), "lacks 6.*Remove val_annotat"),
    ("images/", lambda r: (r / f"train/{NAMES[0]}/a.png").touch(), "1 files are empty"),
    ("images/", lambda r: (r / f"train/{NAMES[0]}/a.png").symlink_to("b"), "or dead links"),
]


@pytest.mark.parametrize(("inner", "spoil", "message"), SPOILED)
def test_what_would_stop_training(tmp_path, inner, spoil, message):
    spoil(tiny(tmp_path, inner))
    classes = sum(folder.is_dir() for folder in (tmp_path / "train").iterdir())
    with pytest.raises(DataError, match=f"^path={tmp_path}: .*{message}"):
        look(tmp_path, expected=Expected(classes, 4, 4, 2))


def test_a_train_folder_without_classes(tmp_path):
    put(tmp_path / "train" / "a.png")
    message = "train: it holds no class folders. Put each class in a folder"
    with pytest.raises(DataError, match=message):
        look(tmp_path)


def test_imagenets_flat_validation_images(flat):
    shutil.rmtree(flat / "val")
    put(flat / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match=r"no class folders of its own.*val/<wnid>.*valprep\.sh"):
        look(flat, "imagenet100")
