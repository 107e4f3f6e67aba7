"""Numbers that change during training, and policies that start late or end early.

    band: [{from: 0.0, to: 0.95, epochs: [0, 100], curve: linear}, 1.0]

is a curriculum: the band's lower end moves from 0 to 0.95 over the first hundred epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.negatives.numbers import is_number, real

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}
_KEYS = ("from", "to", "epochs", "curve")


@dataclass(frozen=True)
class Schedule:
    """A number that goes from ``start`` to ``end`` between two epochs, and stays there.

    Attributes:
        start, end: the values before and after.
        epochs: the two epochs, which may be fractions.
        curve: a name in :data:`CURVES`: the way from 0 to 1.
    """

    start: float
    end: float
    epochs: tuple[float, float]
    curve: str = "linear"

    def at(self, epoch: float) -> float:
        """The value at an epoch; 2.5 is the middle of the third."""
        first, last = self.epochs
        share = min(max((epoch - first) / (last - first), 0.0), 1.0)
        if share == 1.0:
            return self.end  # exactly, which the sum below may miss
        return self.start + (self.end - self.start) * CURVES[self.curve](share)

    @property
    def config(self) -> dict[str, Any]:
        """As it stands in the config, with the defaults filled in."""
        values = (self.start, self.end, list(self.epochs), self.curve)
        return dict(zip(_KEYS, values, strict=True))


def parse(value: Mapping[Any, Any], key: str) -> Schedule:
    """Reads ``{from: 0.5, to: 0.95, epochs: [0, 100], curve: linear}``.

    Raises:
        ConfigError: something is missing, unknown or impossible; ``key`` names it in the message.
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
    right = isinstance(epochs, list | tuple) and len(epochs) == 2 and all(map(is_number, epochs))
    if not right or not 0 <= epochs[0] < epochs[1]:
        raise bad_value(f"{key}.epochs", epochs, "must be two epochs [a, b] with 0 <= a < b", do)
    curve = value.get("curve", "linear")
    if curve not in list(CURVES):  # a list or a mapping is no key of a dict
        raise bad_value(f"{key}.curve", curve, f"must be {' or '.join(CURVES)}")
    return Schedule(start, end, (float(epochs[0]), float(epochs[1])), curve)


def is_schedule(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping is meant as a schedule, be it complete or not."""
    return bool(set(value) & {"from", "to", "epochs"})


def find(value: Any, key: str) -> Any:
    """Puts a :class:`Schedule` in the place of each mapping that describes one, at any depth."""
    if isinstance(value, Mapping):
        if is_schedule(value):
            return parse(value, key)
        return {name: find(v, f"{key}.{name}") for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [find(v, f"{key}[{i}]") for i, v in enumerate(value)]
    return value


def resolve(value: Any, epoch: float) -> Any:
    """Puts the number at ``epoch`` in the place of each schedule."""
    if isinstance(value, Schedule):
        return value.at(epoch)
    if isinstance(value, Mapping):
        return {name: resolve(v, epoch) for name, v in value.items()}
    if isinstance(value, list):
        return [resolve(v, epoch) for v in value]
    return value


def inside(value: Any) -> list[Schedule]:
    """All schedules in it, at any depth."""
    if isinstance(value, Schedule):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    return [s for part in parts for s in inside(part)] if isinstance(value, Mapping | list) else []


@dataclass(frozen=True)
class When:
    """From which epoch on, and until which (but without it), a policy acts; ``None``: no end."""

    start: float | None = None
    end: float | None = None

    def __contains__(self, epoch: float) -> bool:
        return (self.start is None or epoch >= self.start) and (
            self.end is None or epoch < self.end
        )

    @property
    def config(self) -> dict[str, float]:
        """As it stands in the config; ends that are not set are left out."""
        both = {"from_epoch": self.start, "until_epoch": self.end}
        return {name: value for name, value in both.items() if value is not None}


def parse_when(start: Any, end: Any, key: str) -> When:
    """Reads ``from_epoch`` and ``until_epoch``.

    Raises:
        ConfigError: they are no epochs, or leave none.
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
    return When(first or None, last)  # from epoch 0 on is always
