"""Building a backbone by name, with the state keys that the host's backbone of that name has."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solo_hardneg.errors import ConfigError, bad_value

# Datasets of small images: the first convolution of a ResNet keeps their size.
SMALL_IMAGES = ("cifar10", "cifar100", "digits")

# The host's names of timm models. Only those whose state keys and outputs are the host's.
_TIMM_NAMES = {
    **{f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")},
    **{
        f"swin_{size}": f"swin_{size}_patch4_window7_224"
        for size in ("tiny", "small", "base", "large")
    },
}
NAMES = ("resnet18", "resnet50", *_TIMM_NAMES)


def build_backbone(
    name: str, method: str | None, kwargs: Mapping[str, Any], dataset: str
) -> tuple[nn.Module, int]:
    """Builds an untrained backbone without its classification layer.

    Args:
        name: ``resnet18``, ``resnet50``, another of the host's names, or any timm model's.
        method: the pretraining method. The host builds other ViTs for two of its methods.
        kwargs: extra arguments of the backbone, such as ``img_size`` for a ViT.
        dataset: its name decides the first layers of a ResNet.

    Returns:
        the module, which maps images (B, 3, H, W) to features (B, D), and D.

    Raises:
        ConfigError: the name isn't known, or the backbone doesn't take the arguments.
    """
    if name.startswith("vit_") and method in ("mocov3", "mae"):
        do = "Evaluate it there."
        raise bad_value("pretrain_method", method, "its ViT is built by solo-learn only", do)
    try:
        if name in ("resnet18", "resnet50"):
            return _resnet(name, kwargs, small=dataset in SMALL_IMAGES)
        return _timm(name, kwargs)
    except ConfigError:
        raise
    except Exception as error:  # torchvision and timm check little, and stumble in many ways
        text = f"{name} refuses it: {type(error).__name__}, {error}"
        raise bad_value("backbone.kwargs", dict(kwargs), text) from error


def try_out(backbone: nn.Module, images: Tensor, features_dim: int | None, kwargs: Any) -> None:
    """Refuses a backbone that can't take images of this size, before anything is trained.

    Works on a copy: batch statistics, and random numbers, stay as they are.

    Args:
        backbone: in the mode, and on the device, that it will be used in.
        images: (B, 3, H, W).
        features_dim: how wide the features must be; ``None`` for whatever they are.
        kwargs: what the config says of it, for the message.

    Raises:
        ConfigError: it can't, or gives something else than features (B, features_dim).
    """
    side = images.shape[-1]
    do = "Let backbone.name, backbone.kwargs and crop_size fit."
    try:
        devices = [images.device] if images.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            shape = tuple(copy.deepcopy(backbone)(images).shape)
    except Exception as error:  # as above
        text = f"fails on {len(images)} images of {side} pixels: {str(error).rstrip('.')}"
        raise bad_value("backbone.kwargs", kwargs, text, do) from error
    if len(shape) != 2 or shape[1] != (features_dim or shape[1]):
        text = f"makes {shape} of {len(images)} images of {side} pixels, not ({len(images)}, "
        raise bad_value("backbone.kwargs", kwargs, f"{text}{features_dim or 'D'})", do)


def _resnet(name: str, kwargs: Mapping[str, Any], small: bool) -> tuple[nn.Module, int]:
    import torchvision

    backbone = getattr(torchvision.models, name)(**kwargs)
    backbone.fc = nn.Identity()
    if small:
        # padding 2, as in the host: 32 x 32 pixels become 34 x 34
        backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
        backbone.maxpool = nn.Identity()
    return backbone, backbone.inplanes


def _timm(name: str, kwargs: Mapping[str, Any]) -> tuple[nn.Module, int]:
    import timm  # takes a second, and a ResNet doesn't need it

    timm_name = _TIMM_NAMES.get(name, name)
    if not timm.is_model(timm_name):
        nearest = difflib.get_close_matches(name, [*NAMES, *timm.list_models()], n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        known = f"Known: {', '.join(NAMES)}, or any timm model"
        raise ConfigError(f"backbone.name: unknown backbone '{name}'.{hint} {known}.")
    backbone: Any = timm.create_model(timm_name, num_classes=0, **kwargs)
    # Some models have a layer after the pooling, and their features are wider than num_features.
    return backbone, getattr(backbone, "head_hidden_size", None) or backbone.num_features
