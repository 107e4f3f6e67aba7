"""Which negatives a query meets: the registry of policies, and policies built from a config.

    from solo_hardneg import negatives

    policy = negatives.build({"keep": {"band": [0.95, 1.0]}})

The similarity of a negative to its query is its difficulty; section headings, verbs and their
arguments are those of the config group ``negatives``.
"""

from solo_hardneg.negatives import mix, retain, select, weigh  # noqa: F401  (enter their verbs)
from solo_hardneg.negatives.band import EmptyBandError, TooFewNegativesError
from solo_hardneg.negatives.kept import Kept
from solo_hardneg.negatives.policy import Policy, build
from solo_hardneg.negatives.pool import Pool, full_pool
from solo_hardneg.negatives.registry import Info, available, register

__all__ = [
    "EmptyBandError",
    "Info",
    "Kept",
    "Policy",
    "Pool",
    "TooFewNegativesError",
    "available",
    "build",
    "full_pool",
    "register",
]
