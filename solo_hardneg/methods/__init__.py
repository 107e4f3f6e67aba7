"""Our methods, by their names in a config."""

from solo_hardneg.methods.moco import MoCoV2Banded, MoCoV2SSCL
from solo_hardneg.methods.simclr import SimCLRBanded, SimCLRSSCL

OUR_METHODS = {
    "mocov2_banded": MoCoV2Banded,
    "mocov2_sscl": MoCoV2SSCL,
    "simclr_banded": SimCLRBanded,
    "simclr_sscl": SimCLRSSCL,
}

__all__ = ["OUR_METHODS", "MoCoV2Banded", "MoCoV2SSCL", "SimCLRBanded", "SimCLRSSCL"]
