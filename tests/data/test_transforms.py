"""Views and plain pipelines, pixel by pixel where they are deterministic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from solo_hardneg.data.transforms import Views, blur, plain_pipeline, view_pipeline
from solo_hardneg.errors import ConfigError

STEPS = ("horizontal_flip", "equalization", "solarization", "grayscale")  # last applied first
SURE = {step: {"prob": 1.0} for step in STEPS}


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def entry(**changes):
    """An entry of ``augmentations`` that only normalizes."""
    return {"crop_size": 8, "num_crops": 2, "rrc": {"enabled": False}, **changes}


def grey(image):
    return ImageOps.grayscale(image).convert("RGB")


def plain(image, mean=0.305, std=0.376):
    pixels = torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1).float()
    return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, lambda i: i),
        ({"horizontal_flip": {"prob": 1.0}}, ImageOps.mirror),
        ({"solarization": {"prob": 1.0}}, ImageOps.solarize),
        ({"equalization": {"prob": 1.0}}, ImageOps.equalize),
        ({"grayscale": {"prob": 1.0}}, grey),
        (SURE, lambda i: ImageOps.mirror(ImageOps.equalize(ImageOps.solarize(grey(i))))),
    ],
)
def test_steps_with_probability_one(image, change, expected):
    out = view_pipeline("digits", entry(**change), "augmentations.0")(image)
    torch.testing.assert_close(out, plain(expected(image)))


@pytest.mark.parametrize(
    ("dataset", "extra", "mean", "std"),
    [
        ("cifar10", {}, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", {}, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("custom", {}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("custom", {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
    ],
)
def test_normalization_of_each_dataset(image, dataset, extra, mean, std):
    out = view_pipeline(dataset, entry(**extra), "augmentations.0")(image)
    torch.testing.assert_close(out, plain(image, mean, std))


def test_random_crops_and_jitter(image):
    crop = {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}
    jitter = {"prob": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    pipeline = view_pipeline("digits", entry(rrc=crop, color_jitter=jitter, crop_size=5), "a.0")
    torch.manual_seed(0)
    out = torch.stack([pipeline(image) for _ in range(20)])
    assert out.shape == (20, 3, 5, 5)
    assert len({view.sum().item() for view in out}) == 20
    assert out.min() >= plain(Image.new("RGB", (1, 1))).min() - 1e-5


def test_blur_reduces_contrast(image):
    torch.manual_seed(0)
    radii = [np.asarray(blur(image)).std() for _ in range(20)]
    assert max(radii) <= np.asarray(image).std()
    assert len(set(radii)) > 10


def test_every_entry_makes_its_views(image):
    flipped = entry(num_crops=1, horizontal_flip={"prob": 1.0})
    a, b = Views("digits", [entry(num_crops=1), flipped])(image)
    torch.testing.assert_close(a, b.flip(-1))
    assert len(Views("digits", [entry(num_crops=2)])(image)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizontal_flips": {"prob": 1.0}}, r"augmentations\.0: unknown key.*'horizontal_flip'"),
        ({"grayscale": {"prob": 1.5}}, r"augmentations\.0\.grayscale\.prob=1\.5: must be a prob"),
        ({"crop_size": 0}, r"augmentations\.0\.crop_size=0: must be a whole number"),
        ({"rrc": {"enabled": True}}, r"augmentations\.0\.rrc=.*crop_min_scale"),
        ({"color_jitter": {"prob": 0.8}}, r"augmentations\.0\.color_jitter\.brightness=None: "),
    ],
)
def test_refused_entries(change, message):
    with pytest.raises(ConfigError, match=message):
        view_pipeline("digits", entry(**change), "augmentations.0")


def test_sizes_and_normalization_in_evaluation():
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    cifar = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert plain_pipeline("custom", 28, augment=False)(wide).shape == (3, 28, 28)
    assert plain_pipeline("custom", 28, augment=True)(wide).shape == (3, 28, 28)
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
    torch.testing.assert_close(
        plain_pipeline("cifar100", 28, False)(cifar), plain(cifar, mean, std)
    )
    assert plain_pipeline("cifar10", 28, augment=True)(cifar).shape == (3, 32, 32)
    digit = cifar.resize((8, 8))
    for augment in (False, True):
        torch.testing.assert_close(plain_pipeline("digits", 8, augment)(digit), plain(digit))


def test_evaluation_crops_the_centre():
    image = Image.new("RGB", (256, 256))
    image.paste((255, 255, 255), (16, 16, 240, 240))  # the central 224 of 256 pixels
    out = plain_pipeline("custom", 224, augment=False)(image)
    assert (out == out[:, :1, :1]).all()
    assert out.min() > 0
