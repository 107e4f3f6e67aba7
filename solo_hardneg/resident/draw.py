"""The random numbers of a batch of views, drawn as torchvision's transforms draw them.

They are drawn on the CPU. So they are the same whatever the device, and what depends on them (which
images a step touches) is known without waiting for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.resident.recipe import Range, Recipe

TRIES = 10  # of torchvision's RandomResizedCrop, before it takes the middle of the image
RADIUS = (0.1, 2.0)  # of the hosts' blur, in pixels


@dataclass(frozen=True)
class Draws:
    """What was drawn for the B images of a batch.

    Attributes:
        box: (B, 4) whole numbers: top, left, height and width of the crop.
        flip, jitter, grey, blur, solarise, equalise: (B,) bool; whether the step is done.
        order: (B, 4) which step of the jitter is done first, second, ...; 0 brightness,
            1 contrast, 2 saturation, 3 hue.
        factors: (B, 4) the factors of these steps, in that order.
        radius: (B,) of the blur, in pixels.
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    radius: Tensor
    solarise: Tensor
    equalise: Tensor


def generator_for(seed: int, rank: int, epoch: int, batch: int) -> torch.Generator:
    """The generator of one batch: a resumed run has the same, other processes have others."""
    words = np.random.SeedSequence([seed, rank, epoch, batch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def draw(recipe: Recipe, number: int, height: int, width: int, generator: torch.Generator) -> Draws:
    """Draws one view of each of ``number`` images of ``height`` x ``width`` pixels."""

    def happens(probability: float) -> Tensor:
        return torch.rand(number, generator=generator) < probability

    if recipe.scale is None:
        box = torch.tensor([[0, 0, height, width]]).expand(number, 4)
    else:
        box = draw_boxes(recipe.scale, recipe.ratio, number, height, width, generator)
    factors = [
        _uniform(limits or (1.0, 1.0), (number,), generator).float() for limits in recipe.factors
    ]
    return Draws(
        box=box,
        flip=happens(recipe.flip),
        jitter=happens(recipe.jitter),
        order=torch.rand(number, 4, generator=generator).argsort(dim=1),
        factors=torch.stack(factors, dim=1),
        grey=happens(recipe.grey),
        blur=happens(recipe.blur),
        radius=_uniform(RADIUS, (number,), generator).float(),
        solarise=happens(recipe.solarise),
        equalise=happens(recipe.equalise),
    )


def draw_boxes(
    scale: Range, ratio: Range, number: int, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Crops (number, 4) of top, left, height, width, as torchvision's RandomResizedCrop has them.

    Args:
        scale: least and most area of the crop, as a share of the image's.
        ratio: least and most width / height; its logarithm is uniform.
        number: how many.
        height: of the images, in pixels.
        width: the same.
        generator: of the numbers.
    """
    logs = (math.log(ratio[0]), math.log(ratio[1]))
    areas = height * width * _uniform(scale, (number, TRIES), generator)
    ratios = _uniform(logs, (number, TRIES), generator).exp()
    widths = (areas * ratios).sqrt().round().long()
    heights = (areas / ratios).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.byte().argmax(dim=1, keepdim=True)  # 0 where none fits
    h, w = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    places = torch.rand(number, 2, generator=generator, dtype=torch.float64)
    top, left = (places[:, 0] * (height - h + 1)).long(), (places[:, 1] * (width - w + 1)).long()
    boxes = torch.stack([top, left, h, w], dim=1)
    middle = torch.tensor(_middle(ratio, height, width))
    return torch.where(fits.any(dim=1, keepdim=True), boxes, middle)


def _middle(ratio: Range, height: int, width: int) -> tuple[int, int, int, int]:
    """What torchvision takes when no try fits: the largest crop in the middle."""
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def _uniform(limits: Range, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # in double precision, as Python's floats, for a rounded size must not depend on it
    return torch.empty(shape, dtype=torch.float64).uniform_(*limits, generator=generator)
