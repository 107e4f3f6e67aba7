"""Trying a policy before a run, on one made-up query: what can't work is found at the start."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solo_hardneg.negatives.band import GUARD, EmptyBandError, TooFewNegativesError
from solo_hardneg.negatives.pool import Pool, full_pool

if TYPE_CHECKING:
    from solo_hardneg.negatives.policy import Policy


def try_out(policy: Policy, count: int) -> None:
    """Applies a policy, as it is in its epoch, to one query with ``count`` negatives.

    How many of them share the query's class and image is not known here. What leaves something
    if none do, or if all do, is not impossible.

    Raises:
        TooFewNegativesError: a verb finds too few, or they leave none together.
    """
    problem: TooFewNegativesError | None = None
    marks = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.long)
    kinds = [marks if need in policy.needs else [None] for need in ("labels", "indexes")]
    for labels, indexes in product(*kinds):
        try:
            with torch.random.fork_rng(devices=[]):  # a trial takes nothing from the run's
                left = _apply(policy, _made_up(count, labels, indexes))
        except TooFewNegativesError as error:
            problem = problem or error
            continue
        # What others' verbs leave may be drawn at random, and be something the next time.
        own = all(_is_own(verb) for verb in policy.verbs.values())
        if count == 0 or not own or bool(left.present.any()):
            return
    raise problem or TooFewNegativesError(
        f"negatives={policy.config}: leaves none of M={count} negatives. Its verbs apply from "
        "top to bottom; take one of them out."
    )


def _apply(policy: Policy, pool: Pool) -> Pool:
    for name, verb in policy.verbs.items():
        if name in policy.moving_bands:
            _check_moving(name, getattr(verb, "band", None), policy.epoch, int(pool.counts.max()))
        pool = verb(pool)
        short = pool.notes.get("mix_short")
        if short is not None and bool(short.any()):
            raise TooFewNegativesError(
                f"negatives={policy.config}: the verbs above mix leave fewer negatives than "
                "negatives.mix.hardest. Lower it, or have more negatives (a longer queue, a "
                "larger batch)."
            )
    return pool


def _check_moving(name: str, band: Any, epoch: float, count: int) -> None:
    """Refuses a band that would hold nothing somewhere between the epochs that are tried.

    One as wide as a rank holds something wherever it moves, and so does one that ends at 1.
    """
    if band is not None and band[1] < 1 and 0 < (band[1] - band[0]) * count < 1 - GUARD:
        raise EmptyBandError(
            f"negatives.{name}.band={list(band)} at epoch {epoch:g}: moves, and is so narrow that "
            f"it holds none of M={count} negatives on its way. Keep it at least "
            f"1/M = {1 / count:.2g} wide, or have more negatives (a longer queue, a larger batch)."
        )


def _is_own(verb: object) -> bool:
    return type(verb).__module__.startswith("solo_hardneg.")


def _made_up(count: int, labels: Tensor | None, indexes: Tensor | None) -> Pool:
    """One query, of class 1 and image 1, and ``count`` negatives from easy to hard."""
    one = torch.ones(1, dtype=torch.long)
    cosines = torch.linspace(-1, 1, count)
    vectors = torch.stack([cosines, (1 - cosines**2).clamp(min=0).sqrt()], dim=1)
    return full_pool(
        cosines[None, :],
        query_labels=one,
        labels=labels,
        query_indexes=one,
        indexes=indexes,
        age=torch.arange(count),
        query=torch.tensor([[1.0, 0.0]]),
        vectors=vectors,
    )
