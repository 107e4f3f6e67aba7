"""Colour steps, against torchvision and PIL."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from PIL import ImageOps
from resident_helpers import from_pil, pictures, to_pil
from torch import Tensor
from torchvision.transforms import functional as F

from solo_hardneg.data.resident import colour
from solo_hardneg.data.resident.params import draw_params
from solo_hardneg.data.resident.recipe import Recipe
from solo_hardneg.data.resident.views import make_view

FACTORS = (0.0, 0.8, 1.8)
LEVELS = 1.5  # PIL rounds the grey image, and truncates the result
TURNS = (-0.5, 0.1, 0.37)
ADJUST: list[Callable[..., Tensor]] = [
    F.adjust_brightness,
    F.adjust_contrast,
    F.adjust_saturation,
    F.adjust_hue,
]


@pytest.mark.parametrize("kind", [colour.BRIGHTNESS, colour.CONTRAST, colour.SATURATION])
@pytest.mark.parametrize("factor", FACTORS)
def test_linear_steps_equal_torchvisions(kind: int, factor: float) -> None:
    images = pictures(6)
    actual = colour.adjust_linear(
        images.float(), torch.tensor([kind] * 6), torch.full((6,), factor)
    )
    for image, found in zip(images, actual, strict=True):
        expected = from_pil(ADJUST[kind](to_pil(image), factor))
        assert (found - expected).abs().max() <= LEVELS


@pytest.mark.parametrize("turn", TURNS)
def test_hue_equals_torchvisions(turn: float) -> None:
    images = pictures(6)
    actual = colour.adjust_hue(images.float(), torch.full((6,), turn))
    # On float tensors; on PIL images torchvision rounds hue and saturation to 256 levels.
    expected = F.adjust_hue(images.float() / 255, turn) * 255
    assert (actual - expected).abs().max() <= 0.01
    pil = torch.stack([from_pil(F.adjust_hue(to_pil(image), turn)) for image in images])
    assert (actual - pil).abs().mean() <= 2


def test_hue_of_grey_and_of_pure_colours() -> None:
    grey = torch.full((1, 3, 2, 2), 77.0)
    assert torch.equal(colour.adjust_hue(grey, torch.tensor([0.3])), grey)
    red = torch.tensor([255.0, 0, 0]).view(1, 3, 1, 1)
    green = colour.adjust_hue(red, torch.tensor([1 / 3])).flatten()
    torch.testing.assert_close(green, torch.tensor([0.0, 255, 0]), atol=1e-3, rtol=0)


def test_neutral_factors_change_nothing() -> None:
    images = pictures(6).float()
    kinds = torch.arange(6) % 3
    torch.testing.assert_close(colour.adjust_linear(images, kinds, torch.ones(6)), images)
    for turn in (0.0, 1.0):
        turned = colour.adjust_hue(images, torch.full((6,), turn))
        torch.testing.assert_close(turned, images, atol=1e-3, rtol=0)


def test_jitter_in_every_order_equals_torchvisions() -> None:
    """Each image in its own order, clamped after each step."""
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = pictures(24)
    recipe = Recipe(
        size=32, jitter=1.0, factors=((0.2, 1.8),) * 3 + ((-0.2, 0.2),), kernel="bicubic"
    )
    params = draw_params(recipe, 24, 32, 32, torch.Generator().manual_seed(3))
    object.__setattr__(params, "order", orders)
    actual = make_view(images.float(), recipe, params) * 255
    for i in range(24):
        tensor, pil = images[i].float() / 255, to_pil(images[i])
        for kind in orders[i].tolist():
            factor = params.factors[i, kind].item()
            tensor = ADJUST[kind](tensor, factor)
            pil = ADJUST[kind](pil, factor)
        assert (
            actual[i] - 255 * tensor
        ).abs().max() <= 1.5  # torchvision's contrast doesn't round the mean
        assert (actual[i] - from_pil(pil)).abs().mean() <= 3


def test_jitter_with_probability_zero_or_no_range_changes_nothing() -> None:
    images = pictures(8).float()
    off = Recipe(size=32, jitter=0.0, factors=((0.2, 1.8),) * 3 + ((-0.2, 0.2),))
    empty = Recipe(size=32, jitter=1.0)
    for recipe in (off, empty):
        params = draw_params(recipe, 8, 32, 32, torch.Generator().manual_seed(3))
        torch.testing.assert_close(make_view(images, recipe, params) * 255, images)


def test_grey_solarise_and_equalise_equal_pils() -> None:
    images = pictures(12)
    images[0] = 9  # of one colour
    floats = images.float()
    grey, solar = colour.to_grey(floats), colour.solarise(floats)
    equal = colour.equalise(floats)
    for i, image in enumerate(map(to_pil, images)):
        assert (grey[i] - from_pil(F.to_grayscale(image, 3))).abs().max() <= 0.51
        assert torch.equal(solar[i], from_pil(ImageOps.solarize(image)))
        assert torch.equal(equal[i], from_pil(ImageOps.equalize(image)))
