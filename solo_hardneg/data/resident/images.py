"""Reads a dataset's images into one tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solo_hardneg.data.images import read_image
from solo_hardneg.errors import ConfigError, bad_value

_REMEDY = "Use data.format=image_folder, or in solo-learn dali."


def load_images(dataset: Any, device: torch.device) -> Tensor:
    """Loads all images of a dataset, in the order of its indexes.

    Args:
        dataset: A dataset of the standalone host, torchvision's CIFAR10, CIFAR100 or ImageFolder,
            or solo-learn's dataset without labels.
        device: Where to keep the images.

    Returns:
        (N, 3, H, W) uint8 on the device.

    Raises:
        ConfigError: The dataset is another one, its images differ in size, or they don't fit on
            the device.
        DataError: An image can't be decoded; the message names the file.
    """
    sources = image_sources(dataset)
    first = np.asarray(read_image(sources[0]))
    check_room(len(sources), first.shape, free_bytes(device), device)
    pixels = sources if isinstance(sources, np.ndarray) else _decode(sources, first.shape)
    # Rearranged on the CPU, so that the device holds only one copy.
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device)


def image_sources(dataset: Any) -> Sequence[Any] | NDArray[Any]:
    """A dataset's images: an array (N, H, W, 3), or a sequence of paths or arrays (H, W, 3)."""
    if hasattr(dataset, "split") and hasattr(dataset.split, "images"):  # the standalone host's
        return dataset.split.images
    if hasattr(dataset, "samples"):  # not .targets or .imgs, which ignore data.fraction
        return [path for path, _ in dataset.samples]
    data = getattr(dataset, "data", None)
    if isinstance(data, np.ndarray) and data.ndim == 4 and data.shape[3] == 3:
        return data
    if hasattr(dataset, "images") and hasattr(dataset, "root"):  # solo-learn's, without labels
        return [Path(dataset.root) / name for name in dataset.images]
    kind = type(dataset).__mro__[1 if type(dataset).__name__ == "DatasetWithIndex" else 0]
    allowed = f"reads CIFAR and folders of images, not {kind.__name__}"
    raise bad_value("data.format", "resident", allowed, _REMEDY)


def check_room(number: int, shape: tuple[int, ...], free: int | None, device: torch.device) -> None:
    """Raises ConfigError unless ``number`` images of ``shape`` bytes fit into ``free`` bytes."""
    needed = number * int(np.prod(shape))
    if free is not None and needed > free:
        high, wide = shape[:2]
        allowed = (
            f"{number:,} images of {wide} x {high} pixels take {needed / 1e9:.2f} GB, and {device} "
            f"has {free / 1e9:.2f} GB free"
        )
        raise bad_value("data.format", "resident", allowed, _REMEDY)


def free_bytes(device: torch.device) -> int | None:
    """A device's free memory, if known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    memory = Path("/proc/meminfo")
    if device.type != "cpu" or not memory.exists():
        return None
    kilobytes = dict(line.split(":") for line in memory.read_text().splitlines())
    return int(kilobytes["MemAvailable"].split()[0]) * 1024


def _decode(sources: Sequence[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    pixels = np.empty((len(sources), *shape), dtype=np.uint8)

    def decode(number: int) -> None:
        image = np.asarray(read_image(sources[number]))
        if image.shape != shape:
            raise _size_error(sources, number, image.shape, shape)
        pixels[number] = image

    workers = min(32, 2 * (os.cpu_count() or 1))  # decoders release Python's lock
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(decode, range(len(sources))):
            pass
    return pixels


def _size_error(
    sources: Sequence[Any], number: int, found: tuple[int, ...], first: tuple[int, ...]
) -> ConfigError:
    one, other = (
        f"image {index}" if isinstance(sources[index], np.ndarray) else str(sources[index])
        for index in (number, 0)
    )
    allowed = (
        f"all images must have one size, but {one} has {found[1]} x {found[0]} pixels and {other} "
        f"{first[1]} x {first[0]}"
    )
    return bad_value("data.format", "resident", allowed, f"Resize them once. {_REMEDY}")
