"""A policy, as kernels see it: who is left, who is mixed, and the knobs β and τ⁺."""

from __future__ import annotations

from dataclasses import dataclass

from solo_hardneg.kernels.problem import Ranks
from solo_hardneg.negatives import band as bands
from solo_hardneg.negatives.mix import Mix
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.registry import Transform
from solo_hardneg.negatives.retain import Retain
from solo_hardneg.negatives.select import Condition, Drop, Fill, Keep
from solo_hardneg.negatives.weigh import Debias, Reweight

_SELECTING = (Keep, Drop, Fill, Retain)


@dataclass(frozen=True)
class KernelPlan:
    """What the verbs of one epoch do.

    Attributes:
        selecting: the verbs that say who is left, from top to bottom. What they do to one query
            doesn't depend on the others.
        mix: the verb that adds synthetic negatives, made of those that are left.
        beta: β.
        tau_plus: τ⁺.
        obstacle: why no kernel can follow it, only the dense way; ``None`` if one can.
    """

    selecting: tuple[Transform, ...] = ()
    mix: Mix | None = None
    beta: float = 0.0
    tau_plus: float = 0.0
    obstacle: str | None = None

    def select(self, pool: Pool) -> Pool:
        """Applies the selecting verbs."""
        for verb in self.selecting:
            pool = verb(pool)
        return pool

    @property
    def by_rank(self) -> bool:
        """Whether ranks alone say who is left, if there is no reserve."""
        return not any(
            isinstance(verb, Retain) or getattr(verb, "label", None) or getattr(verb, "image", None)
            for verb in self.selecting
        )

    @property
    def fills(self) -> bool:
        """Whether older keys take the place of dropped ones, if there is a reserve."""
        return any(isinstance(verb, Fill) and verb.kind == "older" for verb in self.selecting)

    def ranks(self, count: int) -> list[tuple[int, int]]:
        """Which of ``count`` negatives are left, as intervals of ranks; for a plan by rank.

        Raises:
            EmptyBandError: a verb holds or leaves none of them.
        """
        left = [(0, count)]
        for verb in self.selecting:
            if isinstance(verb, Condition) and verb.band is not None:
                there = sum(past - first for first, past in left)
                holds = bands.held(verb.band, there, f"negatives.{verb.verb}.band")
                first, past = bands.ranks(verb.band, there)
                if isinstance(verb, Drop):
                    verb.check_left(there, there - holds)
                    left = [*_between(left, 0, first), *_between(left, past, there)]
                else:
                    left = _between(left, first, past)
        return left


def as_ranks(left: list[tuple[int, int]], count: int) -> tuple[bool, Ranks | None]:
    """Whether one range of ranks, inside or outside, says who is left, and that range.

    The range is ``None`` where all are left.
    """
    if left == [(0, count)]:
        return True, None
    if len(left) == 1:
        return True, Ranks(*left[0])
    if len(left) == 2 and left[0][0] == 0 and left[1][1] == count:
        return True, Ranks(left[0][1], left[1][0], inside=False)
    return False, None


def _between(intervals: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The places ``start`` … ``end``-1 of what the intervals hold together."""
    found: list[tuple[int, int]] = []
    passed = 0
    for first, past in intervals:
        low, high = max(start - passed, 0), min(end - passed, past - first)
        if low < high:
            found.append((first + low, first + high))
        passed += past - first
    return found


def plan_of(policy: Policy | None) -> KernelPlan:
    """The plan of a policy, as it is in its epoch."""
    selecting: list[Transform] = []
    mix: Mix | None = None
    beta, tau_plus = 0.0, 0.0
    for name, verb in ({} if policy is None else policy.verbs).items():
        if type(verb) is Reweight:
            beta += verb.beta
        elif type(verb) is Debias:
            tau_plus = verb.tau_plus
        elif type(verb) is Mix and mix is None:
            mix = None if verb.idle else verb
        elif type(verb) not in _SELECTING:
            return KernelPlan(
                obstacle=f"negatives.{name} is a policy that only backend=dense can follow"
            )
        elif mix is not None:
            return KernelPlan(
                obstacle=f"negatives.{name} stands below negatives.mix, and only backend=dense can "
                "choose among synthetic negatives"
            )
        else:
            selecting.append(verb)
    return KernelPlan(tuple(selecting), mix, beta, tau_plus)
