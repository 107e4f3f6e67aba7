"""From a checkpoint of either host to what maps images to the space of the contrastive loss.

The method itself is not built: its backbone is, and its projector is put together again from the
names and shapes of its weights. So it works for any of the host's methods, and nothing in the
checkpoint is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.standalone.backbones import build_backbone
from solo_hardneg.standalone.checkpoints import load_backbone, read_checkpoint
from solo_hardneg.standalone.checks import read

KEY = "checkpoint"  # what a message calls it
# What stands between the layers of a projector has no weights, so a checkpoint doesn't tell it.
# It is a ReLU in all of the host's methods but this one.
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"vibcreg": nn.GELU}
_LINEAR = ({"weight"}, {"weight", "bias"})
_STATISTICS = {"running_mean", "running_var"}
_AFFINE = {"weight", "bias"}


class Encoder(nn.Module):
    """Backbone and online projector (Cai et al. 2020 take the trained, non-momentum encoder).

    Args:
        backbone: images (B, 3, H, W) to features (B, F).
        projector: features to (B, D); None: the features themselves are compared.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        self.requires_grad_(False).eval()

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to features (B, F), and to unit vectors (B, D)."""
        features = self.backbone(images)
        projected = features if self.projector is None else self.projector(features)
        return features, F.normalize(projected, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to unit vectors (B, D)."""
        return self.both(images)[1]


@dataclass(frozen=True)
class Loaded:
    """An encoder, and where it comes from.

    Attributes:
        file: the checkpoint.
        config: what the run was trained with (``args.json``); empty if there was none.
        epoch: how many epochs it has been trained for; 0 if the checkpoint doesn't say.
        notes: what one should know of it.
    """

    encoder: Encoder
    file: Path
    config: Mapping[str, Any]
    epoch: int
    notes: Sequence[str]


def load(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Loaded:
    """Reads a checkpoint, or the newest one of a run's folder.

    Args:
        path: of either host.
        overrides: ``backbone`` and ``method`` in place of those in ``args.json``.
        data: which images it was trained on, where ``args.json`` doesn't say; ``data.dataset``
            decides the first layers of a ResNet.

    Raises:
        CheckpointError: it can't be read, or its backbone or projector can't be built.
        ConfigError: it isn't known which backbone it has.
    """
    file, checkpoint = read_checkpoint(KEY, path.expanduser())
    config = run_config(file)
    trained_on = config.get("data") or data or {}
    given: Any = {**dict(overrides or {}), "data": trained_on}
    cfg: Any = OmegaConf.merge(config, given)
    assert_known(cfg, file)
    state = checkpoint["state_dict"]
    method = read(cfg, "method", read(cfg, "pretrain_method"))
    backbone, features_dim = _backbone(cfg, method, state, file)
    projector = rebuild_projector(state, features_dim, file, str(method))
    notes = []
    if projector is None:
        text = "this checkpoint has no projector, so the features of its backbone are compared"
        notes.append(f"{file.name}: {text}, not vectors of the contrastive loss.")
    epoch = int(checkpoint.get("epoch", -1)) + 1
    return Loaded(Encoder(backbone, projector), file, config, epoch, notes)


def run_config(file: Path) -> dict[str, Any]:
    """The config that the run wrote beside its checkpoint; empty if there is none.

    Raises:
        CheckpointError: it is there, and damaged.
    """
    path = file.parent / "args.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no keys")
        OmegaConf.create(config)
    except (OSError, ValueError) as error:
        do = "Mend it, or take it away and give backbone.name=... and data=... yourself"
        raise CheckpointError(f"{path}: can't be read ({error}). {do}.") from error
    return config


def assert_known(cfg: Any, file: Path) -> None:
    """Raises ConfigError unless a config says which backbone a checkpoint has."""
    missing = [key for key in ("backbone.name", "data.dataset") if read(cfg, key) is None]
    if missing:
        has = "has no such key" if (file.parent / "args.json").is_file() else "isn't there"
        do = "Add backbone.name=resnet18 data=cifar10, for instance, as the run was trained with"
        raise ConfigError(f"{', '.join(missing)}: not known for {file}; its args.json {has}. {do}.")


def _backbone(
    cfg: Any, method: str | None, state: Mapping[str, Tensor], file: Path
) -> tuple[nn.Module, int]:
    kwargs: Any = read(cfg, "backbone.kwargs", {})
    kwargs = OmegaConf.to_container(kwargs, resolve=True) if kwargs else {}
    arguments = (str(read(cfg, "backbone.name")), method, kwargs, str(read(cfg, "data.dataset")))
    try:
        backbone, features_dim = build_backbone(*arguments)
        load_backbone(backbone, dict(state), KEY, file)
    except (ConfigError, CheckpointError) as error:
        # solo-learn has backbones that we lack, and for some methods others of the same name
        from solo_hardneg.host import host_backbone

        theirs = host_backbone(*arguments)
        if theirs is None:
            raise
        backbone, features_dim = theirs
        try:
            load_backbone(backbone, dict(state), KEY, file)
        except CheckpointError as second:
            raise second from error
    return backbone, features_dim


# ---------------------------------------------------------------------- the projector


def rebuild_projector(
    state: Mapping[str, Tensor], features_dim: int, file: Path, method: str = ""
) -> nn.Sequential | None:
    """The projector whose weights are ``projector.N.*``; None if there are none.

    Linear layers and batch norms are known by the names and shapes of their weights; where a
    number N is left out, there is an activation.

    Raises:
        CheckpointError: it holds another kind of layer, or its layers don't fit each other.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("projector."):
            number, _, name = key.removeprefix("projector.").partition(".")
            layers.setdefault(number, {})[name] = value
    if not layers:
        return None
    wrong = [number for number in layers if not number.isdecimal()]
    if wrong:
        raise _unknown(file, wrong[0], layers[wrong[0]], "it is no sequence of layers")
    numbers = sorted(map(int, layers))
    activation = _ACTIVATIONS.get(method, nn.ReLU)
    projector = nn.Sequential()
    width = features_dim
    for place in range(numbers[-1] + 1):
        weights = layers.get(str(place))
        if weights is None:
            if place and str(place - 1) not in layers:
                text = f"nothing is known of its layers {place - 1} and {place}"
                raise _unknown(file, str(place), {}, text)
            projector.append(activation())
            continue
        layer, width = _layer(weights, width, file, str(place))
        projector.append(layer)
    return projector


def _layer(
    weights: Mapping[str, Tensor], width: int, file: Path, place: str
) -> tuple[nn.Module, int]:
    """A layer that takes ``width`` numbers, with its weights, and how many it gives."""
    names, weight = set(weights), weights.get("weight")
    layer: nn.Module
    if names in _LINEAR and weight is not None and weight.ndim == 2:
        gives, takes = weight.shape
        layer = nn.Linear(takes, gives, bias="bias" in names)
    elif names - {"num_batches_tracked"} in (_STATISTICS, _STATISTICS | _AFFINE):
        takes = gives = len(weights["running_mean"])
        layer = nn.BatchNorm1d(takes, affine="weight" in names)
    else:
        raise _unknown(file, place, weights, "only linear layers and batch norms are known")
    if takes != width:
        text = f"it takes {takes} numbers, and the layer before it gives {width}"
        raise _unknown(file, place, weights, text)
    try:
        layer.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise _unknown(file, place, weights, "its weights don't fit each other") from error
    return layer, gives


def _unknown(file: Path, place: str, weights: Mapping[str, Tensor], reason: str) -> CheckpointError:
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in weights.items())
    return CheckpointError(
        f"{KEY}={file}: its projector can't be rebuilt: layer {place} ({shapes or 'no weights'}): "
        f"{reason}. Take a checkpoint of a method whose projector is a sequence of linear layers, "
        "batch norms and ReLUs."
    )


# ---------------------------------------------------------------------- embedding


@torch.no_grad()
def embed(
    encoder: Encoder, batches: Iterable[Tensor], device: torch.device
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Embeds all batches of images (B, 3, H, W).

    Returns:
        (N, F) float32 features of the backbone, and (N, D) float32 unit vectors.
    """
    encoder = encoder.to(device)
    parts = [
        tuple(part.float().cpu().numpy() for part in encoder.both(images.to(device)))
        for images in batches
    ]
    encoder.to("cpu")  # room for the next one
    features, vectors = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(vectors)
