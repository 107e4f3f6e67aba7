"""``keep``, ``drop`` and ``fill``: which negatives are present (Cai et al. 2020).

``drop`` removes negatives, ``keep`` removes all others, and ``fill`` replaces what they removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from solo_hardneg.errors import ConfigError, bad_value
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.ranks import (
    EmptyBandError,
    Intervals,
    band_count,
    band_mask,
    band_ranks,
    parse_band,
    parse_interval,
)
from solo_hardneg.negatives.registry import Verb, register
from solo_hardneg.negatives.thresholds import above_threshold, parse_threshold_rule
from solo_hardneg.validate import real

CAI = "Cai et al. 2020 (arXiv 2010.06682)"
EXAMPLES = {
    "similarity": "[0.9, 1.0], those of a cosine of 0.9 and more",
    "margin": "[0.0, 2.0], those more similar to the query than its positive",
}


class Condition(Verb):
    """Base class of ``keep`` and ``drop``: a condition on difficulty, class and image.

    A candidate meets the condition if it meets each part that is given.

    Args:
        band: ``[lo, hi]``, shares of the negatives from easiest (0) to hardest (1), ranked before
            the other parts apply.
        label: ``same`` or ``different`` from the query's class; an unknown class is neither.
        image: ``same``, views of the query's image.
        similarity: ``[lo, hi]`` within [-1, 1], lo ≤ sᵢⱼ < hi; 1 includes 1 itself.
        margin: ``[lo, hi]`` within [-2, 2], lo ≤ sᵢⱼ - sᵢ⁺ < hi; 2 includes 2 itself. Above 0 are
            the negatives more similar to the query than its positive, or the mean over several.
        above: ``learned``, those above a threshold that each image of the dataset has and learns
            (GloFND, Balmaseda et al. 2025, arXiv 2502.20612); see :mod:`.thresholds`.
        share: With ``above``, the share of its negatives that an image's threshold approaches.
        rate: With ``above``, its learning rate; 0.05 by default.

    Raises:
        ConfigError: No part is given, or a value is not allowed.
    """

    verb = "condition"
    selects = True

    def __init__(
        self,
        band: Any = None,
        label: str | None = None,
        image: str | None = None,
        similarity: Any = None,
        margin: Any = None,
        above: str | None = None,
        share: float | None = None,
        rate: float | None = None,
    ):
        key = f"negatives.{self.verb}"
        self.threshold_rule = parse_threshold_rule(key, above, share, rate)
        if all(part is None for part in (band, label, image, similarity, margin, above)):
            raise ConfigError(
                f"{key} has no condition: give it at least one of band, label, image, similarity, "
                f"margin, above, for example {key}.band=[0.95,1.0]."
            )
        if label not in (None, "same", "different"):
            raise bad_value(f"{key}.label", label, "must be same or different (as the query's)")
        if image not in (None, "same"):
            raise bad_value(f"{key}.image", image, "must be same (the query's own image)")
        self.band = None if band is None else parse_band(band, f"{key}.band")
        self.label = label
        self.image = image
        self.similarity = self._parse_part("similarity", similarity, 1.0)
        self.margin = self._parse_part("margin", margin, 2.0)

    def _parse_part(self, name: str, value: Any, most: float) -> tuple[float, float] | None:
        if value is None:
            return None
        allowed = f"must be two numbers [lo, hi] with -{most:g} <= lo < hi <= {most:g}"
        do = f"For example {EXAMPLES[name]}."
        return parse_interval(value, f"negatives.{self.verb}.{name}", -most, most, allowed, do)

    @property
    def by_rank(self) -> bool:  # type: ignore[override]
        """Whether the band is the only part."""
        others = (self.label, self.image, self.similarity, self.margin, self.threshold_rule)
        return all(part is None for part in others)

    @property
    def needs_positive(self) -> bool:  # type: ignore[override]
        """Whether it compares negatives with the positive."""
        return self.margin is not None

    @property
    def needs(self) -> frozenset[str]:
        """What it needs besides similarities."""
        wanted = {"labels": self.label, "indexes": self.image or self.threshold_rule}
        return frozenset(name for name, part in wanted.items() if part)

    def ranks_in_band(self, count: int) -> tuple[int, int]:
        """Returns the first rank in the band and the first one past it, of ``count`` negatives.

        Raises:
            EmptyBandError: The band holds none of them.
        """
        assert self.band is not None
        band_count(self.band, count, f"negatives.{self.verb}.band")
        return band_ranks(self.band, count)

    def apply(self, pool: Pool) -> tuple[Pool, Tensor, int | None]:
        """Finds the candidates that meet the condition.

        Returns:
            The pool, with the notes of a learned threshold; (N, M) bool; and the number of those
            that meet it, ``None`` if it may differ between queries.

        Raises:
            EmptyBandError: The band holds none of the negatives.
            ConfigError: The pool lacks labels, indexes or thresholds.
        """
        masks, number = [], None
        if self.band is not None:
            inside, number = band_mask(pool, self.band, f"negatives.{self.verb}.band")
            masks.append(inside)
        if self.label is not None:
            masks.append(pool.same_class() if self.label == "same" else pool.different_class())
        if self.image is not None:
            masks.append(pool.same_image())
        similarity = pool.similarity.detach()
        if self.similarity is not None:
            masks.append(within(similarity, self.similarity, 1.0))
        if self.margin is not None:
            masks.append(within(similarity - pool.known_positive()[:, None], self.margin, 2.0))
        if self.threshold_rule is not None:
            above = above_threshold(similarity, pool.threshold)
            share = (above & pool.present).sum(dim=1) / pool.counts.clamp(min=1)
            masks.append(above)
            pool = pool.note(above_threshold=share)
        return pool, reduce(torch.logical_and, masks), number if len(masks) == 1 else None


def trial_similarities(verbs: Iterable[Any]) -> Iterator[tuple[float, float, float]]:
    """Yields lowest, highest and positive similarity for dry runs of some verbs.

    The ends of all conditions cut similarities into pieces whose members all fare alike. Conditions
    that can be met together are met in one of the trials.
    """
    yield -1.0, 1.0, 0.0
    conditions = [verb for verb in verbs if isinstance(verb, Condition)]
    similarities = {end for condition in conditions for end in condition.similarity or ()}
    margins = {end for condition in conditions for end in condition.margin or ()}
    if not similarities | margins:
        return
    similarities |= {-1.0, 1.0}
    crossings = {s - m for s in similarities for m in margins if abs(s - m) < 1}
    positives = sorted({-1.0, 1.0, *crossings})
    positives += [(one + other) / 2 for one, other in pairwise(positives)]
    for positive in positives:
        moved = {positive + margin for margin in margins if abs(positive + margin) < 1}
        for lowest, highest in pairwise(sorted(similarities | moved)):
            yield lowest, highest, positive


def within(values: Tensor, interval: tuple[float, float], most: float) -> Tensor:
    """Marks the values in [lo, hi). An end at ±most is no limit, as rounding may go beyond it."""
    lo, hi = interval
    above = values >= lo if lo > -most else torch.ones_like(values, dtype=torch.bool)
    return above & (values < hi) if hi < most else above


@register(
    "keep",
    summary="keeps only the negatives of a band of difficulty, a similarity, a class or an image",
    source=f"{CAI}, figure 2",
    example="{band: [0.95, 1.0]}",
    needs=("labels", "indexes"),
)
class Keep(Condition):
    """Drops every negative that doesn't meet the condition; Cai et al. 2020, figure 2."""

    verb = "keep"
    described = True

    def ranks(self, count: int) -> Intervals:
        return [self.ranks_in_band(count)]

    def __call__(self, pool: Pool) -> Pool:
        pool, mask, number = self.apply(pool)
        return pool.only(mask, count=number)


@register(
    "drop",
    summary="drops the negatives of a band of difficulty, a similarity, a class or an image",
    source=f"{CAI}, figure 3 and Table 1",
    example="{band: [0.999, 1.0], label: same}",
    needs=("labels", "indexes"),
)
class Drop(Condition):
    """Drops every negative that meets the condition; Cai et al. 2020, figure 3 and table 1."""

    verb = "drop"
    described = True

    def ranks(self, count: int) -> Intervals:
        first, past = self.ranks_in_band(count)
        self._check_rest(count, count - (past - first))
        return [(start, end) for start, end in ((0, first), (past, count)) if start < end]

    def __call__(self, pool: Pool) -> Pool:
        pool, mask, number = self.apply(pool)
        rest = None
        if number is not None and pool.count is not None:
            rest = pool.count - number
            self._check_rest(pool.count, rest)
        return pool.without(mask, count=rest)

    def _check_rest(self, count: int, rest: int) -> None:
        if rest == 0 and count:
            raise EmptyBandError(
                f"negatives.drop.band={list(self.band or ())}: drops all M={count} negatives. "
                "Leave some."
            )


@register(
    "fill",
    summary="replaces dropped negatives by nothing, or by older keys of the queue",
    source=f"{CAI}, footnotes 2 and 3",
    example="older",
    needs=("queue",),
)
class Fill(Verb):
    """Replaces the negatives that the verbs above dropped; Cai et al. 2020, footnotes 2 and 3.

    With ``older`` the queue is longer than K by a reserve. A query that lost r of its K newest
    negatives gets the r newest keys of the reserve that the verbs above wouldn't drop; the note
    ``fill_short`` marks queries for which there are fewer.

    Args:
        kind: ``none``, as if dropped negatives weren't in the queue; or ``older``.
        reserve: How much longer than K the queue is, as a share of K in (0, 1].

    Raises:
        ConfigError: An argument is not allowed.
    """

    described = True
    selects = by_rank = True

    def __init__(self, kind: str = "none", reserve: float = 0.125):
        if kind not in ("none", "older"):
            raise bad_value(
                "negatives.fill", kind, "must be none or older (older keys of the queue)"
            )
        share = real(
            "negatives.fill.reserve",
            reserve,
            "must be a share of the queue's size in (0, 1]",
            "0.125 makes the queue an eighth longer.",
            above=0,
            most=1,
        )
        self.kind = kind
        self.reserve = share if kind == "older" else 0.0

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
        if pool.reserve is None:  # the queue is not longer than K yet
            return pool
        newest_first = torch.argsort(pool.age)
        waiting = pool.reserve[:, newest_first]
        chosen = torch.zeros_like(pool.present)
        chosen[:, newest_first] = waiting & (waiting.cumsum(dim=1) <= pool.dropped[:, None])
        filled = chosen.sum(dim=1)
        filled_pool = replace(
            pool, present=pool.present | chosen, reserve=None, count=None, dropped=None
        )
        return filled_pool.note(
            fill_short=(filled < pool.dropped).float(), filled=filled.to(pool.similarity.dtype)
        )
