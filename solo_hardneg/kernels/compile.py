"""Compiles a policy for the kernels: the verbs that select, the one that mixes, β and τ⁺."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

from solo_hardneg.kernels.interface import Ranks
from solo_hardneg.negatives.mix import Mix
from solo_hardneg.negatives.policy import Policy
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.ranks import Intervals, compose_ranks
from solo_hardneg.negatives.registry import Verb, describes_itself


@dataclass(frozen=True)
class CompiledPolicy:
    """A policy in one epoch, as its verbs describe it.

    Attributes:
        selecting: Verbs that select negatives, in order. Each treats every query independently.
        mix: Verb that adds synthetic negatives made of those selected.
        beta: β.
        tau_plus: τ⁺.
        obstacle: Why only the dense backend can follow the policy; ``None`` if kernels can.
    """

    selecting: tuple[Verb, ...] = ()
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
        """Whether ranks alone decide, if the queue has no reserve."""
        return all(verb.by_rank for verb in self.selecting)

    @property
    def fills(self) -> bool:
        """Whether older keys of a reserve replace dropped ones."""
        return any(verb.reserve for verb in self.selecting)

    def ranks(self, count: int) -> Intervals:
        """Returns the intervals of ranks that are left of ``count`` negatives, if ``by_rank``.

        Raises:
            EmptyBandError: A verb leaves none of them.
        """
        left: Intervals = [(0, count)]
        for verb in self.selecting:
            left = compose_ranks(left, verb.ranks(sum(past - first for first, past in left)))
        return left


_compiled: WeakKeyDictionary[Policy, CompiledPolicy] = WeakKeyDictionary()


def compile_policy(policy: Policy | None) -> CompiledPolicy:
    """Compiles a policy in its epoch; the result is cached as long as the policy exists."""
    if policy is None:
        return CompiledPolicy()
    if policy not in _compiled:
        _compiled[policy] = _compile(policy)
    return _compiled[policy]


def _compile(policy: Policy) -> CompiledPolicy:
    selecting: list[Verb] = []
    mix: Mix | None = None
    beta, tau_plus = 0.0, 0.0
    for name, verb in policy.verbs.items():
        if not describes_itself(verb):
            text = f"negatives.{name} is a policy that only backend=dense can follow"
            return CompiledPolicy(obstacle=text)
        beta += verb.beta
        tau_plus = tau_plus if verb.tau_plus is None else verb.tau_plus
        if mix is not None and (verb.adds or verb.selects):
            text = (
                f"negatives.{name} stands below negatives.mix, and only backend=dense can choose "
                "among synthetic negatives"
            )
            return CompiledPolicy(obstacle=text)
        if verb.adds:
            mix = cast(Mix, verb)
        elif verb.selects:
            selecting.append(verb)
    return CompiledPolicy(tuple(selecting), mix, beta, tau_plus)


def single_range(left: Intervals, count: int) -> tuple[bool, Ranks | None]:
    """Whether one range of ranks, inside or outside, describes what is left; and that range.

    Args:
        left: Ranks left by a policy.
        count: Number of negatives before it. The range is ``None`` if all are left.
    """
    if left == [(0, count)]:
        return True, None
    if len(left) == 1:
        return True, Ranks(*left[0])
    if len(left) == 2 and left[0][0] == 0 and left[1][1] == count:
        return True, Ranks(left[0][1], left[1][0], inside=False)
    return False, None
