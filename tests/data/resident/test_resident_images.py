"""Loading datasets, and refusing those that can't be resident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from resident_helpers import load_labels, pictures, to_pil
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from solo_hardneg.data.datasets import IndexDataset, Split
from solo_hardneg.data.resident.images import (
    check_room,
    image_sources,
    load_images,
)
from solo_hardneg.errors import ConfigError, DataError

CPU = torch.device("cpu")


class Plain(Dataset):
    """A dataset with the given attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.images)


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    for number, image in enumerate(pictures(12, 20, 24)):
        place = tmp_path / "images" / f"class_{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(place / f"{number:02}.png")
    return tmp_path / "images"


def test_folders_are_read_in_the_order_of_their_indexes(small_folder: Path) -> None:
    dataset = ImageFolder(str(small_folder))
    dataset.samples = dataset.samples[::-2]  # as after solo-learn's data.fraction
    images = load_images(dataset, CPU)
    assert images.shape == (6, 3, 20, 24)
    assert images.is_contiguous()
    for i, (image, label) in enumerate(zip(images, load_labels(dataset), strict=True)):
        expected, index = dataset[i]
        assert torch.equal(image, torch.from_numpy(np.array(expected)).permute(2, 0, 1))
        assert label == index


def test_arrays_are_read(small_folder: Path) -> None:
    images = pictures(5)
    arrays = images.permute(0, 2, 3, 1).numpy()
    cifar = Plain(data=arrays, targets=[1, 2, 0, 1, 2])
    listed = IndexDataset(Split(list(arrays), [1, 2, 0, 1, 2], ["a", "b", "c"]))
    stacked = IndexDataset(Split(arrays, [1, 2, 0, 1, 2], ["a", "b", "c"]))
    for dataset in (cifar, listed, stacked):
        assert torch.equal(load_images(dataset, CPU), images)
        assert load_labels(dataset).tolist() == [1, 2, 0, 1, 2]
    assert listed[3] == (3, [], 1)


def test_unlabelled_folders_are_read(small_folder: Path) -> None:
    names = ["03.png", "00.png"]
    dataset = Plain(root=small_folder / "class_0", images=names, transform=None)
    assert torch.equal(load_images(dataset, CPU), pictures(12, 20, 24)[[3, 0]])
    assert load_labels(dataset).tolist() == [-1, -1]


def test_images_of_different_sizes_are_refused(small_folder: Path) -> None:
    odd = small_folder / "class_2" / "05.png"
    Image.new("RGB", (9, 8)).save(odd)
    message = (
        rf"data\.format=resident: all images must have one size, but {odd} has 9 x 8 pixels and "
        r".*00\.png 24 x 20\. Resize them once\. Use data\.format=image_folder"
    )
    with pytest.raises(ConfigError, match=message):
        load_images(ImageFolder(str(small_folder)), CPU)


def test_a_broken_file_is_named(small_folder: Path) -> None:
    broken = small_folder / "class_1" / "07.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{broken}: this image can't be read"):
        load_images(ImageFolder(str(small_folder)), CPU)


def test_a_dataset_larger_than_free_memory_is_refused() -> None:
    message = (
        r"data\.format=resident: 1,281,167 images of 224 x 200 pixels take 172\.19 GB, and cpu has "
        r"64\.00 GB free\. Use data\.format=image_folder, or in solo-learn dali"
    )
    with pytest.raises(ConfigError, match=message):
        check_room(1_281_167, (200, 224, 3), 64 * 10**9, CPU)
    check_room(1_281_167, (200, 224, 3), None, CPU)  # unknown


def test_too_many_images_are_refused_before_reading_them(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solo_hardneg.data.resident.images.free_bytes", lambda device: 1000)
    for file in small_folder.rglob("*.png"):
        if file.name != "00.png":
            file.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="12 images of 24 x 20 pixels take"):
        load_images(ImageFolder(str(small_folder)), CPU)


def test_other_datasets_are_refused() -> None:
    class DatasetWithIndex(Plain):
        """solo-learn's name for its wrapper."""

    with pytest.raises(ConfigError, match=r"resident: reads CIFAR and folders .*, not Plain\. Use"):
        image_sources(DatasetWithIndex(data=np.zeros((5, 3, 96, 96), np.uint8)))
