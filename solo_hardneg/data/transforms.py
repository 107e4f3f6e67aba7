"""Pipelines from PIL images to normalized tensors, for pretraining and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T

from solo_hardneg.errors import bad_value, unknown_name
from solo_hardneg.validate import is_number

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS = ((0.305,) * 3, (0.376,) * 3)  # measured on the training images
# As in solo-learn: one pair per dataset in pretraining, one for both CIFARs in evaluation.
PRETRAIN_NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "digits": DIGITS,
}
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))

_PROBABILITIES = (
    "color_jitter",
    "grayscale",
    "gaussian_blur",
    "solarization",
    "equalization",
    "horizontal_flip",
)
_CROP = ("enabled", "crop_min_scale", "crop_max_scale")
_JITTER = ("brightness", "contrast", "saturation", "hue")
# The keys of an entry that are mappings, and their keys.
_PARTS = {
    "rrc": _CROP,
    **dict.fromkeys(_PROBABILITIES, ("prob",)),
    "color_jitter": ("prob", *_JITTER),
}
_KEYS = (*_PARTS, "crop_size", "num_crops", "mean", "std")


def blur(image: Image.Image) -> Image.Image:
    """Gaussian blur with a radius of 0.1 to 2 pixels, as in solo-learn."""
    radius = torch.empty(1).uniform_(0.1, 2.0).item()
    return image.filter(ImageFilter.GaussianBlur(radius))


def view_pipeline(dataset: str, entry: Mapping[str, Any], key: str) -> Callable[..., Tensor]:
    """Builds the pipeline of one entry of ``augmentations``.

    Args:
        dataset: Decides the normalization: CIFAR and digits have their own, others the entry's
            ``mean`` and ``std``, or ImageNet's.
        entry: solo-learn's keys; missing transformations have probability 0.
        key: Key of the entry in the config, for messages.

    Returns:
        A function from a PIL image to a tensor (3, crop_size, crop_size).

    Raises:
        ConfigError: A key is unknown, or a value is out of range.
    """
    parts = _read_entry(entry, key)
    size = entry.get("crop_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise bad_value(f"{key}.crop_size", size, "must be a whole number of pixels above 0")
    p = {name: parts[name].get("prob", 0.0) for name in _PROBABILITIES}
    for name, value in p.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise bad_value(f"{key}.{name}.prob", value, "must be a probability, 0 to 1")
    bicubic = T.InterpolationMode.BICUBIC
    steps: list[Any]
    crop_at_random = parts["rrc"].get("enabled", False)
    if not isinstance(crop_at_random, bool):
        raise bad_value(f"{key}.rrc.enabled", crop_at_random, "must be true or false")
    if crop_at_random:
        scale = _crop_scale(parts["rrc"], key)
        steps = [T.RandomResizedCrop(size, scale=scale, interpolation=bicubic)]
    else:
        steps = [T.Resize(size, interpolation=bicubic), T.CenterCrop(size)]
    if p["color_jitter"]:
        steps.append(
            T.RandomApply([_color_jitter(parts["color_jitter"], key)], p=p["color_jitter"])
        )
    random_steps = {
        "grayscale": lambda q: T.RandomGrayscale(p=q),
        "gaussian_blur": lambda q: T.RandomApply([blur], p=q),
        "solarization": lambda q: T.RandomSolarize(threshold=128, p=q),
        "equalization": lambda q: T.RandomEqualize(p=q),
        "horizontal_flip": lambda q: T.RandomHorizontalFlip(p=q),
    }
    steps += [build(p[name]) for name, build in random_steps.items() if p[name]]
    mean = _three_numbers(f"{key}.mean", entry.get("mean", IMAGENET[0]))
    std = _three_numbers(f"{key}.std", entry.get("std", IMAGENET[1]), positive=True)
    return _pipeline(steps, PRETRAIN_NORMALIZATION.get(dataset, (mean, std)))


def _read_entry(entry: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """The settings of each transformation in an entry; empty for missing ones."""
    for name in entry:
        if name not in _KEYS:
            raise unknown_name(key, str(name), _KEYS, "key")
    parts = {name: {} if entry.get(name) is None else entry[name] for name in _PARTS}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            allowed = f"must hold the keys {', '.join(_PARTS[name])}"
            raise bad_value(
                f"{key}.{name}", part, allowed, f"Write {key}.{name}.{_PARTS[name][0]}=..."
            )
        for inner in part:
            if inner not in _PARTS[name]:
                raise unknown_name(f"{key}.{name}", str(inner), _PARTS[name], "key")
    return parts


def _crop_scale(crop: Mapping[str, Any], key: str) -> tuple[float, float]:
    """The least and greatest area of a crop, as shares of the image's."""
    low: Any = crop.get("crop_min_scale")
    high: Any = crop.get("crop_max_scale")
    if not (is_number(low) and is_number(high) and 0 < low <= high <= 1):
        allowed = (
            "crop_min_scale and crop_max_scale must be shares of the area, 0 < min <= max <= 1"
        )
        raise bad_value(f"{key}.rrc", dict(crop), allowed)
    return low, high


def _color_jitter(jitter: Mapping[str, Any], key: str) -> T.ColorJitter:
    """Checks that amounts are numbers or pairs; torchvision checks their range."""
    amounts: list[Any] = [jitter.get(name) for name in _JITTER]
    for name, amount in zip(_JITTER, amounts, strict=True):
        if not all(map(is_number, amount if _is_list(amount) else [amount])):
            allowed = "must be a number from 0 up, or two of them"
            raise bad_value(f"{key}.color_jitter.{name}", amount, allowed)
    try:
        return T.ColorJitter(*amounts)
    except (TypeError, ValueError) as error:
        raise bad_value(f"{key}.color_jitter", dict(jitter), f"can't be made: {error}") from error


def _three_numbers(key: str, values: Any, positive: bool = False) -> tuple[float, ...]:
    valid = _is_list(values) and len(values) == 3 and all(map(is_number, values))
    if not valid or (positive and min(values) <= 0):
        above = " above 0" if positive else ""
        raise bad_value(key, values, f"must be three numbers{above}, one for each channel")
    return tuple(values)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


class Views:
    """All views of an image: each entry's pipeline ``num_crops`` times."""

    def __init__(self, dataset: str, augmentations: list[Mapping[str, Any]]) -> None:
        self.pipelines = [
            view_pipeline(dataset, entry, f"augmentations.{i}")
            for i, entry in enumerate(augmentations)
            for _ in range(entry["num_crops"])
        ]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """The views of a PIL image: tensors (3, crop_size, crop_size)."""
        return [pipeline(image) for pipeline in self.pipelines]


def plain_pipeline(dataset: str, crop: int, augment: bool) -> Callable[..., Tensor]:
    """Builds the pipeline for evaluation, and for training the linear classifier.

    Args:
        dataset: Name of the dataset.
        crop: Pixels of a view's side; CIFAR's images keep their size.
        augment: Whether to crop and flip at random; digits are never augmented.

    Returns:
        A function from a PIL image to a tensor (3, crop, crop).
    """
    if dataset == "digits":
        return _pipeline([T.Resize(crop)] if crop != 8 else [], DIGITS)
    cifar = dataset.startswith("cifar")
    steps: list[Any] = []
    if augment:
        size = 32 if cifar else crop
        steps = [T.RandomResizedCrop(size, scale=(0.08, 1.0)), T.RandomHorizontalFlip()]
    elif not cifar:
        steps = [T.Resize(crop * 256 // 224), T.CenterCrop(crop)]
    return _pipeline(steps, CIFAR if cifar else IMAGENET)


def _pipeline(steps: list[Any], normalization: tuple[Any, Any]) -> Callable[..., Tensor]:
    mean, std = normalization
    return T.Compose([*steps, T.ToTensor(), T.Normalize(mean=tuple(mean), std=tuple(std))])
