"""``retain``: a queue that keeps consistently hard negatives longer.

Cai et al. 2020 find keys that are hard for more queries than by chance, and others that are hard
for fewer (figure 6), and suggest to keep the former longer. The verb only records how hard each key
is; :class:`~solo_hardneg.negatives.queue.KeyQueue` asks it which keys leave.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from solo_hardneg.errors import bad_value
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.ranks import band_mask, parse_band
from solo_hardneg.negatives.registry import Verb, register
from solo_hardneg.validate import real


@register(
    "retain",
    summary="keeps consistently hard keys in the queue longer, and drops easy ones earlier",
    source="Cai et al. 2020 (arXiv 2010.06682), section 4 and figure 6 suggest it",
    example="{strength: 1.0}",
    needs=("queue",),
)
class Retain(Verb):
    """Changes the order in which keys leave the queue by how consistently they are hard.

    A key's score is the share of queries that have it in ``band``, as a moving average over steps.
    By chance it is the band's width p. If the verbs above leave only some negatives to rank, shares
    are scaled to an average of p. A key leaves as if it were younger by

        strength · L · clip(score/p - 1, -1, 1)   keys,

    where L is the length of the queue. With strength 1, a key that is hard twice as often as by
    chance stays a whole queue longer, and one that is never hard counts as a queue older. No key
    outlives (1 + 2·strength)·L newer ones. With strength 0 the queue is first in, first out.

    Args:
        strength: At least 0.
        band: Band of the hard negatives, ``[lo, hi]``, ranked among those that the verbs above
            leave.
        decay: Weight of the past in the moving average, in [0, 1); 0.9 averages about ten steps.

    Raises:
        ConfigError: An argument is not allowed.
    """

    described = True
    selects = True  # none, but its record of each key depends on which negatives are present

    def __init__(self, strength: float, band: Any = (0.95, 1.0), decay: float = 0.9):
        key = "negatives.retain"
        do = "1 lets the hardest stay one queue longer; 0 is the ordinary queue."
        allowed = "must be a number from 0 up"
        self.strength = real(f"{key}.strength", strength, allowed, do, least=0)
        self.band = parse_band(band, f"{key}.band")
        if self.band == (0.0, 1.0):
            do = "The hardest 5 % are [0.95, 1.0]."
            raise bad_value(f"{key}.band", list(band), "holds all negatives, always", do)
        self.decay = real(f"{key}.decay", decay, "must lie in [0, 1)", least=0, below=1)

    @property
    def chance(self) -> float:
        """Score of an average key: the width of the band."""
        return self.band[1] - self.band[0]

    def __call__(self, pool: Pool) -> Pool:
        inside, _ = band_mask(pool, self.band, "negatives.retain.band")
        if pool.vectors is not None:
            inside = inside[:, : len(pool.vectors)]  # the queue holds no synthetic negatives
        return replace(pool, hard_share=inside.to(pool.similarity.dtype).mean(dim=0))

    def average(self, scores: Tensor, shares: Tensor) -> Tensor:
        """Returns the (M,) scores after a step.

        Args:
            scores: (M,) before the step.
            shares: (M,) share of the queries for which each key was hard.
        """
        scaled = shares * (self.chance / shares.mean().clamp(min=1e-9))
        return self.decay * scores + (1 - self.decay) * scaled

    def effective_age(self, age: Tensor, scores: Tensor, length: int) -> Tensor:
        """Returns the (M,) ages by which keys leave.

        Args:
            age: (M,) number of newer keys.
            scores: (M,) hardness scores.
            length: L, slots of the queue.
        """
        bonus = (scores / self.chance - 1).clamp(-1, 1)
        return age - self.strength * length * bonus
