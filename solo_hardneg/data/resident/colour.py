"""Colour steps for batches in which every image has its own parameters.

All take and return grey levels (B, 3, H, W) as floats from 0 to 255, red first. They equal
torchvision's on PIL images, except that PIL rounds to whole grey levels after each step.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import equalize

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in PIL's convert("L")


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device; cached, because the CPU waits for each copy."""
    return torch.tensor(values, device=device)


def adjust_linear(images: Tensor, kinds: Tensor, factors: Tensor) -> Tensor:
    """Blends each image with black (brightness), mean grey (contrast) or its grey (saturation).

    Args:
        images: (n, 3, H, W).
        kinds: (n,) ``BRIGHTNESS``, ``CONTRAST`` or ``SATURATION``.
        factors: (n,) from 0; 1 changes nothing.
    """
    luma = constant(LUMA, images.device)
    rest = 1 - factors
    # PIL's contrast rounds the mean of the grey image.
    mean = (images.mean(dim=(2, 3)) @ luma + 0.5).floor()
    bias = torch.where(kinds == CONTRAST, rest * mean, 0)
    grey = torch.where(kinds == SATURATION, rest, 0)
    matrix = factors[:, None, None] * torch.eye(3, device=images.device)
    matrix = matrix + grey[:, None, None] * luma
    changed = torch.baddbmm(bias[:, None, None], matrix, images.flatten(2))
    return changed.clamp_(0, 255).view_as(images)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotates the hue; the largest and the smallest channel of a pixel keep their values.

    Args:
        images: (n, 3, H, W).
        turns: (n,) angles in whole turns; torchvision allows -0.5 to 0.5.
    """
    red, green, blue = images.unbind(dim=1)
    most = images.amax(dim=1)
    chroma = most - images.amin(dim=1)
    safe = chroma.clamp(min=1e-6)  # grey pixels have no hue
    sixths = torch.where(
        most == red,
        (green - blue) / safe,
        torch.where(most == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    ).add_(6 * turns[:, None, None])
    # https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    offsets = constant((5.0, 3.0, 1.0), images.device)[:, None, None]
    k = (sixths[:, None] + offsets).remainder_(6)
    share = torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.addcmul(most[:, None], share, chroma[:, None], value=-1)


def to_grey(images: Tensor) -> Tensor:
    """Grey images, as three equal channels."""
    grey = torch.tensordot(constant(LUMA, images.device), images, dims=([0], [1]))
    return grey[:, None].expand_as(images)


def solarise(images: Tensor) -> Tensor:
    """Inverts grey levels of 128 or more, after rounding."""
    levels = images.round()
    return torch.where(levels >= 128, 255 - levels, levels)


def equalise(images: Tensor) -> Tensor:
    """Equalises the histogram of each channel of each image, as PIL does."""
    return equalize(images.round().to(torch.uint8)).to(images.dtype)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Computes (level / 255 - mean) / std, with one mean and std per channel."""
    shift = constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), images.device)
    scale = constant(tuple(1 / (255 * s) for s in std), images.device)
    return torch.addcmul(shift[:, None, None], images, scale[:, None, None])
