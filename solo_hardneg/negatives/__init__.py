"""Policies: which negatives each query has, and how much each counts.

    from solo_hardneg import negatives

    policy = negatives.build({"keep": {"band": [0.95, 1.0]}})

A policy is an ordered mapping of verbs to arguments, as in the config group ``negatives``. The
difficulty of a negative is its similarity to the query.
"""

from solo_hardneg.negatives import mix, retain, reweight, select  # noqa: F401  (register the verbs)
from solo_hardneg.negatives.policy import Policy, build
from solo_hardneg.negatives.pool import Pool, full_pool
from solo_hardneg.negatives.ranks import EmptyBandError, TooFewNegativesError
from solo_hardneg.negatives.registry import Info, Verb, available, register
from solo_hardneg.negatives.stats import LossStats

__all__ = [
    "EmptyBandError",
    "Info",
    "LossStats",
    "Policy",
    "Pool",
    "TooFewNegativesError",
    "Verb",
    "available",
    "build",
    "full_pool",
    "register",
]
