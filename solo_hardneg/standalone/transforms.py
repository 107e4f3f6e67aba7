"""From PIL images to normalized tensors: the views for pretraining, and the plain pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T

from solo_hardneg.errors import bad_value, unknown_name
from solo_hardneg.negatives.numbers import is_number

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS = ((0.305,) * 3, (0.376,) * 3)  # measured on the training images
# What the host normalizes with: by dataset in pretraining, and one pair for both CIFARs otherwise.
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
# The keys of an entry that hold several keys, and which.
_PARTS = {
    "rrc": _CROP,
    **dict.fromkeys(_PROBABILITIES, ("prob",)),
    "color_jitter": ("prob", *_JITTER),
}
_KEYS = (*_PARTS, "crop_size", "num_crops", "mean", "std")


def blur(image: Image.Image) -> Image.Image:
    """A Gaussian blur with a radius of 0.1 to 2 pixels, as in the host."""
    radius = torch.empty(1).uniform_(0.1, 2.0).item()
    return image.filter(ImageFilter.GaussianBlur(radius))


def view_pipeline(dataset: str, entry: Mapping[str, Any], key: str) -> Callable[..., Tensor]:
    """The pipeline of one entry of ``augmentations``.

    Args:
        dataset: its name decides the normalization; others than CIFAR and digits have ImageNet's
            or the entry's ``mean`` and ``std``.
        entry: the host's keys. A transformation that isn't named, or has probability 0, is left
            out.
        key: where the entry stands in the config, for messages.

    Returns:
        a function from a PIL image to a tensor (3, crop_size, crop_size).

    Raises:
        ConfigError: a key isn't known, or a value is out of range.
    """
    parts = _parts(entry, key)
    size = entry.get("crop_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise bad_value(f"{key}.crop_size", size, "must be a whole number of pixels above 0")
    p = {name: parts[name].get("prob", 0.0) for name in _PROBABILITIES}
    for name, value in p.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise bad_value(f"{key}.{name}.prob", value, "must be a probability, 0 to 1")
    bicubic = T.InterpolationMode.BICUBIC
    steps: list[Any]
    if _enabled(parts["rrc"], key):
        scale = _scale(parts["rrc"], key)
        steps = [T.RandomResizedCrop(size, scale=scale, interpolation=bicubic)]
    else:
        steps = [T.Resize(size, interpolation=bicubic), T.CenterCrop(size)]
    if p["color_jitter"]:
        steps.append(T.RandomApply([_jitter(parts["color_jitter"], key)], p=p["color_jitter"]))
    random_steps = {
        "grayscale": lambda q: T.RandomGrayscale(p=q),
        "gaussian_blur": lambda q: T.RandomApply([blur], p=q),
        "solarization": lambda q: T.RandomSolarize(threshold=128, p=q),
        "equalization": lambda q: T.RandomEqualize(p=q),
        "horizontal_flip": lambda q: T.RandomHorizontalFlip(p=q),
    }
    steps += [build(p[name]) for name, build in random_steps.items() if p[name]]
    mean, std = IMAGENET
    own: Any = (
        _channels(f"{key}.mean", entry.get("mean", mean)),
        _channels(f"{key}.std", entry.get("std", std)),
    )
    return _finish(steps, PRETRAIN_NORMALIZATION.get(dataset, own))


def _parts(entry: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """What stands in an entry for each transformation; nothing for those that it doesn't name."""
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


def _enabled(crop: Mapping[str, Any], key: str) -> bool:
    enabled = crop.get("enabled", False)
    if not isinstance(enabled, bool):
        raise bad_value(f"{key}.rrc.enabled", enabled, "must be true or false")
    return enabled


def _scale(crop: Mapping[str, Any], key: str) -> tuple[float, float]:
    """The least and the most of an image's area that a crop has."""
    low: Any = crop.get("crop_min_scale")
    high: Any = crop.get("crop_max_scale")
    if not (is_number(low) and is_number(high) and 0 < low <= high <= 1):
        allowed = (
            "crop_min_scale and crop_max_scale must be shares of the area, 0 < min <= max <= 1"
        )
        raise bad_value(f"{key}.rrc", dict(crop), allowed)
    return low, high


def _jitter(jitter: Mapping[str, Any], key: str) -> T.ColorJitter:
    """Amounts are finite numbers, or pairs of them; torchvision knows which are too large."""
    amounts = [jitter.get(name) for name in _JITTER]
    for name, amount in zip(_JITTER, amounts, strict=True):
        pair = (
            list(amount)
            if isinstance(amount, Sequence) and not isinstance(amount, str)
            else [amount]
        )
        if not all(map(is_number, pair)):
            allowed = "must be a number from 0 up, or two of them"
            raise bad_value(f"{key}.color_jitter.{name}", amount, allowed)
    try:
        return T.ColorJitter(*amounts)
    except (TypeError, ValueError) as error:
        raise bad_value(f"{key}.color_jitter", dict(jitter), f"can't be made: {error}") from error


def _channels(key: str, values: Any) -> tuple[float, ...]:
    """The three means or deviations to normalize with."""
    sequence = isinstance(values, Sequence) and not isinstance(values, str)
    numbers = sequence and all(map(is_number, values))
    if not numbers or len(values) != 3 or (key.endswith("std") and min(values) <= 0):
        above = " above 0" if key.endswith("std") else ""
        raise bad_value(key, values, f"must be three numbers{above}, one for each channel")
    return tuple(values)


class Views:
    """All views of an image: each pipeline as often as its ``num_crops`` says."""

    def __init__(self, dataset: str, augmentations: list[Mapping[str, Any]]) -> None:
        self.pipelines = [
            view_pipeline(dataset, entry, f"augmentations.{i}")
            for i, entry in enumerate(augmentations)
            for _ in range(entry["num_crops"])
        ]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """A PIL image to a list of tensors (3, crop_size, crop_size)."""
        return [pipeline(image) for pipeline in self.pipelines]


def plain_pipeline(dataset: str, crop: int, augment: bool) -> Callable[..., Tensor]:
    """The pipeline for evaluation, and for training the linear classifier.

    Args:
        dataset: its name.
        crop: pixels; images of CIFAR stay as they are.
        augment: crop and flip at random; digits are never changed.

    Returns:
        a function from a PIL image to a tensor (3, crop, crop).
    """
    if dataset == "digits":
        return _finish([T.Resize(crop)] if crop != 8 else [], DIGITS)
    cifar = dataset.startswith("cifar")
    steps: list[Any] = []
    if augment:
        size = 32 if cifar else crop
        steps = [T.RandomResizedCrop(size, scale=(0.08, 1.0)), T.RandomHorizontalFlip()]
    elif not cifar:
        steps = [T.Resize(crop * 256 // 224), T.CenterCrop(crop)]
    return _finish(steps, CIFAR if cifar else IMAGENET)


def _finish(steps: list[Any], normalization: tuple[Any, Any]) -> Callable[..., Tensor]:
    mean, std = normalization
    return T.Compose([*steps, T.ToTensor(), T.Normalize(mean=tuple(mean), std=tuple(std))])
