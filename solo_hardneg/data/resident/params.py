"""The random parameters of a batch of views, distributed as in torchvision's transforms.

They are drawn on the CPU: they don't depend on the device, and the CPU need not wait for the device
to know which images a step changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solo_hardneg.data.resident.recipe import Range, Recipe

TRIES = 10  # of torchvision's RandomResizedCrop, before it takes a crop in the middle
RADIUS = (0.1, 2.0)  # of the hosts' blur, in pixels


@dataclass(frozen=True)
class ViewParams:
    """Parameters of one view of each of B images.

    Attributes:
        crop: (B, 4) int: top, left, height and width.
        flip, jitter, grey, blur, solarise, equalise: (B,) bool, whether the step is applied.
        order: (B, 4) the order of the jitter's steps: 0 brightness, 1 contrast, 2 saturation, 3
            hue.
        factors: (B, 4) the factors of these four steps.
        radius: (B,) of the blur, in pixels.
    """

    crop: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    radius: Tensor
    solarise: Tensor
    equalise: Tensor


def batch_generator(seed: int, rank: int, epoch: int, batch: int) -> torch.Generator:
    """The generator of one batch: equal after a resume, different on each process."""
    words = np.random.SeedSequence([seed, rank, epoch, batch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def draw_params(
    recipe: Recipe, number: int, height: int, width: int, generator: torch.Generator
) -> ViewParams:
    """Draws the parameters of one view of each of ``number`` images of ``height`` x ``width``."""

    def happens(probability: float) -> Tensor:
        return torch.rand(number, generator=generator) < probability

    if recipe.scale is None:
        crop = torch.tensor([[0, 0, height, width]]).expand(number, 4)
    else:
        crop = draw_crops(recipe.scale, recipe.ratio, number, height, width, generator)
    factors = [
        _uniform(limits or (1.0, 1.0), (number,), generator).float() for limits in recipe.factors
    ]
    return ViewParams(
        crop=crop,
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


def draw_crops(
    scale: Range, ratio: Range, number: int, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Draws crops as torchvision's RandomResizedCrop: (number, 4) top, left, height, width.

    Args:
        scale: Range of the crop's area, as a share of the image's.
        ratio: Range of width / height, whose logarithm is uniform.
        number: Number of crops.
        height, width: Pixels of the images.
        generator: Source of the random numbers.
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
    crops = torch.stack([top, left, h, w], dim=1)
    fallback = torch.tensor(_largest_crop(ratio, height, width))
    return torch.where(fits.any(dim=1, keepdim=True), crops, fallback)


def _largest_crop(ratio: Range, height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's fallback when no try fits: the largest crop in the middle."""
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def _uniform(limits: Range, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # In double precision, as Python's floats: float32 could round a crop to another size.
    return torch.empty(shape, dtype=torch.float64).uniform_(*limits, generator=generator)
