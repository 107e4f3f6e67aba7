"""From the config to a policy: an ordered mapping of verbs becomes one callable."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import schedule
from solo_hardneg.negatives.band import TooFewNegativesError
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.registry import TIMES, Transform, arguments_of, available, create
from solo_hardneg.negatives.retain import Retain
from solo_hardneg.negatives.trial import try_out


@dataclass(frozen=True)
class Plan:
    """One verb as the config has it.

    Attributes:
        name: the verb.
        arguments: its arguments, defaults filled in; numbers may be schedules.
        when: the epochs in which it acts.
    """

    name: str
    arguments: Mapping[str, Any]
    when: schedule.When

    def at(self, epoch: float) -> Transform:
        """The policy that the arguments of an epoch make."""
        whole = available()[self.name].whole
        values = {
            name: round(value.at(epoch))
            if isinstance(value, schedule.Schedule) and name in whole
            else schedule.resolve(value, epoch)
            for name, value in self.arguments.items()
        }
        return create(self.name, values)

    def epochs(self) -> Iterator[float]:
        """Epochs at which the arguments or the acting change."""
        yield from self.when.config.values()
        for found in schedule.inside(self.arguments):
            yield from found.epochs

    @property
    def config(self) -> dict[str, Any]:
        """The arguments as plain values, in one form for all that are equal."""
        return {**_plain(self.arguments), **self.when.config}


class Policy:
    """What is done to the negatives: verbs, applied from top to bottom.

    Attributes:
        config: the mapping that it was built from, defaults filled in and numbers as floats:
            equal policies have equal configs, in the same order.
        defaults: for each verb of it, the values of the arguments that may be left out.
        moments: epochs that between them show everything that it does; the first is 0.
        epoch: the epoch whose verbs it applies; see :meth:`at`.
        needs: what it needs beside the similarities, in any epoch: any of ``labels``,
            ``indexes``, ``queue``.
        reserve: how much longer than K the queue must be, as a share of K.
        moving_bands: the verbs whose band has a schedule.
        retains: whether the queue keeps hard keys in some epoch; see :attr:`retention`.
    """

    def __init__(self, plans: Mapping[str, Plan]):
        self._plans = dict(plans)
        self.moments = _moments(plans.values())
        self.config = {name: plan.config for name, plan in self._plans.items()}
        self.defaults = {name: _plain(available()[name].defaults) for name in self._plans}
        self.moving_bands = {
            name for name, plan in plans.items() if schedule.inside(plan.arguments.get("band"))
        }
        self.needs: frozenset[str] = frozenset()
        self.reserve = 0.0
        self.retains = False
        # Made for each of these epochs once, so that an impossible value is found now.
        for name, plan in self._plans.items():
            made = [plan.at(epoch) for epoch in self.moments]
            idle = [getattr(verb, "idle", None) for verb in made]
            if all(idle):
                raise ConfigError(f"negatives.{name} {idle[0]}")
            for verb in made:
                self.needs |= _needs(name, verb)
                self.reserve = max(self.reserve, getattr(verb, "reserve", 0.0))
                self.retains |= isinstance(verb, Retain)
        self._enter(0.0)

    def __call__(self, pool: Pool) -> Pool:
        """Applies the verbs to a pool of negatives."""
        for verb in self.verbs.values():
            pool = verb(pool)
        return pool

    def at(self, epoch: float) -> Policy:
        """The policy in an epoch: its schedules' values, and the verbs that act then.

        Args:
            epoch: counted from 0; 2.5 is the middle of the third.
        """
        if not self.changes or epoch == self.epoch:
            return self
        then = copy.copy(self)
        then._enter(epoch)
        return then

    def check(self, count: int) -> None:
        """Tries the policy, in all its epochs, on one made-up query with ``count`` negatives.

        Raises:
            TooFewNegativesError: a band holds nothing, or all, of so many negatives, there are
                fewer than are to be mixed, or the verbs together leave none.
        """
        for epoch in self.moments:
            try_out(self.at(epoch), count)

    def fits(self, count: int) -> bool:
        """Whether ``count`` negatives are enough for the verbs of this epoch."""
        try:
            try_out(self, count)
        except TooFewNegativesError:
            return False
        return True

    @property
    def changes(self) -> bool:
        """Whether it is another one in some epochs than in others."""
        return len(self.moments) > 1

    @property
    def retention(self) -> Retain | None:
        """How the queue keeps hard keys in this epoch; ``None``: first in, first out."""
        verbs = [verb for verb in self.verbs.values() if isinstance(verb, Retain)]
        return verbs[0] if verbs else None

    def __repr__(self) -> str:
        return f"Policy({json.dumps(self.config)})"

    def _enter(self, epoch: float) -> None:
        self.epoch = epoch
        plans = self._plans.items()
        self.verbs = {name: plan.at(epoch) for name, plan in plans if epoch in plan.when}


def build(config: Mapping[str, Any] | None) -> Policy:
    """Builds a policy from an ordered mapping verb → arguments.

    A verb whose arguments are ``null`` is left out, so that ``negatives.fill=null`` takes one out
    of a preset. An empty mapping, or ``None``, is the policy that leaves all negatives as they are.

    Example:
        >>> build({"keep": {"band": [0.95, 1.0]}}).needs
        frozenset()

    Raises:
        ConfigError: the mapping is none, or a verb or an argument of it can't be used.
    """
    plain = _resolved(config)
    if not isinstance(plain, Mapping):
        raise ConfigError(
            f"negatives={plain!r}: must be a mapping of policies to their arguments, such as "
            f"{{keep: {{band: [0.95, 1.0]}}}}. Known policies: {', '.join(available())}. A preset "
            "is chosen where the config is composed: negatives=hardest_5 on the command line."
        )
    plans = {str(k): _plan(str(k), v) for k, v in plain.items() if v is not None}
    _check_order(list(plans))
    return Policy(plans)


def _resolved(config: Any) -> Any:
    """Plain containers, whether the config, or parts of it, are OmegaConf's or not."""
    if not OmegaConf.is_config(config):
        if not isinstance(config, Mapping):
            return {} if config is None else config
        config = OmegaConf.create(dict(config), flags={"allow_objects": True})
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"negatives: {error}. Set what it refers to, or the value.") from None


def _plan(name: str, value: Any) -> Plan:
    times: dict[str, Any] = {}
    if isinstance(value, Mapping):
        times = {key: value[key] for key in TIMES if key in value}
        value = {key: v for key, v in value.items() if key not in times}
    key = f"negatives.{name}"
    found = arguments_of(name, value)
    arguments = {part: schedule.find(v, f"{key}.{part}") for part, v in found.items()}
    when = schedule.parse_when(times.get("from_epoch"), times.get("until_epoch"), key)
    return Plan(name, arguments, when)


def _moments(plans: Iterable[Plan]) -> list[float]:
    """Epochs that between them show everything that the plans do; the first is 0."""
    knots = sorted({0.0, *(epoch for plan in plans for epoch in plan.epochs())})
    between = [a + (b - a) * i / 8 for a, b in pairwise(knots) for i in range(1, 8)]
    return sorted({*knots, *between})


def _check_order(names: list[str]) -> None:
    if "fill" not in names:
        return
    above = names[: names.index("fill")]
    if not {"keep", "drop"} & set(above):
        raise ConfigError(
            "negatives.fill stands above every keep and drop, and there is nothing to fill yet. "
            f"The verbs apply from top to bottom; here: {', '.join(names)}. Put fill below."
        )


def _needs(name: str, verb: Transform) -> frozenset[str]:
    return frozenset(getattr(verb, "needs", available()[name].needs))


def _plain(value: Any) -> Any:
    """Numbers as floats, schedules as mappings."""
    if isinstance(value, schedule.Schedule):
        return value.config
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
