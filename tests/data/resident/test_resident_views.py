"""Views, against those of the hosts' pipelines."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from resident_helpers import ENTRY, PLAIN, from_pil, pictures, to_pil
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision import transforms as T

from solo_hardneg.data.resident.recipe import Recipe, linear_recipe, pretrain_recipes, read_pipeline
from solo_hardneg.data.resident.views import ResidentViews
from solo_hardneg.data.transforms import plain_pipeline, view_pipeline
from solo_hardneg.errors import ConfigError


def views(images: Tensor, recipes: list[Recipe], seed: int = 0, place: Any = (0, 0, 0)) -> Any:
    return ResidentViews(images, recipes, seed)(torch.arange(len(images)), *place)


def statistics(images: Tensor) -> dict[str, Tensor]:
    """Statistics (N,) of images (N, 3, H, W) that the steps change."""
    flat = images.flatten(2)
    return {
        "mean": flat.mean(dim=(1, 2)),
        "deviation": flat.std(dim=2).mean(dim=1),
        "saturation": (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2)),
        "detail": images.diff(dim=3).abs().mean(dim=(1, 2, 3)),
        "left": images[..., :16].mean(dim=(1, 2, 3)) - images[..., 16:].mean(dim=(1, 2, 3)),
    }


@pytest.mark.parametrize(
    ("recipe", "pipeline"),
    [
        (
            pretrain_recipes("cifar100", [ENTRY], True)[0],
            view_pipeline("cifar100", ENTRY, "augmentations.0"),
        ),
        (linear_recipe("cifar100", 32), plain_pipeline("cifar100", 32, augment=True)),
    ],
    ids=["pretraining", "linear"],
)
def test_views_have_the_hosts_distribution(recipe: Recipe, pipeline: Any) -> None:
    """With 1,200 images, a probability of 0.35 for grey or 0.2 for blur gives p below 1e-3."""
    images = pictures(1200)
    actual = statistics(views(images, [recipe])[0])
    torch.manual_seed(1)
    expected = statistics(torch.stack([pipeline(to_pil(image)) for image in images]))
    for name, values in actual.items():
        assert ks_2samp(values.numpy(), expected[name].numpy()).pvalue > 0.01, name


def test_flipping_in_the_crop_equals_flipping_last() -> None:
    images = pictures(40)
    recipe = replace(pretrain_recipes("cifar100", [ENTRY], True)[0], flip=0.999999)
    mirrored = views(images, [recipe])[0]
    # The same parameters, as they are drawn for probability 0, too.
    plain = views(images, [replace(recipe, flip=0.0)])[0]
    torch.testing.assert_close(mirrored, plain.flip(3), atol=2e-2, rtol=0)


def test_without_augmentation_a_view_is_its_image() -> None:
    images = pictures(9)
    chosen = torch.tensor([7, 2, 2, 0])
    made = ResidentViews(images, pretrain_recipes("custom", [PLAIN], True), 0)(chosen, 0, 0, 0)
    torch.testing.assert_close(made[0] * 255, images[chosen].float(), atol=1e-3, rtol=0)


def test_normalization_equals_the_hosts() -> None:
    images = pictures(3)
    entry = {"crop_size": 32, "num_crops": 1}
    for dataset in ("cifar10", "cifar100", "digits", "imagenet", "custom"):
        made = views(images, pretrain_recipes(dataset, [entry], True))[0]
        pipeline = view_pipeline(dataset, entry, "augmentations.0")
        expected = torch.stack([pipeline(to_pil(image)) for image in images])
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "cut"), [(40, 61, True), (61, 40, False), (32, 47, True), (30, 30, False)]
)
def test_without_random_crop_images_are_resized(height: int, width: int, cut: bool) -> None:
    images = pictures(3, height, width)
    made = views(images, pretrain_recipes("custom", [PLAIN], cut))[0] * 255
    steps: list[Any] = [T.Resize(32, interpolation=T.InterpolationMode.BICUBIC)]
    resize = T.Compose([*steps, T.CenterCrop(32)] if cut else steps)
    expected = torch.stack([from_pil(resize(to_pil(image))) for image in images])
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1.25


def test_every_entry_gives_num_crops_views() -> None:
    small = {**ENTRY, "crop_size": 16, "num_crops": 3}
    made = views(pictures(5), pretrain_recipes("cifar10", [ENTRY, small], False))
    assert [tuple(view.shape) for view in made] == [(5, 3, 32, 32)] * 2 + [(5, 3, 16, 16)] * 3
    assert not torch.equal(made[0], made[1])
    assert all(view.dtype == torch.float32 for view in made)


def test_views_depend_on_seed_rank_epoch_and_batch_only() -> None:
    images, recipes = pictures(8), pretrain_recipes("cifar10", [ENTRY], False)
    first = views(images, recipes)[0]
    torch.manual_seed(99)
    random.seed(99)
    assert torch.equal(views(images, recipes)[0], first)
    for seed, place in [(1, (0, 0, 0)), (0, (1, 0, 0)), (0, (0, 1, 0)), (0, (0, 0, 1))]:
        assert not torch.equal(views(images, recipes, seed, place)[0], first)


def test_views_are_independent_within_a_batch() -> None:
    images, recipes = pictures(6), pretrain_recipes("cifar10", [ENTRY], False)
    made = ResidentViews(images, recipes, 0)(torch.tensor([0, 1, 2, 3]), 0, 0, 0)[0]
    other = ResidentViews(images, recipes, 0)(torch.tensor([0, 5, 2, 4]), 0, 0, 0)[0]
    torch.testing.assert_close(made[[0, 2]], other[[0, 2]], atol=1e-5, rtol=0)


def test_invalid_entries_are_refused_with_their_key() -> None:
    with pytest.raises(ConfigError, match=r"augmentations\.1: unknown key 'blur'"):
        pretrain_recipes("cifar10", [ENTRY, {**ENTRY, "blur": 1}], False)
    with pytest.raises(ConfigError, match=r"augmentations\.0\.grayscale\.prob=2: must be a prob"):
        pretrain_recipes("cifar10", [{**ENTRY, "grayscale": {"prob": 2}}], False)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(TypeError, match=r"RandomRotation.* can't be made on the device"):
        read_pipeline(T.Compose([T.RandomRotation(5)]))
