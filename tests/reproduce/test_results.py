"""Result files: whole or not there, and nothing is thrown away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from solo_hardneg.errors import DataError
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.results import (
    DONE,
    FAILED,
    read_plan,
    read_result,
    result_file,
    result_of,
    standing,
    write_plan,
    write_result,
)

CELL = Cell(
    "a-seed0",
    "a",
    0,
    "simclr",
    ("data=digits",),
    ("data=digits",),
    ("max_epochs=1",),
    "0123456789ab",
)
GOOD = result_of(CELL, DONE, metrics={"top1": 50.0, "top5": 90.0}, seconds=3.0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, GOOD)
    assert read_result(result_file(tmp_path, CELL)) == GOOD
    assert standing(tmp_path, [CELL]) == ({"a-seed0": GOOD}, [])
    assert not list(tmp_path.rglob("*.part"))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, [CELL], {"experiment": "x", "images": 5})
    for file in (plan, tmp_path / "plan.json"):
        cells, settings = read_plan(file)
        assert cells == {"a-seed0": CELL}
        assert (settings["experiment"], settings["images"]) == ("x", 5)
    for text in ('{"cells": [{"name"', "[]", '{"cells": 3}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(DataError, match=r"no plan that can be read.*solo-hardneg reproduce"):
            read_plan(tmp_path / "plan.json")


def test_another_sweep_has_a_plan_of_its_own(tmp_path: Path) -> None:
    first = write_plan(tmp_path, [CELL], {})
    second = write_plan(tmp_path, [replace(CELL, fingerprint="f" * 12)], {})
    assert first != second
    assert read_plan(first)[0]["a-seed0"] == CELL


def broken(**changes: object) -> str:
    content = {
        "format": "solo-hardneg result",
        "version": 1,
        "cell": "a-seed0",
        "row": "a",
        "seed": 0,
        "fingerprint": "0123456789ab",
        "state": "done",
        "metrics": {"top1": 1.0},
    }
    return json.dumps({k: v for k, v in {**content, **changes}.items() if v != "gone"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (broken()[:-30], "cut short or damaged"),
        ("", "cut short or damaged"),
        ("[]", "no result of `solo-hardneg reproduce`"),
        (broken(format="other"), "no result of `solo-hardneg reproduce`"),
        (broken(version=2), "has version 2; this program reads version 1"),
        (broken(row="gone"), "missing or wrong"),
        (broken(metrics={}), "done, without an accuracy"),
        (broken(metrics={"top1": "high"}), "a number is none"),
        (broken(state="maybe"), "state=maybe"),
    ],
)
def test_a_result_that_cant_be_read_is_kept_aside(tmp_path: Path, text: str, message: str) -> None:
    file = result_file(tmp_path, CELL)
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_result(file)
    found, notes = standing(tmp_path, [CELL])
    kept = tmp_path / "cells" / "replaced" / "a-seed0-0123456789ab-1.json"
    assert found == {}
    assert not file.exists()
    assert kept.read_text() == text
    assert len(notes) == 1
    assert str(kept) in notes[0]
    assert "runs again" in notes[0]


def test_a_result_of_another_config_stays_and_holds_again(tmp_path: Path) -> None:
    changed = replace(CELL, fingerprint="f" * 12)
    write_result(tmp_path, GOOD)
    found, notes = standing(tmp_path, [changed])
    assert found == {}
    assert notes == [
        "a-seed0: its config has changed since it was run, so it runs again. The result of the "
        f"other config is kept: {result_file(tmp_path, CELL)}"
    ]
    write_result(tmp_path, replace(GOOD, fingerprint="f" * 12))
    assert standing(tmp_path, [changed])[1] == []
    assert standing(tmp_path, [CELL]) == ({"a-seed0": GOOD}, [])


def test_a_cell_with_a_longer_name_is_another(tmp_path: Path) -> None:
    write_result(tmp_path, replace(GOOD, cell="a-seed0-seed0"))
    assert standing(tmp_path, [CELL]) == ({}, [])


def test_a_failure_never_takes_the_place_of_a_number(tmp_path: Path) -> None:
    failed = result_of(CELL, FAILED, error="x")
    write_result(tmp_path, failed)
    write_result(tmp_path, GOOD)
    write_result(tmp_path, failed)
    assert standing(tmp_path, [CELL])[0] == {"a-seed0": GOOD}


def test_a_failure_is_a_result_too(tmp_path: Path) -> None:
    failed = result_of(CELL, FAILED, error="ConfigError: x=1: must be 2.")
    write_result(tmp_path, failed)
    assert standing(tmp_path, [CELL])[0]["a-seed0"].error == "ConfigError: x=1: must be 2."
