"""``retain``: a queue that keeps consistently hard negatives longer.

Cai et al. 2020 find negatives that are hard for more queries than chance has it, and others that
are hard for fewer (figure 6), and suggest to keep the former in the queue and to let the latter go
first. The pipeline only notes how hard each key is; the queue of MoCo asks :class:`Retain` which
of its keys to let go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from solo_hardneg.errors import bad_value
from solo_hardneg.negatives import band as bands
from solo_hardneg.negatives.numbers import real
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.registry import register


@register(
    "retain",
    summary="the queue keeps consistently hard keys longer, lets consistently easy ones go first",
    source="Cai et al. 2020 (arXiv 2010.06682), section 4 and figure 6 suggest it",
    needs=("queue",),
)
class Retain:
    """Shifts the age by which keys leave the queue by how consistently they are hard.

    A key's score is the share of queries that have it in the ``band``, averaged over the steps it
    was in the queue, newer steps counting more. By chance that is the band's width p; where the
    verbs above leave fewer to be ranked, shares are scaled so that the average key has p. The key
    leaves as if it were younger, or older, by

        strength · L · clip(score/p - 1, -1, 1)   keys,

    L the queue's length: with strength 1, one that is hard twice as often as by chance stays a
    whole queue longer, and one that never is hard counts as a queue older. No key outlives
    (1 + 2·strength)·L newer ones. Strength 0 is the ordinary queue, first in, first out.

    Args:
        strength: from 0 up.
        band: what counts as hard, ``[lo, hi]``; ranked among the negatives that the verbs above
            leave.
        decay: in [0, 1), the weight of the past in the average; 0.9 looks back some ten steps.
    """

    def __init__(self, strength: float, band: Any = (0.95, 1.0), decay: float = 0.9):
        key = "negatives.retain"
        do = "1 lets the hardest stay one queue longer; 0 is the ordinary queue."
        allowed = "must be a number from 0 up"
        self.strength = real(f"{key}.strength", strength, allowed, do, least=0)
        self.band = bands.parse(band, f"{key}.band")
        if self.band == (0.0, 1.0):
            do = "The hardest 5 % are [0.95, 1.0]."
            raise bad_value(f"{key}.band", list(band), "holds all negatives, always", do)
        self.decay = real(f"{key}.decay", decay, "must lie in [0, 1)", least=0, below=1)

    @property
    def chance(self) -> float:
        """The score of a key that is as hard as any: the band's width."""
        return self.band[1] - self.band[0]

    def __call__(self, pool: Pool) -> Pool:
        inside, _ = bands.mask(pool, self.band, "negatives.retain.band")
        if pool.vectors is not None:
            inside = inside[:, : len(pool.vectors)]  # synthetic ones are in no queue
        return replace(pool, hard_share=inside.to(pool.similarity.dtype).mean(dim=0))

    def average(self, scores: Tensor, shares: Tensor) -> Tensor:
        """(M,) the scores after a step in which ``shares`` (M,) of the queries found them hard."""
        scaled = shares * (self.chance / shares.mean().clamp(min=1e-9))
        return self.decay * scores + (1 - self.decay) * scaled

    def effective_age(self, age: Tensor, scores: Tensor, length: int) -> Tensor:
        """(M,) the age, in keys, that decides who leaves; ``length`` is L."""
        bonus = (scores / self.chance - 1).clamp(-1, 1)
        return age - self.strength * length * bonus
