"""Schedules and the epochs in which a verb acts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import build, schedule
from solo_hardneg.negatives.schedule import Schedule, When

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
def test_values(epoch: float, linear: float, cosine: float) -> None:
    assert schedule.parse(LINE, "k").at(epoch) == pytest.approx(linear, abs=1e-12)
    assert schedule.parse(CURVE, "k").at(epoch) == pytest.approx(cosine, abs=1e-12)


numbers = st.floats(-1e3, 1e3)


@given(numbers, numbers, st.floats(0, 50), st.floats(0.5, 50), st.floats(0, 120))
def test_the_ends_are_exact_and_the_way_lies_between(
    start: float, end: float, first: float, length: float, epoch: float
) -> None:
    for curve in schedule.CURVES:
        found = Schedule(start, end, (first, first + length), curve)
        assert found.at(first) == found.at(first - 1) == start
        assert found.at(first + length) == found.at(first + length + 1) == end
        low, high = sorted((start, end))
        assert low - 1e-9 <= found.at(epoch) <= high + 1e-9


def test_its_config_has_the_defaults_filled_in() -> None:
    expected = {"from": 0.5, "to": 0.9, "epochs": [10.0, 30.0], "curve": "linear"}
    found = schedule.parse(LINE, "k")
    assert found == Schedule(0.5, 0.9, (10.0, 30.0))
    assert found.config == expected
    assert list(found.config) == ["from", "to", "epochs", "curve"]
    assert schedule.parse(CURVE, "k").config == expected | {"curve": "cosine"}
    assert schedule.parse(found.config, "k") == found
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
def test_impossible_schedules(change: dict[str, Any], message: str) -> None:
    value = {key: v for key, v in (LINE | change).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        schedule.parse(value, "k")


def test_the_message_says_where_it_stands() -> None:
    wrong = LINE | {"epochs": [3, 1]}
    for config, key in (
        ({"keep": {"band": [0.0, wrong]}}, r"negatives.keep.band\[1\].epochs="),
        ({"reweight": {"beta": wrong}}, "negatives.reweight.beta.epochs="),
        ({"reweight": wrong}, "negatives.reweight.beta.epochs="),
    ):
        with pytest.raises(ConfigError, match=key):
            build(config)


# ---------------------------------------------------------------- at any depth


def test_schedules_are_found_at_any_depth() -> None:
    line = schedule.parse(LINE, "")
    value = {"a": [LINE, 1.0], "b": {"c": LINE, "d": "text"}, "e": None, "f": (2, [LINE])}
    found = schedule.find(value, "k")
    assert found == {
        "a": [line, 1.0],
        "b": {"c": line, "d": "text"},
        "e": None,
        "f": [2, [line]],
    }
    assert schedule.inside(found) == [line] * 3
    assert schedule.inside(line) == [line]
    assert schedule.inside({"a": 3, "b": "text", "c": []}) == []
    assert schedule.resolve(found, 20) == {
        "a": [line.at(20), 1.0],
        "b": {"c": line.at(20), "d": "text"},
        "e": None,
        "f": [2, [line.at(20)]],
    }
    with pytest.raises(ConfigError, match=r"k.b.c\[1\]: unknown key of a schedule"):
        schedule.find({"b": {"c": [0, LINE | {"x": 1}]}}, "k")


# ---------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("when", "inside", "outside"),
    [
        (When(), [0, 0.5, 1e9], []),
        (When(start=2.0), [2, 2.5, 100], [0, 1.999]),
        (When(end=2.0), [0, 1.999], [2, 2.5, 100]),
        (When(1.0, 3.0), [1, 2.999], [0, 0.999, 3, 4]),
    ],
)
def test_when_it_acts(when: When, inside: list[float], outside: list[float]) -> None:
    assert all(epoch in when for epoch in inside)
    assert not any(epoch in when for epoch in outside)


def test_the_config_of_when() -> None:
    found = schedule.parse_when(0, 2, "k")
    assert found == When(None, 2.0)  # from epoch 0 on is always
    assert found.config == {"until_epoch": 2.0}
    assert schedule.parse_when(None, None, "k") == When()
    assert schedule.parse_when(None, 0.5, "k") == When(None, 0.5)
    assert schedule.parse_when(3, None, "k") == When(3.0)


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
def test_impossible_epochs(start: Any, end: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule.parse_when(start, end, "k")
