"""From a checkpoint of either host to what maps images to the space of the contrastive loss.

The method itself is not built: its backbone is, and its projector (and its predictor, where the
loss contrasts what it gives) is put together again from the names and shapes of its weights. So it
works for any of the host's methods, and nothing in the checkpoint is executed.
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

from solo_hardneg.analysis.untrusted import literal, read_config
from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.safety.reading import read_checkpoint
from solo_hardneg.standalone.backbones import build_backbone
from solo_hardneg.standalone.checkpoints import load_backbone
from solo_hardneg.standalone.checks import read

KEY = "checkpoint"  # what a message calls it
# What stands between the layers of a projector has no weights, so a checkpoint doesn't tell it.
# It is a ReLU in all of the host's methods but this one.
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"vibcreg": nn.GELU}
# Which side of the contrastive loss has passed the predictor, as the host has it: in MoCo v3
# (arXiv 2104.02057, algorithm 1) the queries; in NNCLR (arXiv 2104.14548) the keys, negatives
# among them.
_PREDICTED: Mapping[str, str] = {"mocov3": "queries", "nnclr": "negatives"}
_LINEAR = ({"weight"}, {"weight", "bias"})
_STATISTICS = {"running_mean", "running_var"}
_AFFINE = {"weight", "bias"}


class Encoder(nn.Module):
    """Backbone and online projector (Cai et al. 2020 take the trained, non-momentum encoder).

    Args:
        backbone: images (B, 3, H, W) to features (B, F).
        projector: features to (B, D); None: the features themselves are compared.
        predictor: (B, D) to (B, D), for those of ``predicted``.
        predicted: what passes the predictor, ``queries`` or ``negatives``; empty: neither.
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

    def both(self, images: Tensor, what: str) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) to features (B, F), and to unit vectors (B, D).

        Args:
            what: the images are ``queries`` or ``negatives``.
        """
        features = self.backbone(images)
        vectors = features if self.projector is None else self.projector(features)
        if self.predictor is not None and what == self.predicted:
            vectors = self.predictor(vectors)
        return features, F.normalize(vectors, dim=1)

    def forward(self, images: Tensor, what: str) -> Tensor:
        """Images (B, 3, H, W), which are ``queries`` or ``negatives``, to unit vectors (B, D)."""
        return self.both(images, what)[1]


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
        CheckpointError: it can't be read, or its backbone, projector or predictor can't be built.
        ConfigError: it isn't known which backbone it has.
    """
    file, checkpoint = read_checkpoint(KEY, path.expanduser())
    config = run_config(file)
    trained_on = literal(config.get("data")) or data or {}
    given: Any = {**dict(overrides or {}), "data": trained_on}
    cfg: Any = OmegaConf.merge(literal(config), given)
    assert_known(cfg, file)
    state = checkpoint["state_dict"]
    method = read(cfg, "method", read(cfg, "pretrain_method"))
    backbone, width = _backbone(cfg, method, state, file)
    head, notes = _head(state, width, file, method)
    last = checkpoint.get("epoch", -1)
    epoch = last + 1 if isinstance(last, int) else 0
    return Loaded(Encoder(backbone, *head), file, config, epoch, notes)


def run_config(file: Path) -> dict[str, Any]:
    """The config that the run wrote beside its checkpoint, resolved; empty if there is none.

    Raises:
        CheckpointError: it is there, and damaged.
    """
    path = file.parent / "args.json"
    if not path.is_file():
        return {}
    try:
        return read_config(path)
    except (OSError, ValueError) as error:
        do = "Mend it, or take it away and give backbone.name=... and data=... yourself"
        raise CheckpointError(f"{path}: can't be read ({error}). {do}.") from error


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


# ---------------------------------------------------------------------- projector and predictor


def _head(
    state: Mapping[str, Tensor], width: int, file: Path, method: str | None
) -> tuple[tuple[nn.Module | None, nn.Module | None, str], list[str]]:
    """Projector, predictor and who passes it, and what one should know of them."""
    projector, width = rebuild("projector", state, width, file, method)
    if projector is None:
        text = "this checkpoint has no projector, so the features of its backbone are compared"
        return (None, None, ""), [f"{file.name}: {text}, not vectors of the contrastive loss."]
    predicted = _PREDICTED.get(str(method), "")
    there = any(key.startswith("predictor.") for key in state)
    instead = "so the vectors of the projector are compared"
    if not predicted:
        text = f"its predictor is left aside (only {' and '.join(_PREDICTED)} contrast what it "
        notes = [f"{file.name}: {text}gives), {instead}."] if there else []
        return (projector, None, ""), notes
    notes = []
    if method == "nnclr":
        text = "the loss of NNCLR compares a query's nearest neighbour in a queue with the keys"
        notes.append(f"{file.name}: {text}; here it is the query itself.")
    if not there:
        notes.append(f"{file.name}: it lacks the predictor that {method} has, {instead}.")
        return (projector, None, ""), notes
    predictor, _ = rebuild("predictor", state, width, file, method)
    return (projector, predictor, predicted), notes


def rebuild(
    part: str, state: Mapping[str, Tensor], width: int, file: Path, method: str | None = None
) -> tuple[nn.Sequential | None, int]:
    """The projector or predictor whose weights are ``PART.N.*``; None if there are none.

    Linear layers and batch norms are known by the names and shapes of their weights; where a
    number N is left out, there is an activation.

    Args:
        part: ``projector`` or ``predictor``.
        width: how many numbers it takes.

    Returns:
        it, and how many numbers it gives.

    Raises:
        CheckpointError: it holds another kind of layer, or its layers don't fit each other.
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
        raise _unknown(which, wrong[0], layers[wrong[0]], "it is no sequence of layers")
    activation = _ACTIVATIONS.get(str(method), nn.ReLU)
    rebuilt = nn.Sequential()
    for place in range(max(map(int, layers)) + 1):
        weights = layers.get(str(place))
        if weights is None:
            if place and str(place - 1) not in layers:
                text = f"nothing is known of its layers {place - 1} and {place}"
                raise _unknown(which, str(place), {}, text)
            rebuilt.append(activation())
            continue
        layer, width = _layer(weights, width, which, str(place))
        rebuilt.append(layer)
    return rebuilt, width


def _layer(
    weights: Mapping[str, Tensor], width: int, which: str, place: str
) -> tuple[nn.Module, int]:
    """A layer that takes ``width`` numbers, with its weights, and how many it gives."""
    names, weight = set(weights), weights.get("weight")
    layer: nn.Module
    if names in _LINEAR and weight is not None and weight.ndim == 2:
        gives, takes = weight.shape
        layer = nn.Linear(takes, gives, bias="bias" in names)
    elif (
        names - {"num_batches_tracked"} in (_STATISTICS, _STATISTICS | _AFFINE)
        and weights["running_mean"].ndim == 1
    ):
        takes = gives = len(weights["running_mean"])
        layer = nn.BatchNorm1d(takes, affine="weight" in names)
    else:
        raise _unknown(which, place, weights, "only linear layers and batch norms are known")
    if takes != width:
        text = f"it takes {takes} numbers, and the layer before it gives {width}"
        raise _unknown(which, place, weights, text)
    try:
        layer.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise _unknown(which, place, weights, "its weights don't fit each other") from error
    return layer, gives


def _unknown(which: str, place: str, weights: Mapping[str, Tensor], reason: str) -> CheckpointError:
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
    encoder: Encoder, batches: Iterable[Tensor], device: torch.device, what: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Embeds all batches of images (B, 3, H, W), which are ``queries`` or ``negatives``.

    Returns:
        (N, F) float32 features of the backbone, and (N, D) float32 unit vectors.
    """
    encoder = encoder.to(device)
    parts = [
        tuple(part.float().cpu().numpy() for part in encoder.both(images.to(device), what))
        for images in batches
    ]
    encoder.to("cpu")  # room for the next one
    features, vectors = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(vectors)
