"""What a pipeline of torchvision does to an image, as numbers that whole batches can be made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchvision import transforms as T

from solo_hardneg.standalone.transforms import blur, plain_pipeline, view_pipeline

Range = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """The steps of one view. Whatever is not asked for has probability 0.

    Attributes:
        size: pixels; of a side of the view, or of its shorter side if it is not cut.
        scale: of the crop's area to the image's, least and most; ``None``: no random crop.
        ratio: of the crop's width to its height.
        kernel: ``bicubic`` or ``bilinear``.
        cut: without a random crop: cut a square out of the middle.
        jitter: probability of the four steps of ``factors``.
        factors: the ranges for brightness, contrast, saturation and hue; ``None``: left out.
        grey, blur, solarise, equalise, flip: probabilities.
        mean, std: of the channels, of values in [0, 1].
    """

    size: int = 0
    scale: Range | None = None
    ratio: Range = (1.0, 1.0)
    kernel: str = "bicubic"
    cut: bool = False
    jitter: float = 0.0
    factors: tuple[Range | None, ...] = (None,) * 4
    grey: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0
    equalise: float = 0.0
    flip: float = 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3


def pretrain_recipes(
    dataset: str, augmentations: Sequence[Mapping[str, Any]], cut: bool
) -> list[Recipe]:
    """One recipe per view: each entry as often as its ``num_crops`` says.

    Args:
        dataset: its name decides the normalization.
        augmentations: the host's entries.
        cut: without a random crop, the standalone host cuts a square out of the middle and
            solo-learn doesn't.

    Raises:
        ConfigError: a key isn't known, or a value is out of range.
    """
    recipes = []
    for number, entry in enumerate(augmentations):
        recipe = read_pipeline(view_pipeline(dataset, entry, f"augmentations.{number}"))
        recipes += [replace(recipe, cut=cut and recipe.cut)] * entry["num_crops"]
    return recipes


def linear_recipe(dataset: str, crop: int) -> Recipe:
    """For training the linear classifier on images of ``crop`` pixels."""
    return read_pipeline(plain_pipeline(dataset, crop, augment=True))


def read_pipeline(pipeline: Any) -> Recipe:
    """The recipe of a ``Compose`` of the steps, in the order, that the hosts have.

    Raises:
        TypeError: it holds any other step.
    """
    recipe = Recipe()
    for step in pipeline.transforms:
        recipe = replace(recipe, **_read(step))
    return recipe


def _read(step: Any) -> dict[str, Any]:
    if isinstance(step, T.RandomResizedCrop):
        found = {"scale": tuple(step.scale), "ratio": tuple(step.ratio)}
        return {**found, "size": step.size[0], "kernel": step.interpolation.value}
    if isinstance(step, T.Resize):
        return {"size": step.size, "kernel": step.interpolation.value}
    if isinstance(step, T.RandomApply):
        (only,) = step.transforms
        if only is blur:
            return {"blur": step.p}
        if isinstance(only, T.ColorJitter):
            ranges = (only.brightness, only.contrast, only.saturation, only.hue)
            return {"jitter": step.p, "factors": tuple(r and tuple(r) for r in ranges)}
    if isinstance(step, T.Normalize):
        return {"mean": tuple(step.mean), "std": tuple(step.std)}
    simple = {
        T.CenterCrop: lambda: {"cut": True},
        T.RandomGrayscale: lambda: {"grey": step.p},
        T.RandomSolarize: lambda: {"solarise": step.p},
        T.RandomEqualize: lambda: {"equalise": step.p},
        T.RandomHorizontalFlip: lambda: {"flip": step.p},
        T.ToTensor: dict,
    }
    if type(step) not in simple:
        raise TypeError(f"{step!r} can't be made on the device")
    found_by: Any = simple[type(step)]
    return found_by()
