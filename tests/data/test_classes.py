"""Class names of datasets, and readable names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torchvision.datasets.folder import find_classes

from solo_hardneg.data import wordnet as module
from solo_hardneg.data.classes import class_names, shipped_synsets
from solo_hardneg.data.wordnet import readable_names
from solo_hardneg.errors import DataError

CRANES = ["n02012849", "n03126707"]


def test_cifars_classes_are_in_label_order() -> None:
    """CIFAR's labels are alphabetical; a few widely quoted ones."""
    ten, hundred = class_names({"dataset": "cifar10"}), class_names({"dataset": "cifar100"})
    assert (len(ten), len(hundred)) == (10, 100)
    assert ten == sorted(set(ten))
    assert hundred == sorted(set(hundred))
    assert [ten[label] for label in (0, 1, 6, 9)] == ["airplane", "automobile", "frog", "truck"]
    some = {0: "apple", 1: "aquarium_fish", 19: "cattle", 49: "mountain", 71: "sea", 99: "worm"}
    assert {label: hundred[label] for label in some} == some
    assert shipped_synsets("cifar1000") == {}


def test_digits_need_no_files() -> None:
    assert class_names({"dataset": "digits", "train_path": "builtin"}) == list("0123456789")


@pytest.mark.parametrize("dataset", ["custom", "imagenet", "imagenet100", "tinyimagenet"])
def test_folders_are_sorted_as_in_the_loaders(tmp_path: Path, dataset: str) -> None:
    for name in ("n02", "Zebra", "ant", "10", "9"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("not a class")
    data: dict[str, Any] = {"dataset": dataset, "train_path": str(tmp_path), "format": "dali"}
    assert class_names(data) == ["10", "9", "Zebra", "ant", "n02"] == find_classes(tmp_path)[0]
    cfg = OmegaConf.create({"place": str(tmp_path), "data": {**data, "train_path": "${place}"}})
    assert class_names(cfg.data) == class_names(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"dataset": "custom", "no_labels": True},
            "^data.no_labels=True: images without labels have no classes. Set data.no_labels=False",
        ),
        (
            {"dataset": "stl10"},
            "^data.dataset=stl10: the names of its classes are not known; known: cifar10, .*, "
            "tinyimagenet. With one folder per class, data.dataset=custom reads any images.$",
        ),
        (
            {"dataset": "imagenet", "format": "h5", "train_path": "train.h5"},
            "^data.format=h5: class names are read from folders.* Set data.format=image_folder",
        ),
        (
            OmegaConf.create({"dataset": "custom", "train_path": "???"}),
            r"^data.train_path=\?\?\?: it names no folder. Point it at the training images, one",
        ),
        ({"dataset": "custom"}, "^data.train_path=None: it names no folder"),
        (
            {"dataset": "imagenet", "train_path": "/nowhere/train"},
            "^data.train_path=/nowhere/train: there is no such folder. Point it at the training",
        ),
    ],
)
def test_unknown_class_names_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_names(data)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    message = f"^data.train_path={tmp_path}: it holds no class folders. Put each class in its own"
    with pytest.raises(DataError, match=message):
        class_names({"dataset": "custom", "train_path": tmp_path})


def test_readable_names_are_lemmas(wordnet: Any) -> None:
    names = ["n01440764", "sweet_pepper", "n01484850", "n99999999", "Zebra"]
    shown = ["tench", "sweet pepper", "great white shark", "n99999999", "Zebra"]
    assert readable_names(names) == shown
    assert readable_names(names, [*names[:2], "n01443537", *names[3:]])[2] == "goldfish"
    assert readable_names(["goldfish"], ["n01440764"]) == ["goldfish"]  # already readable


def test_readable_names_distinguish_classes(wordnet: Any) -> None:
    """ImageNet has two cranes; the root of WordNet has no hypernym."""
    assert readable_names(CRANES) == ["crane (wading bird)", "crane (lifting device)"]
    assert readable_names([CRANES[0], "dog"]) == ["crane", "dog"]
    assert readable_names(["crane", CRANES[0]]) == ["crane", "crane (wading bird)"]
    assert readable_names(["a_b", "a b"]) == ["a b (a_b)", "a b (a b)"]
    assert readable_names(["n00001740"]) == ["entity"]


def test_readable_names_without_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise DataError("no WordNet")

    monkeypatch.setattr(module, "_reader", missing)
    assert readable_names([*CRANES, "oak_tree"]) == [*CRANES, "oak tree"]
