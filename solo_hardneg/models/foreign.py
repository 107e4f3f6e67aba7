"""Checkpoints of others: their names of an encoder's weights become ours.

Known are the official MoCo and MoCo v3 (``module.encoder_q.*``, ``module.base_encoder.*``), and
plain state dicts, those of torchvision and timm among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor

_CONTAINERS = ("state_dict", "model")  # keys under which files keep the weights
_OURS = "backbone."
# Encoders that were trained by contrast: their last layers are a projector, not a classifier.
_CONTRASTED = ("encoder_q.", "base_encoder.")
_WRAPPERS = ("module.", "model.", "encoder.")
_FIRST_LAYERS = ("conv1.weight", "conv1.0.weight", "patch_embed.proj.weight", "stem.conv.weight")
_LAST_LAYER = re.compile(r"(fc|head|classifier)\.(?!norm)")


def weights_of(content: Any) -> dict[str, Tensor] | None:
    """Returns the weights in a file's content; ``None`` if there are none.

    Args:
        content: What ``torch.load`` returned.
    """
    if not isinstance(content, Mapping):
        return None
    candidates = (*(content.get(name) for name in _CONTAINERS), content)
    return next((dict(found) for found in candidates if _is_state(found)), None)


def _is_state(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames an encoder's weights to ``backbone.*`` and ``projector.*``.

    Weights that are named so already, and those of an unknown kind, keep their names. Momentum
    encoders, queues and classifiers are left out.
    """
    if any(name.startswith(_OURS) for name in state):
        return dict(state)
    prefix = _prefix(state)
    if prefix is None:
        return dict(state)
    renamed = {}
    for name, value in state.items():
        if not name.startswith(prefix):
            continue
        own = name.removeprefix(prefix)
        if not _LAST_LAYER.match(own):
            renamed[f"{_OURS}{own}"] = value
        elif prefix.endswith(_CONTRASTED):
            layer = own.partition(".")[2]
            renamed[f"projector.{layer if layer[0].isdigit() else f'0.{layer}'}"] = value
    return renamed


def _prefix(state: Mapping[str, Tensor]) -> str | None:
    """What stands before the name of an encoder's first layer."""
    for wrapper in ("", *_WRAPPERS):
        for encoder in (*_CONTRASTED, "", *_WRAPPERS):
            prefix = wrapper + encoder
            if any(prefix + layer in state for layer in _FIRST_LAYERS):
                return prefix
    return None
