"""Schedules, and the epochs in which a verb acts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import build
from solo_hardneg.negatives.schedule import (
    CURVES,
    EpochRange,
    Schedule,
    parse_epoch_range,
    parse_schedule,
    parse_schedules,
    schedules_in,
    values_at,
)

LINE = {"from": 0.5, "to": 0.9, "epochs": [10, 30]}
CURVE = LINE | {"curve": "cosine"}


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("epoch", "linear", "cosine"),
    [
        (0, 0.5, 0.5),
        (10, 0.5, 0.5),
        (15, 0.6, 0.5 + 0.4 * (1 - math.sqrt(0.5)) / 2),
        (16.5, 0.63, 0.5 + 0.4 * (1 - math.cos(0.325 * math.pi)) / 2),
        (20, 0.7, 0.7),
        (25, 0.8, 0.5 + 0.4 * (1 + math.sqrt(0.5)) / 2),
        (30, 0.9, 0.9),
        (1e6, 0.9, 0.9),
    ],
)
def test_schedule_values(epoch: float, linear: float, cosine: float) -> None:
    assert parse_schedule(LINE, "k").at(epoch) == pytest.approx(linear, abs=1e-12)
    assert parse_schedule(CURVE, "k").at(epoch) == pytest.approx(cosine, abs=1e-12)


numbers = st.floats(-1e3, 1e3)


@given(numbers, numbers, st.floats(0, 50), st.floats(0.5, 50), st.floats(0, 120))
def test_ends_are_exact_and_values_lie_between(
    start: float, end: float, first: float, length: float, epoch: float
) -> None:
    for curve in CURVES:
        found = Schedule(start, end, (first, first + length), curve)
        assert found.at(first) == found.at(first - 1) == start
        assert found.at(first + length) == found.at(first + length + 1) == end
        low, high = sorted((start, end))
        assert low - 1e-9 <= found.at(epoch) <= high + 1e-9


def test_config_of_a_schedule_has_defaults_filled_in() -> None:
    expected = {"from": 0.5, "to": 0.9, "epochs": [10.0, 30.0], "curve": "linear"}
    found = parse_schedule(LINE, "k")
    assert found == Schedule(0.5, 0.9, (10.0, 30.0))
    assert found.config == expected
    assert list(found.config) == ["from", "to", "epochs", "curve"]
    assert parse_schedule(CURVE, "k").config == expected | {"curve": "cosine"}
    assert parse_schedule(found.config, "k") == found
    assert all(isinstance(e, float) for e in found.config["epochs"])


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": None}, r"^k=\{'from': 0.5, 'to': 0.9\}: this schedule lacks 'epochs'. A sched"),
        ({"epoch": [1, 2]}, "^k: unknown key of a schedule 'epoch'. Did you mean 'epochs'"),
        ({"from": "low"}, r"^k.from=low: must be a number. A schedule is \{from: 0.5, to: 0.95"),
        ({"to": [1, 2]}, r"^k.to=\[1, 2\]: must be a number"),
        ({"epochs": [30, 10]}, r"^k.epochs=\[30, 10\]: must be two epochs .* with 0 <= a < b"),
        ({"epochs": [10, 10]}, "must be two epochs"),
        ({"epochs": [-1, 10]}, "must be two epochs"),
        ({"epochs": [0, 1, 2]}, "must be two epochs"),
        ({"epochs": [0, "ten"]}, "must be two epochs"),
        ({"epochs": 10}, "^k.epochs=10: must be two epochs"),
        ({"curve": "step"}, "^k.curve=step: must be linear or cosine.$"),
        ({"curve": ["linear"]}, r"^k.curve=\['linear'\]: must be linear or cosine"),
    ],
)
def test_invalid_schedules_are_refused(change: dict[str, Any], message: str) -> None:
    value = {key: v for key, v in (LINE | change).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        parse_schedule(value, "k")


def test_error_names_the_key_of_the_schedule() -> None:
    wrong = LINE | {"epochs": [3, 1]}
    for config, key in (
        ({"keep": {"band": [0.0, wrong]}}, r"negatives.keep.band\[1\].epochs="),
        ({"reweight": {"beta": wrong}}, "negatives.reweight.beta.epochs="),
        ({"reweight": wrong}, "negatives.reweight.beta.epochs="),
    ):
        with pytest.raises(ConfigError, match=key):
            build(config)


# ---------------------------------------------------------------- nested schedules


def test_nested_schedules() -> None:
    line = parse_schedule(LINE, "")
    value = {"a": [LINE, 1.0], "b": {"c": LINE, "d": "text"}, "e": None, "f": (2, [LINE])}
    found = parse_schedules(value, "k")
    assert found == {
        "a": [line, 1.0],
        "b": {"c": line, "d": "text"},
        "e": None,
        "f": [2, [line]],
    }
    assert schedules_in(found) == [line] * 3
    assert schedules_in(line) == [line]
    assert schedules_in({"a": 3, "b": "text", "c": []}) == []
    assert values_at(found, 20) == {
        "a": [line.at(20), 1.0],
        "b": {"c": line.at(20), "d": "text"},
        "e": None,
        "f": [2, [line.at(20)]],
    }
    with pytest.raises(ConfigError, match=r"k.b.c\[1\]: unknown key of a schedule"):
        parse_schedules({"b": {"c": [0, LINE | {"x": 1}]}}, "k")


# ---------------------------------------------------------------- epoch ranges


@pytest.mark.parametrize(
    ("active", "inside", "outside"),
    [
        (EpochRange(), [0, 0.5, 1e9], []),
        (EpochRange(start=2.0), [2, 2.5, 100], [0, 1.999]),
        (EpochRange(end=2.0), [0, 1.999], [2, 2.5, 100]),
        (EpochRange(1.0, 3.0), [1, 2.999], [0, 0.999, 3, 4]),
    ],
)
def test_epoch_range_contains_its_epochs(
    active: EpochRange, inside: list[float], outside: list[float]
) -> None:
    assert all(epoch in active for epoch in inside)
    assert not any(epoch in active for epoch in outside)


def test_config_of_an_epoch_range() -> None:
    found = parse_epoch_range(0, 2, "k")
    assert found == EpochRange(None, 2.0)  # 0 and not set are equal
    assert found.config == {"until_epoch": 2.0}
    assert parse_epoch_range(None, None, "k") == EpochRange()
    assert parse_epoch_range(None, 0.5, "k") == EpochRange(None, 0.5)
    assert parse_epoch_range(3, None, "k") == EpochRange(3.0)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-1, None, "^k.from_epoch=-1: must be an epoch, a number from 0 up.$"),
        (LINE, None, "^k.from_epoch=.*: must be an epoch"),
        (None, math.inf, "^k.until_epoch=inf: must be an epoch, a number from 0 up"),
        (None, 0, "^k.until_epoch=0: leaves no epoch after from_epoch=0; it must be greater.$"),
        (3, 3, "^k.until_epoch=3: leaves no epoch after from_epoch=3"),
    ],
)
def test_invalid_epochs_are_refused(start: Any, end: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_epoch_range(start, end, "k")
