"""``reweight`` and ``debias``: hardness weights (HCL), and correction for false negatives (DCL).

They set β and τ⁺ of the formula in :mod:`solo_hardneg.kernels.formula`. It applies to the negatives
that all verbs leave, so their place among the verbs doesn't matter.
"""

from __future__ import annotations

from dataclasses import replace

from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.registry import Verb, register
from solo_hardneg.validate import real

ROBINSON = "Robinson et al. 2021 (HCL, arXiv 2010.04592)"
CHUANG = "Chuang et al. 2020 (DCL, arXiv 2007.00224)"


@register(
    "reweight",
    summary="harder negatives count more: weights ∝ exp(β·similarity/τ)",
    source=f"{ROBINSON}, eq. 4; Dong et al. 2023 (SSCL, arXiv 2304.02971), section 3.2",
    example="{beta: 1.0}",
)
class Reweight(Verb):
    """Weights negatives by wᵢⱼ = exp(β·sᵢⱼ/τ) / meanⱼ exp(β·sᵢⱼ/τ); Robinson et al. 2021, eq. 4.

    The mean is over the negatives present.

    Args:
        beta: β ≥ 0; 0 gives equal weights.

    Raises:
        ConfigError: β is negative or no number.
    """

    described = True

    def __init__(self, beta: float):
        do = "The papers use 0.2 (MoCo) to 1 (SimCLR); 0 weighs all negatives alike."
        self.beta = real("negatives.reweight.beta", beta, "must be a number from 0 up", do, least=0)

    def __call__(self, pool: Pool) -> Pool:
        return replace(pool, beta=pool.beta + self.beta)


@register(
    "debias",
    summary="corrects for negatives of the query's class",
    source=f"{CHUANG}, eq. 7 and 8",
    example="{tau_plus: 0.1}",
)
class Debias(Verb):
    """Subtracts the false negatives, a share τ⁺, from the sum; Chuang et al. 2020, eq. 7 and 8.

    Args:
        tau_plus: τ⁺ in [0, 1), the probability that a negative is of the query's class.

    Raises:
        ConfigError: τ⁺ is outside [0, 1) or no number.
    """

    described = True
    tau_plus: float

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
