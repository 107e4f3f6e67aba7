"""The random numbers, against those of torchvision's transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from resident_helpers import ENTRY
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from solo_hardneg.resident.draw import draw, draw_boxes, generator_for
from solo_hardneg.resident.recipe import Recipe, pretrain_recipes

RATIO = (3 / 4, 4 / 3)
NUMBER = 3000
RECIPE = pretrain_recipes("cifar100", [ENTRY], cut=False)[0]


def quantities(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    top, left, h, w = boxes.T.astype(float)
    inside = {"top": top / np.maximum(height - h, 1), "left": left / np.maximum(width - w, 1)}
    return {"area": h * w, "ratio": w / h, **inside}


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.08, 1.0)), (48, 20, (0.2, 1.0))]
)
def test_crops_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    """With a scale of (0.25, 1) instead of (0.2, 1), p is below 1e-4."""
    generator = torch.Generator().manual_seed(0)
    ours = draw_boxes(scale, RATIO, NUMBER, height, width, generator).numpy()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    host = np.array(
        [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(NUMBER)]
    )
    mine, theirs = (quantities(boxes, height, width) for boxes in (ours, host))
    for name, values in mine.items():
        assert ks_2samp(values, theirs[name]).pvalue > 0.01, name


@pytest.mark.parametrize(
    ("height", "width", "box"), [(4, 100, [0, 47, 4, 5]), (100, 4, [47, 0, 5, 4])]
)
def test_the_middle_is_taken_when_nothing_fits(height: int, width: int, box: list[int]) -> None:
    boxes = draw_boxes((1.0, 1.0), RATIO, 5, height, width, torch.Generator())
    assert boxes.tolist() == [box] * 5
    image = torch.empty(3, height, width)
    assert list(RandomResizedCrop.get_params(image, [1.0, 1.0], list(RATIO))) == box


def test_every_crop_lies_inside() -> None:
    boxes = draw_boxes((0.01, 1.0), RATIO, NUMBER, 9, 13, torch.Generator().manual_seed(2))
    top, left, h, w = boxes.T
    assert min(x.min() for x in (top, left)) >= 0
    assert min(x.min() for x in (h, w)) >= 1
    assert (top + h).max() <= 9
    assert (left + w).max() <= 13


def test_steps_happen_as_often_as_they_should() -> None:
    draws = draw(RECIPE, NUMBER, 32, 32, torch.Generator().manual_seed(0))
    for name in ("jitter", "grey", "blur", "solarise", "equalise", "flip"):
        expected = getattr(RECIPE, name)
        found = getattr(draws, name).float().mean().item()
        assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / NUMBER) ** 0.5)


def test_factors_orders_and_radii_are_uniform() -> None:
    draws = draw(RECIPE, NUMBER, 32, 32, torch.Generator().manual_seed(0))
    for kind, limits in enumerate(RECIPE.factors):
        assert limits is not None
        low, high = limits
        assert kstest(draws.factors[:, kind].numpy(), "uniform", (low, high - low)).pvalue > 0.01
    assert kstest(draws.radius.numpy(), "uniform", (0.1, 1.9)).pvalue > 0.01
    digits = draws.order @ torch.tensor([64, 16, 4, 1])
    counts = np.unique(digits.numpy(), return_counts=True)[1]
    assert len(counts) == 24
    assert chisquare(counts).pvalue > 0.01


def test_images_are_drawn_one_by_one() -> None:
    draws = draw(RECIPE, 500, 32, 32, torch.Generator().manual_seed(0))
    assert len(draws.box.unique(dim=0)) > 400
    assert len(draws.factors.unique(dim=0)) == 500
    steps = torch.stack([draws.flip, draws.jitter, draws.grey, draws.blur]).double()
    correlation = torch.corrcoef(steps) - torch.eye(4)
    assert correlation.abs().max() < 0.2


def test_drawing_leaves_the_runs_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(Recipe(size=8, scale=(0.1, 1.0), ratio=RATIO), 10, 8, 8, generator_for(0, 0, 0, 0))
    assert torch.equal(before, torch.get_rng_state())
