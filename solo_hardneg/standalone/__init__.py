"""Trains and evaluates without solo-learn, with its config keys, batches and checkpoint keys.

A run can move between both hosts. What only solo-learn has (DALI, HDF5, multi-crop, fine-tuning,
more methods) is refused with the key that asks for it.
"""

from solo_hardneg.standalone.base import BaseMethod, BaseMomentumMethod
from solo_hardneg.standalone.byol import BYOL
from solo_hardneg.standalone.linear import LinearModel
from solo_hardneg.standalone.mocov2plus import MoCoV2Plus
from solo_hardneg.standalone.simclr import SimCLR

METHODS: dict[str, type[BaseMethod]] = {"byol": BYOL, "mocov2plus": MoCoV2Plus, "simclr": SimCLR}

__all__ = [
    "BYOL",
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "LinearModel",
    "MoCoV2Plus",
    "SimCLR",
]
