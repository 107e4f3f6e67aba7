"""Images and configs for the tests of the resident loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ENTRY: dict[str, Any] = {
    "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
    "color_jitter": {
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
    },
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.2},
    "equalization": {"prob": 0.1},
    "horizontal_flip": {"prob": 0.5},
    "crop_size": 32,
    "num_crops": 2,
}
PLAIN: dict[str, Any] = {"crop_size": 32, "num_crops": 1, "mean": [0.0] * 3, "std": [1.0] * 3}


def pictures(number: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """(number, 3, height, width) uint8: smooth shapes in strong colours, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.rand(number, 3, height, width, generator=generator)
    return (255 * (0.85 * smooth + 0.15 * noise)).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 as a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image as (3, H, W) floats from 0 to 255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def load_labels(dataset: Any) -> Tensor:
    """(N,) labels, -1 for images without one."""
    if hasattr(dataset, "samples"):
        return torch.tensor([label for _, label in dataset.samples])
    if hasattr(dataset, "targets"):
        return torch.tensor(dataset.targets)
    return torch.full((len(dataset),), -1)
