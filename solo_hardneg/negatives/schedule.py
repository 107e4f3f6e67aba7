"""Schedules: numbers that change during training, and verbs that start late or end early.

    band: [{from: 0.0, to: 0.95, epochs: [0, 100], curve: linear}, 1.0]

is a curriculum: the lower end of the band rises from 0 to 0.95 over the first hundred epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.validate import is_number, real

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}
_KEYS = ("from", "to", "epochs", "curve")


@dataclass(frozen=True)
class Schedule:
    """A number that moves from ``start`` to ``end`` between two epochs, and is constant outside.

    Attributes:
        start, end: Values before and after.
        epochs: First and last epoch of the move; may be fractions.
        curve: A name in :data:`CURVES`, how it moves.
    """

    start: float
    end: float
    epochs: tuple[float, float]
    curve: str = "linear"

    def at(self, epoch: float) -> float:
        """Returns the value at an epoch; 2.5 is the middle of the third."""
        first, last = self.epochs
        share = min(max((epoch - first) / (last - first), 0.0), 1.0)
        if share == 1.0:
            return self.end  # the sum below may round
        return self.start + (self.end - self.start) * CURVES[self.curve](share)

    @property
    def config(self) -> dict[str, Any]:
        """The mapping of the config, with defaults filled in."""
        values = (self.start, self.end, list(self.epochs), self.curve)
        return dict(zip(_KEYS, values, strict=True))


def is_schedule(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping is meant as a schedule, complete or not."""
    return bool(set(value) & {"from", "to", "epochs"})


def parse_schedule(value: Mapping[Any, Any], key: str) -> Schedule:
    """Reads ``{from: 0.5, to: 0.95, epochs: [0, 100], curve: linear}``.

    Args:
        value: The mapping of the config.
        key: Its key, for messages.

    Raises:
        ConfigError: A key is missing or unknown, or a value is not allowed.
    """
    for name in value:
        if name not in _KEYS:
            raise unknown_name(key, str(name), _KEYS, "key of a schedule")
    do = f"A schedule is {{from: 0.5, to: 0.95, epochs: [0, 100], curve: {'|'.join(CURVES)}}}."
    for name in ("from", "to", "epochs"):
        if name not in value:
            raise ConfigError(f"{key}={dict(value)}: this schedule lacks '{name}'. {do}")
    start, end = (
        real(f"{key}.{end}", value[end], "must be a number", do) for end in ("from", "to")
    )
    epochs = value["epochs"]
    two = isinstance(epochs, list | tuple) and len(epochs) == 2 and all(map(is_number, epochs))
    if not two or not 0 <= epochs[0] < epochs[1]:
        raise bad_value(f"{key}.epochs", epochs, "must be two epochs [a, b] with 0 <= a < b", do)
    curve = value.get("curve", "linear")
    if curve not in list(CURVES):  # a list: the value may not be hashable
        raise bad_value(f"{key}.curve", curve, f"must be {' or '.join(CURVES)}")
    return Schedule(start, end, (float(epochs[0]), float(epochs[1])), curve)


def parse_schedules(value: Any, key: str) -> Any:
    """Replaces each mapping that is a schedule by a :class:`Schedule`, at any depth.

    Args:
        value: An argument of a verb.
        key: Its key, for messages.

    Raises:
        ConfigError: See :func:`parse_schedule`.
    """
    if isinstance(value, Mapping):
        if is_schedule(value):
            return parse_schedule(value, key)
        return {name: parse_schedules(v, f"{key}.{name}") for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [parse_schedules(v, f"{key}[{i}]") for i, v in enumerate(value)]
    return value


def values_at(value: Any, epoch: float, integers: Collection[str] = ()) -> Any:
    """Replaces each :class:`Schedule` by its number at an epoch, at any depth.

    Args:
        value: A number, a schedule, or containers of them.
        epoch: The epoch.
        integers: Keys of mappings whose schedules are rounded.
    """
    if isinstance(value, Schedule):
        return value.at(epoch)
    if isinstance(value, Mapping):
        return {
            name: round(v.at(epoch))
            if isinstance(v, Schedule) and name in integers
            else values_at(v, epoch, integers)
            for name, v in value.items()
        }
    if isinstance(value, list):
        return [values_at(v, epoch, integers) for v in value]
    return value


def schedules_in(value: Any) -> list[Schedule]:
    """Lists the schedules in an argument, at any depth."""
    if isinstance(value, Schedule):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    return [schedule for part in value for schedule in schedules_in(part)]


@dataclass(frozen=True)
class EpochRange:
    """The epochs in which a verb acts: from ``start`` on, up to but not including ``end``.

    ``None`` leaves an end open.
    """

    start: float | None = None
    end: float | None = None

    def __contains__(self, epoch: float) -> bool:
        return (self.start is None or epoch >= self.start) and (
            self.end is None or epoch < self.end
        )

    @property
    def config(self) -> dict[str, float]:
        """The keys of the config, without those that are not set."""
        both = {"from_epoch": self.start, "until_epoch": self.end}
        return {name: value for name, value in both.items() if value is not None}


def parse_epoch_range(start: Any, end: Any, key: str) -> EpochRange:
    """Reads ``from_epoch`` and ``until_epoch``.

    Args:
        start, end: Their values; ``None`` if not set.
        key: Key of the verb, for messages.

    Raises:
        ConfigError: A value is no epoch, or the range is empty.
    """
    allowed = "must be an epoch, a number from 0 up"
    ends = {"from_epoch": start, "until_epoch": end}
    first, last = (
        None if value is None else real(f"{key}.{name}", value, allowed, least=0)
        for name, value in ends.items()
    )
    if last is not None and last <= (first or 0.0):
        raise bad_value(
            f"{key}.until_epoch",
            end,
            f"leaves no epoch after from_epoch={first or 0}; it must be greater",
        )
    return EpochRange(first or None, last)  # 0 and not set are equal
