"""Reading a config by tables: defaults are filled in, and a wrong value is refused by its key.

The host leaves the config open (any key may be added), so nobody else notices a missing key or
a word where a number belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_hardneg.errors import ConfigError, bad_value, unknown_name

REQUIRED = object()  # stands for the default of a key that must be given


# Far above what anybody means, and below what overflows once it is scaled, in int64 or float32.
_FAR, _FAR_WHOLE = 1e9, 2**31 - 1


@dataclass(frozen=True)
class Number:
    """What a key may hold: a number within bounds (NaN is out of any bounds)."""

    least: float = float("-inf")
    above: float = float("-inf")
    most: float = float("inf")
    whole: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raises ConfigError unless ``value`` is such a number."""
        kind = int if self.whole else (int, float)
        right_kind = isinstance(value, kind) and not isinstance(value, bool)
        if right_kind and self.least <= value <= self.most and value > self.above:
            return
        bounds = {"at least": self.least, "above": self.above, "at most": self.most}
        if self.most in (_FAR, _FAR_WHOLE) and not (right_kind and value > self.most):
            del bounds["at most"]  # nobody comes near it, and it would only be in the way
        ends = {w: b if isinstance(b, int) else f"{b:g}" for w, b in bounds.items() if isfinite(b)}
        words = [f"{word} {bound}" for word, bound in ends.items()]
        allowed = ", ".join(["a whole number" if self.whole else "a number", *words])
        raise bad_value(key, value, f"must be {allowed}")


COUNT = Number(least=1, most=_FAR_WHOLE, whole=True)
WHOLE = Number(least=0, most=_FAR_WHOLE, whole=True)
POSITIVE = Number(above=0, most=_FAR)
NOT_NEGATIVE = Number(least=0, most=_FAR)
SHARE = Number(least=0, most=1)

# key -> (default, what it may hold): a Number, a tuple of names, bool, dict, str (or the default),
# or None for anything
Rules = Mapping[str, tuple[Any, Any]]


def settle(cfg: DictConfig, rules: Rules) -> None:
    """Fills in the defaults of a table, and checks every key in it.

    Raises:
        ConfigError: a key is required and not given, or holds what it may not hold.
    """
    for key, (default, rule) in rules.items():
        parent = key.rpartition(".")[0]
        if parent and not OmegaConf.is_dict(read(cfg, parent, OmegaConf.create())):
            do = f"Write {parent}.name={read(cfg, parent)}, for instance."
            raise bad_value(parent, read(cfg, parent), "must hold several keys, not a value", do)
        value = read(cfg, key, default)
        if value is REQUIRED:
            text = f"{key}: is not set, and has no default. Add {key}=... to the command"
            raise ConfigError(f"{text} or the config.")
        _check(key, value, rule)
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)


def _check(key: str, value: Any, rule: Any) -> None:
    if isinstance(rule, Number):
        rule.check(key, value)
    elif isinstance(rule, tuple) and value not in rule:
        raise unknown_name(key, str(value), rule, key.removesuffix(".name").split(".")[-1])
    elif rule is bool and not isinstance(value, bool):
        raise bad_value(key, value, "must be true or false")
    elif rule is dict and not (isinstance(value, dict) or OmegaConf.is_dict(value)):
        raise bad_value(key, value, "must hold several keys, not a value")
    elif rule is str and value is not None and not _is_text(value):
        raise bad_value(key, value, "must be a word, or a path", "Put numbers in quotes.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def read(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """The value of a dotted key; ``default`` where it is absent, null, ``???`` or "None"."""
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: can't be resolved. {error}") from error
    return default if value is None or value == "None" else value


def number_of_devices(cfg: DictConfig) -> int:
    """How many devices ``cfg.devices`` asks for.

    The host scales the learning rate by ``len(devices)``. Where that isn't the number of devices
    that Lightning takes, the run would silently learn at another rate: that is refused.
    """
    devices = read(cfg, "devices", 1)
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return devices
    if OmegaConf.is_list(devices) and len(devices):
        return len(devices)
    if devices in ("0", "1"):
        return 1
    allowed = "must be a list such as [0,1], a whole number above 0, or '1'"
    do = "The learning rate is scaled by how many there are."
    raise bad_value("devices", devices, allowed, do)
