"""``keep``, ``drop`` and ``fill``: which negatives are there (Cai et al. 2020).

``drop`` takes away, ``keep`` takes away everything else, and ``fill`` says what takes the place of
what was taken away.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.negatives import band as bands
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.registry import register

CAI = "Cai et al. 2020 (arXiv 2010.06682)"


class Condition:
    """Names candidates by difficulty, by class, by image, or by several of these, joined by *and*.

    Args:
        band: ``[lo, hi]``, shares of the negatives from easiest (0) to hardest (1). It is ranked
            among all negatives at hand, before the other conditions apply.
        label: ``same`` or ``different``, as the query's class; an unknown class is neither.
        image: ``same``, the query's own image.
    """

    verb = "condition"

    def __init__(self, band: Any = None, label: str | None = None, image: str | None = None):
        key = f"negatives.{self.verb}"
        if band is None and label is None and image is None:
            raise ConfigError(
                f"{key} has no condition: give it at least one of band, label, image, "
                f"for example {key}.band=[0.95,1.0]."
            )
        if label not in (None, "same", "different"):
            raise bad_value(f"{key}.label", label, "must be same or different (as the query's)")
        if image not in (None, "same"):
            raise bad_value(f"{key}.image", image, "must be same (the query's own image)")
        self.band = None if band is None else bands.parse(band, f"{key}.band")
        self.label = label
        self.image = image

    @property
    def needs(self) -> frozenset[str]:
        """What it needs beside the similarities."""
        wanted = {"labels": self.label, "indexes": self.image}
        return frozenset(name for name, condition in wanted.items() if condition)

    def mask(self, pool: Pool) -> tuple[Tensor, int | None]:
        """(N, M) bool, the named candidates; and their number where all queries have the same."""
        masks, holds = [], None
        if self.band is not None:
            inside, holds = bands.mask(pool, self.band, f"negatives.{self.verb}.band")
            masks.append(inside)
        if self.label is not None:
            masks.append(pool.same_class() if self.label == "same" else pool.different_class())
        if self.image is not None:
            masks.append(pool.same_image())
        return reduce(torch.logical_and, masks), holds if len(masks) == 1 else None


@register(
    "keep",
    summary="takes away all negatives but those of a band of difficulty, a class, an image",
    source=f"{CAI}, figure 2",
    needs=("labels", "indexes"),
)
class Keep(Condition):
    """Takes away every negative that the condition does not name."""

    verb = "keep"

    def __call__(self, pool: Pool) -> Pool:
        mask, holds = self.mask(pool)
        return pool.only(mask, count=holds)


@register(
    "drop",
    summary="takes away the negatives of a band of difficulty, a class, an image",
    source=f"{CAI}, figure 3 and Table 1",
    needs=("labels", "indexes"),
)
class Drop(Condition):
    """Takes away every negative that the condition names."""

    verb = "drop"

    def __call__(self, pool: Pool) -> Pool:
        mask, holds = self.mask(pool)
        left = None if holds is None or pool.count is None else pool.count - holds
        if left is not None:
            self.check_left(pool.count or 0, left)
        return pool.without(mask, count=left)

    def check_left(self, count: int, left: int) -> None:
        """Refuses to drop all of ``count`` negatives.

        Raises:
            EmptyBandError: there were some, and ``left`` is 0.
        """
        if left == 0 and count:
            raise bands.EmptyBandError(
                f"negatives.drop.band={list(self.band or ())}: drops all M={count} negatives. "
                "Leave some."
            )


@register(
    "fill",
    summary="what takes the place of dropped negatives: nothing, or older keys of the queue",
    source=f"{CAI}, footnotes 2 and 3",
    needs=("queue",),
)
class Fill:
    """Says what takes the place of negatives that the verbs above took away.

    Args:
        kind: ``none``, as if they had not been in the queue; or ``older``: the queue is a little
            longer, and a query that lost r of its K newest negatives gets the r newest of that
            reserve that the verbs above would have left.
        reserve: how much longer the queue is, as a share of K in (0, 1].
    """

    def __init__(self, kind: str = "none", reserve: float = 0.125):
        if kind not in ("none", "older"):
            raise bad_value(
                "negatives.fill", kind, "must be none or older (older keys of the queue)"
            )
        number = isinstance(reserve, int | float) and not isinstance(reserve, bool)
        if not number or not 0.0 < reserve <= 1.0:
            raise bad_value(
                "negatives.fill.reserve",
                reserve,
                "must be a share of the queue's size in (0, 1]",
                "0.125 makes the queue an eighth longer.",
            )
        self.kind = kind
        self.reserve = float(reserve) if kind == "older" else 0.0

    @property
    def needs(self) -> frozenset[str]:
        """``older`` needs a queue."""
        return frozenset({"queue"}) if self.kind == "older" else frozenset()

    def __call__(self, pool: Pool) -> Pool:
        if self.kind == "none" or pool.dropped is None:
            return pool
        if pool.age is None:
            raise ConfigError(
                "negatives.fill=older: fills from the queue's older keys, and their age is not "
                "known here. Pass queue_age= and queue_size= to the loss of MoCo, or set "
                "negatives.fill=none; SimCLR has no queue."
            )
        if pool.reserve is None:  # the queue has not outgrown K yet
            return pool
        newest_first = torch.argsort(pool.age)
        waiting = pool.reserve[:, newest_first]
        turn = waiting.cumsum(dim=1)
        chosen_in_turn = waiting & (turn <= pool.dropped[:, None])
        chosen = torch.zeros_like(pool.present)
        chosen[:, newest_first] = chosen_in_turn
        filled = chosen.sum(dim=1)
        filled_pool = replace(
            pool, present=pool.present | chosen, reserve=None, count=None, dropped=None
        )
        return filled_pool.note(
            fill_short=(filled < pool.dropped).float(), filled=filled.to(pool.similarity.dtype)
        )
