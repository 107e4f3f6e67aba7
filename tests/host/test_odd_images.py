"""solo-learn reads the same images and classes as the standalone host; errors name files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import PROJECT, run_python

sys.path.insert(0, str(PROJECT / "tests" / "data"))
from odd_images import cut, floats, png, sixteen_bits, turned

pytestmark = [pytest.mark.full, pytest.mark.host]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    for name in ("a", "b"):
        for number in range(4):
            png(root / "labelled" / name / f"{number}.png")
    for name in ("a/deep/5.png", ".ipynb_checkpoints/0.png", "a/.hidden.png", "b/.trash/1.png"):
        png(root / "labelled" / name)
    (root / "labelled" / "a" / "Thumbs.db").touch()
    sixteen_bits(root / "labelled" / "a" / "grey.png")
    turned(root / "labelled" / "b" / "turned.jpg")
    for number in range(6):
        png(root / "unlabelled" / "flat" / f"{number}.png")
    png(root / "unlabelled" / ".Trash-0" / "gone.png")
    (root / "unlabelled" / "notes.txt").touch()
    (root / "unlabelled" / "link").symlink_to(root / "labelled" / "a")
    (root / "empty").mkdir()
    for name in ("damaged", "no bytes", "floats", "latin1"):
        for number in range(4):
            png(root / name / "a" / f"{number}.png")
    cut(root / "damaged" / "a" / "2.png")
    (root / "no bytes" / "a" / "2.png").write_bytes(b"")
    floats(root / "floats" / "a" / "2.tiff")
    folder = os.fsencode(root / "latin1")
    os.rename(folder + b"/a", folder + b"/caf\xe9")
    return root


@pytest.fixture(scope="module")
def found(solo_learn: Path, folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("odd_images_in_solo_learn.py")
    result = run_python(script, folder, cwd=folder, env={"PYTHONPATH": str(solo_learn)}).ok()
    return json.loads(result.out.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "images"),
    [("labelled -1", 11), ("labelled 0.5", 5), ("unlabelled -1", 12), ("unlabelled 0.5", 6)],
)
def test_both_hosts_have_the_same_images(found: dict[str, Any], case: str, images: int) -> None:
    assert found[case] == {"files": True, "labels": True, "pixels": True, "images": images}


def test_evaluation_and_classifier_have_the_same_images(found: dict[str, Any]) -> None:
    assert found["evaluated"] == [True, True]
    assert found["classes"] == [2, 2]


@pytest.mark.parametrize("case", ["damaged", "in a worker"])
def test_damaged_image_is_named(found: dict[str, Any], case: str) -> None:
    assert "damaged/a/2.png: this image can't be read" in found[case]
    assert found[case].endswith("Replace or remove the file.")


def test_dali_names_a_damaged_image(found: dict[str, Any]) -> None:
    pytest.importorskip("nvidia.dali")
    for name in ("damaged", "no bytes"):
        assert f"{name}/a/2.png: this image can't be read" in found["dali"][name]
    assert "floats/a/2.tiff: its pixels are floating-point" in found["dali"]["floats"]
    assert "0.png: DALI can't open names that are not in UTF-8" in found["dali"]["latin1"]


def test_folders_without_classes_or_images_are_refused(found: dict[str, Any]) -> None:
    assert "flat: it holds no class folders. Put each class in" in found["no classes"]
    assert "empty: there are no images in it. Known endings" in found["no images"]


def test_too_little_shared_memory(found: dict[str, Any]) -> None:
    for text in found["shared memory"]:
        assert text.startswith("ConfigError: data.num_workers=2: ")
        assert "/dev/shm has 64 KiB free" in text
        assert "--shm-size" in text


def test_registering_again_changes_nothing(found: dict[str, Any]) -> None:
    assert found["once"]
