"""Random parameters of views, against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from resident_helpers import ENTRY
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from solo_hardneg.data.resident.params import batch_generator, draw_crops, draw_params
from solo_hardneg.data.resident.recipe import Recipe, pretrain_recipes

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
def test_crops_have_torchvisions_distribution(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    """With a scale of (0.25, 1) instead of (0.2, 1), p is below 1e-4."""
    generator = torch.Generator().manual_seed(0)
    actual = draw_crops(scale, RATIO, NUMBER, height, width, generator).numpy()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    host = np.array(
        [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(NUMBER)]
    )
    found, expected = (quantities(boxes, height, width) for boxes in (actual, host))
    for name, values in found.items():
        assert ks_2samp(values, expected[name]).pvalue > 0.01, name


@pytest.mark.parametrize(
    ("height", "width", "box"), [(4, 100, [0, 47, 4, 5]), (100, 4, [47, 0, 5, 4])]
)
def test_the_fallback_crop_equals_torchvisions(height: int, width: int, box: list[int]) -> None:
    boxes = draw_crops((1.0, 1.0), RATIO, 5, height, width, torch.Generator())
    assert boxes.tolist() == [box] * 5
    image = torch.empty(3, height, width)
    assert list(RandomResizedCrop.get_params(image, [1.0, 1.0], list(RATIO))) == box


def test_crops_are_inside_the_image() -> None:
    boxes = draw_crops((0.01, 1.0), RATIO, NUMBER, 9, 13, torch.Generator().manual_seed(2))
    top, left, h, w = boxes.T
    assert min(x.min() for x in (top, left)) >= 0
    assert min(x.min() for x in (h, w)) >= 1
    assert (top + h).max() <= 9
    assert (left + w).max() <= 13


def test_steps_have_their_probabilities() -> None:
    params = draw_params(RECIPE, NUMBER, 32, 32, torch.Generator().manual_seed(0))
    for name in ("jitter", "grey", "blur", "solarise", "equalise", "flip"):
        expected = getattr(RECIPE, name)
        found = getattr(params, name).float().mean().item()
        assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / NUMBER) ** 0.5)


def test_factors_orders_and_radii_are_uniform() -> None:
    params = draw_params(RECIPE, NUMBER, 32, 32, torch.Generator().manual_seed(0))
    for kind, limits in enumerate(RECIPE.factors):
        assert limits is not None
        low, high = limits
        assert kstest(params.factors[:, kind].numpy(), "uniform", (low, high - low)).pvalue > 0.01
    assert kstest(params.radius.numpy(), "uniform", (0.1, 1.9)).pvalue > 0.01
    digits = params.order @ torch.tensor([64, 16, 4, 1])
    counts = np.unique(digits.numpy(), return_counts=True)[1]
    assert len(counts) == 24
    assert chisquare(counts).pvalue > 0.01


def test_parameters_are_independent_per_image() -> None:
    params = draw_params(RECIPE, 500, 32, 32, torch.Generator().manual_seed(0))
    assert len(params.crop.unique(dim=0)) > 400
    assert len(params.factors.unique(dim=0)) == 500
    steps = torch.stack([params.flip, params.jitter, params.grey, params.blur]).double()
    correlation = torch.corrcoef(steps) - torch.eye(4)
    assert correlation.abs().max() < 0.2


def test_the_runs_generator_is_not_used() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw_params(
        Recipe(size=8, scale=(0.1, 1.0), ratio=RATIO), 10, 8, 8, batch_generator(0, 0, 0, 0)
    )
    assert torch.equal(before, torch.get_rng_state())
