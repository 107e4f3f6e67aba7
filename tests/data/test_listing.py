"""Which names are images and classes, in which order, and which are announced as skipped."""

from __future__ import annotations

import os

import pytest
from odd_images import png
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from solo_hardneg.data import listing
from solo_hardneg.data.listing import (
    EXTENSIONS,
    class_folders,
    labelled_images,
    list_images,
    unlabelled_images,
)
from solo_hardneg.errors import DataError


@pytest.fixture
def announced(monkeypatch):
    texts: list[str] = []
    monkeypatch.setattr(listing, "_print_once", texts.append)
    return texts


def names(root, paths):
    return [os.path.relpath(path, root) for path in paths]


def test_endings_equal_torchvisions():
    assert set(EXTENSIONS) == set(IMG_EXTENSIONS)


def test_the_order_equals_torchvisions(tmp_path):
    for name in ("b/2.png", "b/10.PNG", "b/a/1.png", "b/a-b/1.png", "a/z.JPEG", "B/x.png"):
        png(tmp_path / name)
    dataset = ImageFolder(str(tmp_path))
    assert class_folders(tmp_path, "x") == dataset.classes
    assert labelled_images(tmp_path, dataset.class_to_idx) == dataset.samples


def test_hidden_names_are_skipped(tmp_path, announced):
    for name in ("a/1.png", "b/1.png", ".ipynb_checkpoints/1.png", "a/.2.png", "b/.trash/3.png"):
        png(tmp_path / name)
    (tmp_path / "a" / "Thumbs.db").touch()
    png(tmp_path / "loose.png")
    assert class_folders(tmp_path, "x") == ["a", "b"]
    samples = labelled_images(tmp_path, {"a": 0, "b": 1}, "data.train_path=x")
    assert names(tmp_path, [path for path, _ in samples]) == ["a/1.png", "b/1.png"]
    (text,) = announced
    assert text.startswith("data.train_path=x: skipped 3 hidden names (.2.png,")
    assert "and 2 that are no images (Thumbs.db, loose.png)" in text


def test_clean_folders_announce_nothing(tmp_path, announced):
    png(tmp_path / "a" / "1.png")
    assert len(unlabelled_images(tmp_path)) == 1
    assert labelled_images(tmp_path, {"a": 0})
    assert announced == []


def test_links_are_followed_but_not_in_circles(tmp_path, announced):
    for name in ("data/a/1.png", "data/b/2.png", "elsewhere/3.png", "elsewhere/deep/4.png"):
        png(tmp_path / name)
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "a" / "self").symlink_to("self")
    (tmp_path / "elsewhere" / "deep" / "round").symlink_to(tmp_path / "elsewhere")
    expected = ["a/1.png", "a/more/3.png", "a/more/deep/4.png", "b/2.png"]
    data = tmp_path / "data"
    assert names(data, unlabelled_images(data)) == expected
    assert names(data, [path for path, _ in labelled_images(data, {"a": 0, "b": 1})]) == expected
    assert "that are no images" in announced[0]
    (data / "c").symlink_to(tmp_path / "elsewhere")
    assert class_folders(data, "x") == ["a", "b", "c"]


def test_a_dead_link_is_listed_and_fails_when_opened(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert names(tmp_path, list_images(tmp_path).images) == ["gone.png"]


def test_folders_without_images_are_refused(tmp_path):
    png(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"x: no image is in .* b\. Remove empty .*\.png"):
        labelled_images(tmp_path, {"a": 0, "b": 1}, "x")
    with pytest.raises(DataError, match=r"b: there are no images in it.*\.png"):
        unlabelled_images(tmp_path / "b")


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    png(tmp_path / "a" / "sub" / "1.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"a/sub: this folder can't be read \(Permission denied"):
        list_images(tmp_path)


def test_unprintable_names_are_escaped_and_printed_once(tmp_path, capsys):
    listing._print_once.cache_clear()
    png(tmp_path / "1.png")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w"):
        pass
    unlabelled_images(tmp_path)
    unlabelled_images(tmp_path)
    assert capsys.readouterr().out.count(r"caf\udce9.txt") == 1
