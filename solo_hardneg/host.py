"""The seam: which framework our methods extend.

Where solo-learn can be imported, it is the host; elsewhere the small one in
``solo_hardneg.standalone`` is. Nothing else in this package asks which. The environment variable
``SOLO_HARDNEG_HOST=solo|standalone`` makes the choice, and then fails if it can't be had.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from solo_hardneg.distributed import gather
from solo_hardneg.errors import HostError

VARIABLE = "SOLO_HARDNEG_HOST"
CHOICES = ("solo", "standalone")


def solo_learn_folder() -> Path | None:
    """Where the importable solo-learn lies, or ``None``.

    Other packages are called ``solo`` too, so the file that we extend must be there. The version
    of solo-learn on the package index is older than its Hydra configs and doesn't count.
    """
    try:
        spec = importlib.util.find_spec("solo")
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in map(Path, places):
        needed = ("methods/mocov2plus.py", "args/pretrain.py")
        if all((place / name).is_file() for name in needed):
            return place
    return None


def choose() -> str:
    """``solo`` or ``standalone``.

    Raises:
        HostError: the variable asks for something unknown, or for solo-learn where there is none.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked and asked not in CHOICES:
        raise HostError(f"{VARIABLE}={asked}: must be solo or standalone, or unset to choose.")
    if asked == "standalone":
        return asked
    folder = solo_learn_folder()
    if asked == "solo" and folder is None:
        raise HostError(
            f"{VARIABLE}=solo: solo-learn (1.0.6 or newer, with solo/methods/mocov2plus.py) can't "
            "be imported here. Run inside its checkout, put the checkout on PYTHONPATH, or set "
            f"{VARIABLE}=standalone."
        )
    found = "solo" if folder is not None else "standalone"
    if not asked:
        where = f"solo-learn in {folder}" if folder else "standalone (no solo-learn importable)"
        rank_zero_info(f"solo-hardneg host: {where}")
    return found


NAME = choose()

if TYPE_CHECKING:  # both hosts have these names; the type checker reads the one it can see
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
    """solo-learn's own backbone of that name, as its ``BaseMethod`` builds it, and its width.

    ``None`` where the host is the standalone one, or doesn't know the name.
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


__all__ = [
    "METHODS",
    "NAME",
    "BaseMethod",
    "MoCoV2Plus",
    "SimCLR",
    "choose",
    "gather",
    "host_backbone",
    "solo_learn_folder",
]
