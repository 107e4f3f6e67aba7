"""Recipes: torchvision's pipelines as numbers, to be applied to whole batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchvision import transforms as T

from solo_hardneg.data.transforms import blur, plain_pipeline, view_pipeline

Range = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """The steps of one view.

    Attributes:
        size: Pixels of the view's side; without a crop, of its shorter side.
        scale: Range of a random crop's area, as a share of the image's; ``None``: no random crop.
        ratio: Range of the crop's width / height.
        kernel: ``bicubic`` or ``bilinear``.
        cut: Whether to cut a square out of the middle, without a random crop.
        jitter: Probability of the four steps of ``factors``.
        factors: Ranges for brightness, contrast, saturation and hue; ``None``: left out.
        grey, blur, solarise, equalise, flip: Probabilities.
        mean, std: Of each channel, for values in [0, 1].
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
    """One recipe per view: each entry ``num_crops`` times.

    Args:
        dataset: Decides the normalization.
        augmentations: Entries of the config's ``augmentations``.
        cut: Whether images without a random crop are cut to squares: True in the standalone host,
            False in solo-learn.

    Raises:
        ConfigError: A key is unknown, or a value is out of range.
    """
    recipes = []
    for number, entry in enumerate(augmentations):
        recipe = read_pipeline(view_pipeline(dataset, entry, f"augmentations.{number}"))
        recipes += [replace(recipe, cut=cut and recipe.cut)] * entry["num_crops"]
    return recipes


def linear_recipe(dataset: str, crop: int) -> Recipe:
    """The recipe for training the linear classifier on views of ``crop`` pixels."""
    return read_pipeline(plain_pipeline(dataset, crop, augment=True))


def read_pipeline(pipeline: Any) -> Recipe:
    """The recipe of a ``Compose`` with the hosts' steps in their order.

    Raises:
        TypeError: The pipeline has another step.
    """
    recipe = Recipe()
    for step in pipeline.transforms:
        recipe = replace(recipe, **_read_step(step))
    return recipe


def _read_step(step: Any) -> dict[str, Any]:
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
    if isinstance(step, T.CenterCrop):
        return {"cut": True}
    if isinstance(step, T.ToTensor):
        return {}
    probabilities = {
        T.RandomGrayscale: "grey",
        T.RandomSolarize: "solarise",
        T.RandomEqualize: "equalise",
        T.RandomHorizontalFlip: "flip",
    }
    if type(step) not in probabilities:
        raise TypeError(f"{step!r} can't be made on the device")
    return {probabilities[type(step)]: step.p}
