"""The steps that change colours, for batches in which every image has its own numbers.

All take and return grey levels (B, 3, H, W) as floats from 0 to 255, red first. They are what
torchvision does to PIL images, but for PIL's rounding to whole grey levels after each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import equalize

from solo_hardneg.resident.draw import Draws

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in PIL's convert("L")


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """These numbers on a device; copied to it once, because a copy makes the CPU wait for it."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class Round:
    """Which images a round of the jitter changes, and how.

    Attributes:
        linear: (n,) the images whose turn is brightness, contrast or saturation.
        kinds: (n,) which of these.
        factors: (n,) of them.
        hue: (m,) the images whose turn is the hue.
        turns: (m,) how far it is turned, in whole turns.
    """

    linear: Tensor
    kinds: Tensor
    factors: Tensor
    hue: Tensor
    turns: Tensor


def jitter_rounds(draws: Draws, present: tuple[bool, ...]) -> list[Round]:
    """The four rounds of the jitter, each image in its own order.

    Args:
        draws: what was drawn, on the CPU.
        present: which of the four kinds there are at all.
    """
    there, rounds = torch.tensor(present), []
    for kinds in draws.order.unbind(dim=1):
        factors = draws.factors.gather(1, kinds[:, None])[:, 0]
        acts = draws.jitter & there[kinds]
        linear = (acts & (kinds != HUE)).nonzero()[:, 0]
        hue = (acts & (kinds == HUE)).nonzero()[:, 0]
        rounds.append(Round(linear, kinds[linear], factors[linear], hue, factors[hue]))
    return rounds


def adjust_linear(images: Tensor, kinds: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast or saturation: each image blended with black, grey, or its own grey.

    Args:
        images: (n, 3, H, W).
        kinds: (n,) which of them.
        factors: (n,) from 0; at 1 the image stays as it is.
    """
    luma = constant(LUMA, images.device)
    rest = 1 - factors
    # PIL's contrast goes towards the mean of the grey image, as a whole number
    mean = (images.mean(dim=(2, 3)) @ luma + 0.5).floor()
    bias = torch.where(kinds == CONTRAST, rest * mean, 0)
    grey = torch.where(kinds == SATURATION, rest, 0)
    matrix = factors[:, None, None] * torch.eye(3, device=images.device)
    matrix = matrix + grey[:, None, None] * luma
    changed = torch.baddbmm(bias[:, None, None], matrix, images.flatten(2))
    return changed.clamp_(0, 255).view_as(images)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue; the largest and the smallest channel of a pixel keep their values.

    Args:
        images: (n, 3, H, W).
        turns: (n,) in whole turns; torchvision allows -0.5 to 0.5.
    """
    red, green, blue = images.unbind(dim=1)
    most = images.amax(dim=1)
    chroma = most - images.amin(dim=1)
    safe = chroma.clamp(min=1e-6)  # without chroma there is no hue to turn
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
    """Three equal channels."""
    grey = torch.tensordot(constant(LUMA, images.device), images, dims=([0], [1]))
    return grey[:, None].expand_as(images)


def solarise(images: Tensor) -> Tensor:
    """Inverts what is 128 or more, once rounded to whole grey levels."""
    levels = images.round()
    return torch.where(levels >= 128, 255 - levels, levels)


def equalise(images: Tensor) -> Tensor:
    """Spreads the grey levels of each channel of each image evenly, as PIL does."""
    return equalize(images.round().to(torch.uint8)).to(images.dtype)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Grey levels to (level / 255 - mean) / std, with one mean and std for each channel."""
    shift = constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), images.device)
    scale = constant(tuple(1 / (255 * s) for s in std), images.device)
    return torch.addcmul(shift[:, None, None], images, scale[:, None, None])
