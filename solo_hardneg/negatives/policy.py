"""Builds a policy from the config: an ordered mapping of verbs becomes one callable."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives.pool import Pool, full_pool
from solo_hardneg.negatives.ranks import GUARD, EmptyBandError, TooFewNegativesError
from solo_hardneg.negatives.registry import (
    EPOCH_ARGUMENTS,
    Transform,
    available,
    bind_arguments,
    make_verb,
)
from solo_hardneg.negatives.retain import Retain
from solo_hardneg.negatives.schedule import (
    EpochRange,
    Schedule,
    parse_epoch_range,
    parse_schedules,
    schedules_in,
    values_at,
)
from solo_hardneg.negatives.select import trial_similarities
from solo_hardneg.negatives.thresholds import ThresholdRule


@dataclass(frozen=True)
class ConfiguredVerb:
    """One verb of the config.

    Attributes:
        name: The verb.
        arguments: Its arguments with defaults filled in; numbers may be schedules.
        active: The epochs in which it acts.
    """

    name: str
    arguments: Mapping[str, Any]
    active: EpochRange

    def at(self, epoch: float) -> Transform:
        """Makes the verb with the values of its schedules at an epoch."""
        values = values_at(self.arguments, epoch, available()[self.name].integers)
        return make_verb(self.name, values)

    def boundaries(self) -> Iterator[float]:
        """Yields the ends of its active epochs and of its schedules."""
        yield from self.active.config.values()
        for schedule in schedules_in(self.arguments):
            yield from schedule.epochs

    @property
    def config(self) -> dict[str, Any]:
        """The arguments as plain values; equal arguments give equal values."""
        return {**_normal_form(self.arguments), **self.active.config}


class Policy:
    """Verbs applied to the negatives, from top to bottom.

    Attributes:
        config: The mapping it was built from, with defaults filled in and numbers as floats; equal
            policies have equal configs, in the same order.
        defaults: Default arguments of each of its verbs.
        moments: Epochs to check: 0, the ends of schedules, and epochs between them.
        epoch: Epoch whose verbs it applies; see :meth:`at`.
        needs: What it needs besides similarities in any epoch: ``labels``, ``indexes``, ``queue``.
        reserve: How much longer than K the queue must be, as a share of K.
        moving_bands: Verbs whose band has a schedule.
        retains: Whether the queue keeps hard keys in some epoch; see :attr:`retention`.
        learns: Whether it has learned thresholds in some epoch; see :attr:`threshold_rule`.
    """

    def __init__(self, verbs: Mapping[str, ConfiguredVerb]):
        self._configured = dict(verbs)
        self.moments = _moments(verbs.values())
        self.config = {name: verb.config for name, verb in verbs.items()}
        self.defaults = {name: _normal_form(available()[name].defaults) for name in verbs}
        self.moving_bands = {
            name for name, verb in verbs.items() if schedules_in(verb.arguments.get("band"))
        }
        self.needs: frozenset[str] = frozenset()
        self.reserve = 0.0
        self.retains = False
        learning: set[str] = set()
        # Make the verbs of all these epochs once, so that an impossible value is found now.
        for name, configured in verbs.items():
            made = [configured.at(epoch) for epoch in self.moments]
            idle = [getattr(verb, "idle", None) for verb in made]
            if all(idle):
                raise ConfigError(f"negatives.{name} {idle[0]}")
            for verb in made:
                self.needs |= frozenset(getattr(verb, "needs", available()[name].needs))
                self.reserve = max(self.reserve, getattr(verb, "reserve", 0.0))
                self.retains |= isinstance(verb, Retain)
                if getattr(verb, "threshold_rule", None) is not None:
                    learning.add(name)
        if len(learning) > 1:
            raise ConfigError(
                f"negatives: {' and '.join(sorted(learning))} both have above=learned, and an "
                "image has one threshold. Take one of them out."
            )
        self.learns = bool(learning)
        self._enter(0.0)

    def __call__(self, pool: Pool) -> Pool:
        """Applies the verbs to a pool of negatives."""
        for verb in self.verbs.values():
            pool = verb(pool)
        return pool

    def at(self, epoch: float) -> Policy:
        """Returns the policy in an epoch: the verbs that act, with their schedules' values.

        Args:
            epoch: Counted from 0; 2.5 is the middle of the third.
        """
        if not self.changes or epoch == self.epoch:
            return self
        then = copy.copy(self)
        then._enter(epoch)
        return then

    def check(self, count: int) -> None:
        """Dry-runs the policy in all its epochs with ``count`` negatives per query.

        Raises:
            TooFewNegativesError: See :meth:`dry_run`.
        """
        for epoch in self.moments:
            self.at(epoch).dry_run(count)

    def fits(self, count: int) -> bool:
        """Whether ``count`` negatives are enough for the verbs of this epoch."""
        try:
            self.dry_run(count)
        except TooFewNegativesError:
            return False
        return True

    def dry_run(self, count: int) -> None:
        """Applies the verbs of this epoch to one synthetic query with ``count`` negatives.

        It isn't known how many of them share the query's class and image, nor how similar they
        are, so it is enough if the policy leaves something when all of them do, or none does, and
        for some similarities.

        Raises:
            TooFewNegativesError: A band is empty or drops everything, there are fewer negatives
                than ``mix`` needs, or the verbs together leave none.
        """
        first: TooFewNegativesError | None = None
        marks = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.long)
        kinds: list[Any] = [
            marks if need in self.needs else [None] for need in ("labels", "indexes")
        ]
        trials = trial_similarities(self.verbs.values())
        for similarities, labels, indexes in product(trials, *kinds):
            try:
                with torch.random.fork_rng(devices=[]):  # leave the run's random state alone
                    left = self._checked_call(_trial_pool(count, similarities, labels, indexes))
            except TooFewNegativesError as error:
                first = first or error
                continue
            # A third party's verb may draw what it leaves, and leave something the next time.
            built_in = all(
                type(verb).__module__.startswith("solo_hardneg.") for verb in self.verbs.values()
            )
            if count == 0 or not built_in or bool(left.present.any()):
                return
        raise first or TooFewNegativesError(
            f"negatives={self.config}: leaves none of M={count} negatives. Its verbs apply from "
            "top to bottom; take one of them out."
        )

    def _checked_call(self, pool: Pool) -> Pool:
        for name, verb in self.verbs.items():
            if name in self.moving_bands:
                band = getattr(verb, "band", None)
                _check_moving_band(name, band, self.epoch, int(pool.counts.max()))
            pool = verb(pool)
            short = pool.notes.get("mix_short")
            if short is not None and bool(short.any()):
                raise TooFewNegativesError(
                    f"negatives={self.config}: the verbs above mix leave fewer negatives than "
                    "negatives.mix.hardest. Lower it, or have more negatives (a longer queue, a "
                    "larger batch)."
                )
        return pool

    @property
    def changes(self) -> bool:
        """Whether it differs between epochs."""
        return len(self.moments) > 1

    @property
    def retention(self) -> Retain | None:
        """The verb that keeps hard keys in the queue in this epoch; ``None`` for a plain queue."""
        return next((verb for verb in self.verbs.values() if isinstance(verb, Retain)), None)

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        """How the learned thresholds move in this epoch; ``None`` if none are used."""
        rules = (getattr(verb, "threshold_rule", None) for verb in self.verbs.values())
        return next((rule for rule in rules if rule is not None), None)

    def __repr__(self) -> str:
        return f"Policy({json.dumps(self.config)})"

    def _enter(self, epoch: float) -> None:
        self.epoch = epoch
        configured = self._configured.items()
        self.verbs = {name: verb.at(epoch) for name, verb in configured if epoch in verb.active}


def build(config: Mapping[str, Any] | None) -> Policy:
    """Builds a policy from an ordered mapping verb → arguments.

    A verb whose arguments are ``null`` is left out, so ``negatives.fill=null`` takes one out of a
    preset. An empty mapping, or ``None``, is the policy that uses all negatives.

    Example:
        >>> build({"keep": {"band": [0.95, 1.0]}}).needs
        frozenset()

    Raises:
        ConfigError: It is no mapping, or a verb or an argument can't be used.
    """
    plain = _resolved(config)
    if not isinstance(plain, Mapping):
        raise ConfigError(
            f"negatives={plain!r}: must be a mapping of verbs to their arguments, such as "
            f"{{keep: {{band: [0.95, 1.0]}}}}. Known verbs: {', '.join(available())}. A preset "
            "is chosen where the config is composed: negatives=hardest_5 on the command line."
        )
    verbs = {str(k): _configured_verb(str(k), v) for k, v in plain.items() if v is not None}
    _check_order(list(verbs))
    return Policy(verbs)


def _resolved(config: Any) -> Any:
    """Plain containers, also if parts of the config are OmegaConf's."""
    if not OmegaConf.is_config(config):
        if not isinstance(config, Mapping):
            return {} if config is None else config
        config = OmegaConf.create(dict(config), flags={"allow_objects": True})
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"negatives: {error}. Set what it refers to, or the value.") from None


def _configured_verb(name: str, value: Any) -> ConfiguredVerb:
    start = end = None
    if isinstance(value, Mapping):
        start, end = (value.get(key) for key in EPOCH_ARGUMENTS)
        value = {key: v for key, v in value.items() if key not in EPOCH_ARGUMENTS}
    key = f"negatives.{name}"
    arguments = {
        argument: parse_schedules(v, f"{key}.{argument}")
        for argument, v in bind_arguments(name, value).items()
    }
    return ConfiguredVerb(name, arguments, parse_epoch_range(start, end, key))


def _moments(verbs: Iterable[ConfiguredVerb]) -> list[float]:
    """Epoch 0, the ends of all schedules, and seven epochs between each two of them."""
    knots = sorted({0.0, *(epoch for verb in verbs for epoch in verb.boundaries())})
    between = [a + (b - a) * i / 8 for a, b in pairwise(knots) for i in range(1, 8)]
    return sorted({*knots, *between})


def _check_order(names: list[str]) -> None:
    if "fill" not in names:
        return
    above = names[: names.index("fill")]
    if not {"keep", "drop"} & set(above):
        raise ConfigError(
            "negatives.fill stands above every keep and drop, so there is nothing to fill. "
            f"Verbs apply from top to bottom, here: {', '.join(names)}. Put fill below."
        )


def _normal_form(value: Any) -> Any:
    """Numbers as floats, schedules as mappings."""
    if isinstance(value, Schedule):
        return value.config
    if isinstance(value, Mapping):
        return {k: _normal_form(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_normal_form(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _check_moving_band(name: str, band: Any, epoch: float, count: int) -> None:
    """Refuses a band that is empty somewhere between the epochs that are checked.

    A band at least one rank wide is never empty, nor is one that ends at 1.
    """
    if band is not None and band[1] < 1 and 0 < (band[1] - band[0]) * count < 1 - GUARD:
        raise EmptyBandError(
            f"negatives.{name}.band={list(band)} at epoch {epoch:g}: moves, and is so narrow that "
            f"it holds none of M={count} negatives on its way. Keep it at least "
            f"1/M = {1 / count:.2g} wide, or have more negatives (a longer queue, a larger batch)."
        )


def _trial_pool(
    count: int,
    similarities: tuple[float, float, float],
    labels: Tensor | None,
    indexes: Tensor | None,
) -> Pool:
    """One query, of class 1 and image 1, and ``count`` negatives from easy to hard.

    Args:
        count: Number of negatives.
        similarities: Lowest and highest, both excluded, and that of the positive.
        labels, indexes: (count,) classes and images of the negatives.
    """
    lowest, highest, positive = similarities
    one = torch.ones(1, dtype=torch.long)
    cosines = torch.linspace(lowest, highest, count + 2)[1:-1]
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
        positive=torch.tensor([positive]),
        threshold=torch.ones(1),  # nothing is above it
    )
