"""``reweight`` and ``debias``: how much each negative counts, and how many are false.

They set the knobs β and τ⁺ of the one formula in :mod:`solo_hardneg.formula`, which uses them on
the negatives that all verbs together leave, wherever these two stand among them.
"""

from __future__ import annotations

from dataclasses import replace

from solo_hardneg.negatives.numbers import real
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.registry import register

ROBINSON = "Robinson et al. 2021 (HCL, arXiv 2010.04592)"
CHUANG = "Chuang et al. 2020 (DCL, arXiv 2007.00224)"


@register(
    "reweight",
    summary="harder negatives count more: weights ∝ exp(β·similarity/τ)",
    source=f"{ROBINSON}, eq. 4; Dong et al. 2023 (SSCL, arXiv 2304.02971), section 3.2",
)
class Reweight:
    """wᵢⱼ = exp(β·sᵢⱼ/τ) / meanⱼ exp(β·sᵢⱼ/τ), the mean over the negatives present.

    Args:
        beta: β ≥ 0; 0 weighs all alike.
    """

    def __init__(self, beta: float):
        do = "The papers use 0.2 (MoCo) to 1 (SimCLR); 0 weighs all negatives alike."
        self.beta = real("negatives.reweight.beta", beta, "must be a number from 0 up", do, least=0)

    def __call__(self, pool: Pool) -> Pool:
        return replace(pool, beta=pool.beta + self.beta)


@register(
    "debias",
    summary="corrects for negatives that are of the query's class",
    source=f"{CHUANG}, eq. 7 and 8",
)
class Debias:
    """Takes the positives' share τ⁺ out of the negatives' sum.

    Args:
        tau_plus: τ⁺ in [0, 1), the probability that a negative is of the query's class.
    """

    def __init__(self, tau_plus: float):
        self.tau_plus = real(
            "negatives.debias.tau_plus",
            tau_plus,
            "must lie in [0, 1)",
            "It is the probability that a negative is of the query's class: 0.1 with ten classes.",
            least=0,
            below=1,
        )

    def __call__(self, pool: Pool) -> Pool:
        return replace(pool, tau_plus=self.tau_plus)
