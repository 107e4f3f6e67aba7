"""Our methods, by the names that a config gives them."""

from solo_hardneg.methods.moco import MoCoV2Banded

OUR_METHODS = {"mocov2_banded": MoCoV2Banded}

__all__ = ["OUR_METHODS", "MoCoV2Banded"]
