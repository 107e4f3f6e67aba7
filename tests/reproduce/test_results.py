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
    "a-seed0", "a", 0, "simclr", ("data=digits",), ("data=digits",), ("max_epochs=1",), "f00"
)
GOOD = result_of(CELL, DONE, metrics={"top1": 50.0, "top5": 90.0}, seconds=3.0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, GOOD)
    assert read_result(result_file(tmp_path, "a-seed0")) == GOOD
    assert standing(tmp_path, [CELL]) == ({"a-seed0": GOOD}, [])
    assert not list(tmp_path.rglob("*.part"))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_plan(tmp_path, [CELL], {"experiment": "x", "images": 5})
    cells, settings = read_plan(tmp_path)
    assert cells == {"a-seed0": CELL}
    assert (settings["experiment"], settings["images"]) == ("x", 5)
    (tmp_path / "plan.json").write_text('{"cells": [{"name"')
    with pytest.raises(DataError, match=r"no plan that can be read.*solo-hardneg reproduce"):
        read_plan(tmp_path)


def broken(**changes: object) -> str:
    content = {
        "format": "solo-hardneg result",
        "version": 1,
        "cell": "a-seed0",
        "row": "a",
        "seed": 0,
        "fingerprint": "f00",
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
    file = result_file(tmp_path, "a-seed0")
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_result(file)
    found, notes = standing(tmp_path, [CELL])
    kept = tmp_path / "cells" / "replaced" / "a-seed0-1.json"
    assert found == {}
    assert not file.exists()
    assert kept.read_text() == text
    assert len(notes) == 1
    assert str(kept) in notes[0]
    assert "runs again" in notes[0]


def test_a_result_of_another_config_is_kept_aside_each_time(tmp_path: Path) -> None:
    for number, fingerprint in enumerate(("f01", "f02"), 1):
        write_result(tmp_path, replace(GOOD, fingerprint=fingerprint))
        found, notes = standing(tmp_path, [CELL])
        assert found == {}
        assert "a-seed0: its config has changed since it was run" in notes[0]
        kept = tmp_path / "cells" / "replaced" / f"a-seed0-{number}.json"
        assert read_result(kept).fingerprint == fingerprint


def test_a_failure_is_a_result_too(tmp_path: Path) -> None:
    failed = result_of(CELL, FAILED, error="ConfigError: x=1: must be 2.")
    write_result(tmp_path, failed)
    assert standing(tmp_path, [CELL])[0]["a-seed0"].error == "ConfigError: x=1: must be 2."
