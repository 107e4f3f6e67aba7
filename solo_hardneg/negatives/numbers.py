"""What the arguments of policies may hold, checked in one way."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from solo_hardneg.errors import bad_value


def is_number(value: Any) -> bool:
    """Whether it is a finite number, NumPy's included; true and false are none."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and abs(value) < math.inf


def real(key: str, value: Any, allowed: str, do: str = "", **ends: float) -> float:
    """Reads a number that lies between two ends.

    Args:
        key: the setting's name in the message.
        value: what it holds.
        allowed, do: the message's words, see :func:`solo_hardneg.errors.bad_value`.
        ends: ``least`` and ``most`` are allowed themselves, ``above`` and ``below`` are not.

    Raises:
        ConfigError: it is no number, or lies outside.
    """
    if not is_number(value) or not (
        ends.get("least", -math.inf) <= value <= ends.get("most", math.inf)
        and ends.get("above", -math.inf) < value < ends.get("below", math.inf)
    ):
        raise bad_value(key, value, allowed, do)
    return float(value)


def whole(key: str, value: Any, least: int, do: str = "", most: float = math.inf) -> int:
    """Reads a whole number of at least ``least`` and at most ``most``; 32.0 counts as one.

    Raises:
        ConfigError: it is none.
    """
    if not is_number(value) or value != int(value) or not least <= value <= most:
        limit = f" and at most {most}" if most < math.inf else ""
        raise bad_value(key, value, f"must be a whole number of at least {least}{limit}", do)
    return int(value)
