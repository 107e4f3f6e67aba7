"""Validation of numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from solo_hardneg.errors import ConfigError
from solo_hardneg.validate import is_number, real, whole


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -math.inf, "1", None, [1], 1j])
def test_other_values_are_refused(value: Any) -> None:
    assert not is_number(value)
    with pytest.raises(ConfigError, match="^k=.*: must be one. Do it.$"):
        real("k", value, "must be one", "Do it.")
    with pytest.raises(ConfigError, match="^k=.*: must be a whole number of at least -9. Do it.$"):
        whole("k", value, -9, "Do it.")


@pytest.mark.parametrize(
    ("ends", "inside", "outside"),
    [
        ({}, [-1e300, 0, 0.5], []),
        ({"least": 0}, [0, 1e9], [-1e-9]),
        ({"most": 1}, [1, -1e9], [1.0000001]),
        ({"above": 0}, [1e-9], [0, -1]),
        ({"below": 1}, [0.9999999], [1, 2]),
        ({"least": 0, "below": 1}, [0, 0.5], [-0.1, 1]),
    ],
)
def test_bounds(ends: dict[str, float], inside: list[float], outside: list[float]) -> None:
    for value in inside:
        found = real("k", value, "must lie inside", **ends)
        assert (found, type(found)) == (value, float)
    for value in outside:
        with pytest.raises(ConfigError, match=f"^k={value}: must lie inside.$"):
            real("k", value, "must lie inside", **ends)


def test_whole_numbers() -> None:
    assert [whole("k", v, 2, most=32) for v in (2, 3, 32.0)] == [2, 3, 32]
    assert type(whole("k", 32.0, 2)) is int
    for value in (1, 2.5, -2):
        with pytest.raises(ConfigError, match=f"^k={value}: .* whole number of at least 2.$"):
            whole("k", value, 2)
    with pytest.raises(ConfigError, match="^k=33: .* whole number of at least 2 and at most 32.$"):
        whole("k", 33, 2, most=32)
