"""Loads the encoder of a checkpoint: images to the embeddings that the loss compares.

The backbone is built by name; projector and predictor are rebuilt from the names and shapes of
their weights. So any of the host's methods works, and nothing in the checkpoint is executed.
"""

from __future__ import annotations

import re
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
from solo_hardneg.files import literal, read_config
from solo_hardneg.models.backbones import build_backbone, load_backbone
from solo_hardneg.models.checkpoints import read_encoder
from solo_hardneg.validate import read

KEY = "checkpoint"  # in messages
# Activations have no weights, so the checkpoint doesn't show them: ReLU, but for this method.
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"vibcreg": nn.GELU}
# The side of the contrastive loss that passes the predictor: queries in MoCo v3 (arXiv 2104.02057,
# algorithm 1), keys and so negatives in NNCLR (arXiv 2104.14548).
_PREDICTED: Mapping[str, str] = {"mocov3": "queries", "nnclr": "negatives"}
_LINEAR = ({"weight"}, {"weight", "bias"})
_STATISTICS = {"running_mean", "running_var"}
_AFFINE = {"weight", "bias"}


class Encoder(nn.Module):
    """Backbone and online projector (Cai et al. 2020 study the non-momentum encoder).

    Args:
        backbone: Maps images (B, 3, H, W) to features (B, F).
        projector: Maps features to (B, D); without it, the features are compared.
        predictor: Maps (B, D) to (B, D), for the role ``predicted``.
        predicted: Role that passes the predictor: ``queries``, ``negatives`` or none ("").
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        predicted: str = "",
    ) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        self.predictor, self.predicted = predictor, predicted
        self.requires_grad_(False).eval()

    def features_and_embeddings(self, images: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """Maps images (B, 3, H, W) to features (B, F) and unit vectors (B, D).

        Args:
            images: The images.
            role: ``queries`` or ``negatives``.
        """
        features = self.backbone(images)
        vectors = features if self.projector is None else self.projector(features)
        if self.predictor is not None and role == self.predicted:
            vectors = self.predictor(vectors)
        return features, F.normalize(vectors, dim=1)

    def forward(self, images: Tensor, role: str) -> Tensor:
        """Maps images (B, 3, H, W), ``queries`` or ``negatives``, to unit vectors (B, D)."""
        return self.features_and_embeddings(images, role)[1]


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and its origin.

    Attributes:
        encoder: In evaluation mode, on the CPU.
        file: Checkpoint.
        config: Config of the run (``args.json``); empty without one.
        epoch: Epochs trained; 0 if unknown.
        notes: Remarks for readers of the study.
    """

    encoder: Encoder
    file: Path
    config: Mapping[str, Any]
    epoch: int
    notes: Sequence[str]


def load_encoder(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> LoadedEncoder:
    """Reads a checkpoint of either host, or the newest one in a run's folder.

    Args:
        path: File or folder.
        overrides: ``backbone`` and ``method`` instead of those in ``args.json``.
        data: Group ``data`` if ``args.json`` has none; its ``dataset`` decides the first layers of
            a ResNet.

    Raises:
        CheckpointError: It can't be read, or its backbone, projector or predictor can't be built.
        ConfigError: Its backbone is unknown.
    """
    file, checkpoint = read_encoder(KEY, path.expanduser())
    config = run_config(file)
    trained_on = literal(config.get("data")) or data or {}
    given: Any = {**dict(overrides or {}), "data": trained_on}
    cfg: Any = OmegaConf.merge(literal(config), given)
    check_backbone_keys(cfg, file)
    state = checkpoint["state_dict"]
    method = read(cfg, "method", read(cfg, "pretrain_method"))
    backbone, width = _load_backbone(cfg, method, state, file)
    head, notes = _rebuild_head(state, width, file, method)
    last = checkpoint.get("epoch", -1)
    epoch = last + 1 if isinstance(last, int) else 0
    return LoadedEncoder(Encoder(backbone, *head), file, config, epoch, notes)


def run_config(file: Path) -> dict[str, Any]:
    """Reads and resolves the config beside a checkpoint; empty without one.

    Raises:
        CheckpointError: It is damaged.
    """
    path = file.parent / "args.json"
    if not path.is_file():
        return {}
    try:
        return read_config(path)
    except (OSError, ValueError) as error:
        do = "Repair it, or remove it and set backbone.name=... and data=..."
        raise CheckpointError(f"{path}: can't be read ({error}). {do}.") from error


def check_backbone_keys(cfg: Any, file: Path) -> None:
    """Raises ConfigError unless a config names backbone and dataset."""
    missing = [key for key in ("backbone.name", "data.dataset") if read(cfg, key) is None]
    if missing:
        has = "has no such key" if (file.parent / "args.json").is_file() else "is missing"
        do = "Add backbone.name=resnet18 data=cifar10, for instance, as in training"
        raise ConfigError(f"{', '.join(missing)}: unknown for {file}; its args.json {has}. {do}.")


def _load_backbone(
    cfg: Any, method: str | None, state: Mapping[str, Tensor], file: Path
) -> tuple[nn.Module, int]:
    kwargs: Any = read(cfg, "backbone.kwargs", {})
    kwargs = OmegaConf.to_container(kwargs, resolve=True) if kwargs else {}
    arguments = (str(read(cfg, "backbone.name")), method, kwargs, str(read(cfg, "data.dataset")))
    try:
        backbone, features_dim = build_backbone(*arguments)
        load_backbone(backbone, dict(state), KEY, file)
    except (ConfigError, CheckpointError) as error:
        # solo-learn has further backbones, and for some methods others of the same name.
        from solo_hardneg.host import host_backbone

        built = host_backbone(*arguments)
        if built is None:
            raise
        backbone, features_dim = built
        try:
            load_backbone(backbone, dict(state), KEY, file)
        except CheckpointError as second:
            raise second from error
    return backbone, features_dim


# ---------------------------------------------------------------------- projector and predictor


def _rebuild_head(
    state: Mapping[str, Tensor], width: int, file: Path, method: str | None
) -> tuple[tuple[nn.Module | None, nn.Module | None, str], list[str]]:
    """Projector, predictor and the role that passes it; and notes."""
    projector, width = rebuild("projector", state, width, file, method)
    if projector is None:
        text = "this checkpoint has no projector, so features of the backbone are compared"
        return (None, None, ""), [f"{file.name}: {text}, not vectors of the contrastive loss."]
    predicted = _PREDICTED.get(str(method), "")
    has_predictor = any(key.startswith("predictor.") for key in state)
    instead = "so outputs of the projector are compared"
    if not predicted:
        text = f"its predictor is ignored (only {' and '.join(_PREDICTED)} contrast its outputs)"
        notes = [f"{file.name}: {text}, {instead}."] if has_predictor else []
        return (projector, None, ""), notes
    notes = []
    if method == "nnclr":
        text = "NNCLR's loss compares a query's nearest neighbour in a queue with the keys"
        notes.append(f"{file.name}: {text}; the study compares the query itself.")
    if not has_predictor:
        notes.append(f"{file.name}: it lacks the predictor of {method}, {instead}.")
        return (projector, None, ""), notes
    predictor, _ = rebuild("predictor", state, width, file, method)
    return (projector, predictor, predicted), notes


def rebuild(
    part: str, state: Mapping[str, Tensor], width: int, file: Path, method: str | None = None
) -> tuple[nn.Sequential | None, int]:
    """Rebuilds the projector or predictor from its weights ``PART.N.*``.

    Linear layers and batch norms are recognized by the names and shapes of their weights; a
    missing number N is an activation.

    Args:
        part: ``projector`` or ``predictor``.
        state: State of the whole method.
        width: Input features.
        file: Checkpoint, for messages.
        method: Name of the method, which decides the activation.

    Returns:
        The layers, or None without weights; and the number of output features.

    Raises:
        CheckpointError: It has another kind of layer, or its layers don't fit together.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(f"{part}."):
            number, _, name = key.removeprefix(f"{part}.").partition(".")
            layers.setdefault(number, {})[name] = value
    if not layers:
        return None, width
    which = f"{KEY}={file}: its {part}"
    wrong = [number for number in layers if not re.fullmatch(r"[0-9]{1,3}", number)]
    if wrong:
        raise _cannot_rebuild(which, wrong[0], layers[wrong[0]], "it isn't a sequence of layers")
    activation = _ACTIVATIONS.get(str(method), nn.ReLU)
    rebuilt = nn.Sequential()
    for place in range(max(map(int, layers)) + 1):
        weights = layers.get(str(place))
        if weights is None:
            if place and str(place - 1) not in layers:
                text = f"its layers {place - 1} and {place} are unknown"
                raise _cannot_rebuild(which, str(place), {}, text)
            rebuilt.append(activation())
            continue
        layer, width = _rebuild_layer(weights, width, which, str(place))
        rebuilt.append(layer)
    return rebuilt, width


def _rebuild_layer(
    weights: Mapping[str, Tensor], width: int, which: str, place: str
) -> tuple[nn.Module, int]:
    """A layer of ``width`` input features with its weights, and its output features."""
    names, weight = set(weights), weights.get("weight")
    layer: nn.Module
    if names in _LINEAR and weight is not None and weight.ndim == 2:
        outputs, inputs = weight.shape
        layer = nn.Linear(inputs, outputs, bias="bias" in names)
    elif (
        names - {"num_batches_tracked"} in (_STATISTICS, _STATISTICS | _AFFINE)
        and weights["running_mean"].ndim == 1
    ):
        inputs = outputs = len(weights["running_mean"])
        layer = nn.BatchNorm1d(inputs, affine="weight" in names)
    else:
        text = "it is neither a linear layer nor a batch norm"
        raise _cannot_rebuild(which, place, weights, text)
    if inputs != width:
        text = f"it has {inputs} input features, but the layer before it has {width} outputs"
        raise _cannot_rebuild(which, place, weights, text)
    try:
        layer.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise _cannot_rebuild(which, place, weights, "its weights don't fit together") from error
    return layer, outputs


def _cannot_rebuild(
    which: str, place: str, weights: Mapping[str, Tensor], reason: str
) -> CheckpointError:
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in weights.items())
    part = which.split()[-1]
    return CheckpointError(
        f"{which} can't be rebuilt: layer {place} ({shapes or 'no weights'}): {reason}. Take a "
        f"checkpoint of a method whose {part} is a sequence of linear layers, batch norms and "
        "ReLUs."
    )


# ---------------------------------------------------------------------- embedding


@torch.no_grad()
def embed(
    encoder: Encoder, batches: Iterable[Tensor], device: torch.device, role: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Embeds batches of images (B, 3, H, W), which are ``queries`` or ``negatives``.

    Returns:
        (N, F) float32 features of the backbone, and (N, D) float32 unit vectors.
    """
    encoder = encoder.to(device)
    parts = []
    for images in batches:
        outputs = encoder.features_and_embeddings(images.to(device), role)
        parts.append([output.float().cpu().numpy() for output in outputs])
    encoder.to("cpu")  # frees the device for the next one
    features, vectors = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(vectors)
