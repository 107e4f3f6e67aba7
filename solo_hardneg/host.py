"""The host: the framework whose methods ours extend.

solo-learn if it can be imported, else ``solo_hardneg.standalone``. Only this module chooses. The
environment variable ``SOLO_HARDNEG_HOST=solo|standalone`` forces a host, and fails without it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from omegaconf import DictConfig
from torch import nn

from solo_hardneg.distributed import gather
from solo_hardneg.errors import HostError

VARIABLE = "SOLO_HARDNEG_HOST"
CHOICES = ("solo", "standalone")


def solo_learn_folder() -> Path | None:
    """Returns the folder of the importable solo-learn, or ``None``.

    Other packages are called ``solo`` too, so it must contain the files that we need. The version
    of solo-learn on the package index lacks them: it is older than the Hydra configs.
    """
    try:
        spec = importlib.util.find_spec("solo")
    except (ImportError, ValueError):
        return None
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in map(Path, locations):
        needed = ("methods/mocov2plus.py", "args/pretrain.py")
        if all((folder / name).is_file() for name in needed):
            return folder
    return None


def choose() -> str:
    """Returns ``solo`` or ``standalone``; logs an automatic choice.

    Raises:
        HostError: The environment variable has another value, or is ``solo`` and solo-learn can't
            be imported.
    """
    forced = os.environ.get(VARIABLE, "").strip()
    if forced and forced not in CHOICES:
        raise HostError(f"{VARIABLE}={forced}: must be solo or standalone, or unset to choose.")
    if forced == "standalone":
        return forced
    folder = solo_learn_folder()
    if forced == "solo" and folder is None:
        raise HostError(
            f"{VARIABLE}=solo: solo-learn (1.0.6 or newer, with solo/methods/mocov2plus.py) can't "
            "be imported here. Run inside its checkout, put the checkout on PYTHONPATH, or set "
            f"{VARIABLE}=standalone."
        )
    if not forced:
        name = f"solo-learn in {folder}" if folder else "standalone (no solo-learn importable)"
        rank_zero_info(f"solo-hardneg host: {name}")
    return "solo" if folder is not None else "standalone"


NAME = choose()

if TYPE_CHECKING:  # both hosts have these names; the type checker sees only one
    from solo_hardneg.standalone import METHODS, BaseMethod, MoCoV2Plus, SimCLR
elif NAME == "solo":
    from solo.methods import METHODS
    from solo.methods.base import BaseMethod
    from solo.methods.mocov2plus import MoCoV2Plus
    from solo.methods.simclr import SimCLR
else:
    from solo_hardneg.standalone import METHODS, BaseMethod, MoCoV2Plus, SimCLR


def host_backbone(
    name: str, method: str | None, kwargs: Mapping[str, Any], dataset: str
) -> tuple[nn.Module, int] | None:
    """Builds solo-learn's backbone as its ``BaseMethod`` does, and returns it with its width.

    ``None`` if the host is the standalone one or has no such backbone.
    """
    build = getattr(BaseMethod, "_BACKBONES", {}).get(name) if NAME == "solo" else None
    if build is None:
        return None
    backbone = build(method, **kwargs)
    if not name.startswith("resnet"):
        return backbone, backbone.num_features
    backbone.fc = nn.Identity()
    if dataset in ("cifar10", "cifar100"):
        backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
        backbone.maxpool = nn.Identity()
    return backbone, backbone.inplanes


# ---------------------------------------------------------------------- the run of a trainer


def config_of(trainer: Trainer, module: Any) -> DictConfig | None:
    """Returns the run's config: the module's, or in solo-learn's linear evaluation a callback's."""
    for holder in (module, *trainer.callbacks):  # type: ignore[attr-defined]
        cfg = getattr(holder, "cfg", None)
        if isinstance(cfg, DictConfig):
            return cfg
    return None


def host_checkpointer(trainer: Trainer) -> Any | None:
    """Returns the host's callback that writes checkpoints with ``save(trainer)``, if any."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callable(getattr(callback, "save", None)) and hasattr(callback, "cfg"):
            return callback
    return None


def run_folder(trainer: Trainer) -> Path | None:
    """Returns the host's checkpoint folder: ``path`` in solo-learn, ``folder`` in standalone."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        folder = getattr(callback, "path", None) or getattr(callback, "folder", None)
        if isinstance(getattr(callback, "cfg", None), DictConfig) and folder is not None:
            return Path(folder)
    return None


__all__ = [
    "METHODS",
    "NAME",
    "BaseMethod",
    "MoCoV2Plus",
    "SimCLR",
    "choose",
    "config_of",
    "gather",
    "host_backbone",
    "host_checkpointer",
    "run_folder",
    "solo_learn_folder",
]
