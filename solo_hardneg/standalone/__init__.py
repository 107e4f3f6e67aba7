"""A small host for machines without solo-learn: its contract, as far as our methods need it.

The config keys, the names of attributes and methods, the batches ``[indexes, [X1, X2], targets]``
and the checkpoint keys are solo-learn's, so a run can move from one host to the other. Whatever
only solo-learn has (HDF5, multi-crop, fine-tuning, more methods) is refused by name.
"""

from solo_hardneg.standalone.base import BaseMethod, BaseMomentumMethod
from solo_hardneg.standalone.byol import BYOL
from solo_hardneg.standalone.linear import LinearModel
from solo_hardneg.standalone.mocov2plus import MoCoV2Plus
from solo_hardneg.standalone.simclr import SimCLR

METHODS: dict[str, type[BaseMethod]] = {
    "byol": BYOL,
    "mocov2plus": MoCoV2Plus,
    "simclr": SimCLR,
}

__all__ = [
    "BYOL",
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "LinearModel",
    "MoCoV2Plus",
    "SimCLR",
]
