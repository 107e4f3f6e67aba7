"""Builds backbones by name, with the state keys of solo-learn's backbone of that name."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solo_hardneg.errors import CheckpointError, ConfigError, bad_value

# Datasets of small images: the first convolution of a ResNet keeps their size.
SMALL_IMAGES = ("cifar10", "cifar100", "digits")

# solo-learn's names of timm models with its state keys and outputs.
_TIMM_NAMES = {
    **{f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")},
    **{
        f"swin_{size}": f"swin_{size}_patch4_window7_224"
        for size in ("tiny", "small", "base", "large")
    },
}
_STEMS = ((3, 3), (7, 7))  # kernels of a ResNet's first convolution
NAMES = ("resnet18", "resnet50", *_TIMM_NAMES)


def build_backbone(
    name: str, method: str | None, kwargs: Mapping[str, Any], dataset: str
) -> tuple[nn.Module, int]:
    """Builds an untrained backbone without its classification layer.

    Args:
        name: ``resnet18``, ``resnet50``, another of solo-learn's names, or a timm model.
        method: Pretraining method; solo-learn builds other ViTs for two of its methods.
        kwargs: Arguments of the backbone, such as ``img_size`` for a ViT.
        dataset: Name of the dataset, which decides the first layers of a ResNet.

    Returns:
        The module, which maps images (B, 3, H, W) to features (B, D), and D.

    Raises:
        ConfigError: The name is unknown, or the backbone refuses the arguments.
    """
    if name.startswith("vit_") and method in ("mocov3", "mae"):
        do = "Evaluate it there."
        raise bad_value("pretrain_method", method, "its ViT is built by solo-learn only", do)
    try:
        if name in ("resnet18", "resnet50"):
            return _build_resnet(name, kwargs, small=dataset in SMALL_IMAGES)
        return _build_timm(name, kwargs)
    except ConfigError:
        raise
    except Exception as error:  # torchvision and timm raise errors of many types
        text = f"{name} refuses it: {type(error).__name__}, {error}"
        raise bad_value("backbone.kwargs", dict(kwargs), text) from error


def check_output(
    backbone: nn.Module, images: Tensor, features_dim: int | None, kwargs: Any
) -> None:
    """Refuses a backbone that can't encode images of this size, before it is trained.

    Runs a copy, so batch statistics and random states don't change.

    Args:
        backbone: Backbone, in the mode and on the device of its later use.
        images: (B, 3, H, W).
        features_dim: Expected width of the features; ``None`` allows any.
        kwargs: ``backbone.kwargs`` of the config, for the message.

    Raises:
        ConfigError: The backbone fails, or its output isn't (B, features_dim).
    """
    side = images.shape[-1]
    do = "Let backbone.name, backbone.kwargs and crop_size fit."
    try:
        devices = [images.device] if images.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            shape = tuple(copy.deepcopy(backbone)(images).shape)
    except Exception as error:  # torchvision and timm raise errors of many types
        text = f"fails on {len(images)} images of {side} pixels: {str(error).rstrip('.')}"
        raise bad_value("backbone.kwargs", kwargs, text, do) from error
    if len(shape) != 2 or shape[1] != (features_dim or shape[1]):
        text = f"makes {shape} of {len(images)} images of {side} pixels, not ({len(images)}, "
        raise bad_value("backbone.kwargs", kwargs, f"{text}{features_dim or 'D'})", do)


def _build_resnet(name: str, kwargs: Mapping[str, Any], small: bool) -> tuple[nn.Module, int]:
    import torchvision

    backbone = getattr(torchvision.models, name)(**kwargs)
    backbone.fc = nn.Identity()
    if small:
        _set_stem(backbone, small)
    return backbone, backbone.inplanes


def _set_stem(backbone: Any, small: bool) -> None:
    """Gives a ResNet the first layers for small images, or torchvision's."""
    if small:  # padding 2, as in solo-learn: 32 x 32 pixels become 34 x 34
        backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
        backbone.maxpool = nn.Identity()
    else:
        backbone.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        backbone.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def has_small_stem(state: Mapping[str, Tensor]) -> bool:
    """Whether a ResNet's state is of one whose first layers keep the size of small images."""
    weight = state.get("conv1.weight")
    return weight is not None and weight.shape[2:] == (3, 3)


def common_name(name: str) -> str:
    """The name by which torchvision or timm builds a backbone of solo-learn's name.

    Raises:
        ConfigError: Neither has it.
    """
    import timm

    known = _TIMM_NAMES.get(name, name)
    if not timm.is_model(known):  # it has torchvision's ResNets, too
        do = "Take a run with a ResNet, a ViT or another timm model."
        raise bad_value("backbone.name", name, "neither torchvision nor timm has this backbone", do)
    return known


def _build_timm(name: str, kwargs: Mapping[str, Any]) -> tuple[nn.Module, int]:
    import timm  # takes a second to import, and a ResNet doesn't need it

    timm_name = _TIMM_NAMES.get(name, name)
    if not timm.is_model(timm_name):
        nearest = difflib.get_close_matches(name, [*NAMES, *timm.list_models()], n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        known = f"Known: {', '.join(NAMES)}, or any timm model"
        raise ConfigError(f"backbone.name: unknown backbone '{name}'.{hint} {known}.")
    backbone: Any = timm.create_model(timm_name, num_classes=0, **kwargs)
    # Models with a layer after the pooling have wider features than num_features.
    return backbone, getattr(backbone, "head_hidden_size", None) or backbone.num_features


def load_backbone(backbone: nn.Module, state: dict[str, Tensor], key: str, path: Path) -> None:
    """Loads the ``backbone.*`` entries of a checkpoint's state, all of which must fit.

    A ResNet gets the first layers of the checkpoint, whatever the dataset of this run.

    Args:
        backbone: Backbone to load into.
        state: ``state_dict`` of the checkpoint.
        key: Config key that named the checkpoint, for messages.
        path: Checkpoint file, for messages.

    Raises:
        CheckpointError: It holds no backbone, or another one.
    """
    prefix = "backbone."
    loaded = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    weight = loaded.get("conv1.weight")
    if hasattr(backbone, "maxpool") and weight is not None and weight.shape[2:] in _STEMS:
        _set_stem(backbone, has_small_stem(loaded))
    expected = backbone.state_dict()
    if not loaded:
        raise CheckpointError(
            f"{key}={path}: holds no backbone (no key starts with "
            f"'{prefix}'). Take a checkpoint that pretraining wrote."
        )
    wrong = [
        f"{k} is {tuple(loaded[k].shape)}, not {tuple(expected[k].shape)}"
        for k in expected
        if k in loaded and expected[k].shape != loaded[k].shape
    ]
    wrong += [f"{k} is missing" for k in expected if k not in loaded]
    wrong += [f"{k} is unexpected" for k in loaded if k not in expected]
    if wrong:
        text = f"{key}={path}: its backbone doesn't fit backbone.name and data.dataset of this run"
        raise CheckpointError(
            f"{text}: {'; '.join(wrong[:3])} ({len(wrong)} in all). Set them as in the "
            "pretraining run; args.json beside the checkpoint lists them."
        )
    backbone.load_state_dict(loaded)
