"""Result files and plans: atomic, checked when read, and never lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from solo_hardneg.errors import DataError
from solo_hardneg.reproduce.grid import Cell
from solo_hardneg.reproduce.store import (
    DONE,
    FAILED,
    Result,
    read_plan,
    read_result,
    read_results,
    result_file,
    write_plan,
    write_result,
)

DATA = ("data=digits",)
CELL = Cell("a-seed0", "a", 0, "simclr", DATA, DATA, ("max_epochs=1",), "0123456789ab")
CHANGED = replace(CELL, fingerprint="f" * 12)
GOOD = Result(CELL, DONE, {"top1": 50.0, "top5": 90.0}, seconds=3.0, ran_on={"torch": "2"})


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_result(tmp_path, GOOD)
    assert read_result(result_file(tmp_path, CELL)) == GOOD
    assert read_results(tmp_path, [CELL]) == ({"a-seed0": GOOD}, [])
    assert not list(tmp_path.rglob("*.part"))


def test_each_launch_has_its_own_plan_and_plan_json_is_the_latest(tmp_path: Path) -> None:
    plans = [write_plan(tmp_path, [cell], {"experiment": "x"}) for cell in (CELL, CHANGED)]
    read = [read_plan(file) for file in (*plans, tmp_path / "plan.json")]
    assert [cells["a-seed0"] for cells, _ in read] == [CELL, CHANGED, CHANGED]
    assert all(settings["experiment"] == "x" for _, settings in read)


@pytest.mark.parametrize("text", ['{"cells": [{"name"', "[]", '{"cells": 3}'])
def test_a_damaged_plan_is_refused_with_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match=r"plan\.json: .*Run `solo-hardneg reproduce`"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "no result of `solo-hardneg reproduce`"),
        ({"version": 2}, "has version 2; this program reads version 1"),
        ({"row": "gone"}, "missing or invalid"),
        ({"metrics": {}}, "done, without an accuracy"),
        ({"metrics": {"top1": "high"}}, "a number is expected"),
        ({"state": "maybe"}, "state=maybe"),
        (None, "cut short or damaged"),
    ],
)
def test_an_unreadable_result_is_set_aside(tmp_path: Path, changes: dict, message: str) -> None:
    write_result(tmp_path, GOOD)
    file = result_file(tmp_path, CELL)
    text = file.read_text()[:-30]
    if changes is not None:
        content = {**json.loads(file.read_text()), **changes}
        text = json.dumps({key: value for key, value in content.items() if value != "gone"})
    file.write_text(text)
    kept = tmp_path / "cells" / "replaced" / "a-seed0-0123456789ab-1.json"
    results, [note] = read_results(tmp_path, [CELL])
    assert results == {}
    assert not file.exists()
    assert kept.read_text() == text
    for part in (message, str(kept), "runs again"):
        assert part in note


def test_a_result_of_another_config_stays_and_counts_again(tmp_path: Path) -> None:
    write_result(tmp_path, GOOD)
    results, [note] = read_results(tmp_path, [CHANGED])
    assert results == {}
    assert note.startswith("a-seed0: its config has changed")
    assert str(result_file(tmp_path, CELL)) in note
    write_result(tmp_path, replace(GOOD, cell=CHANGED))
    assert read_results(tmp_path, [CHANGED])[1] == []
    assert read_results(tmp_path, [CELL]) == ({"a-seed0": GOOD}, [])


def test_a_cell_with_a_longer_name_is_another_cell(tmp_path: Path) -> None:
    write_result(tmp_path, replace(GOOD, cell=replace(CELL, name="a-seed0-seed0")))
    assert read_results(tmp_path, [CELL]) == ({}, [])


def test_a_failure_never_replaces_an_accuracy(tmp_path: Path) -> None:
    failed = Result(CELL, FAILED, error="ConfigError: x=1: must be 2.")
    write_result(tmp_path, failed)
    assert read_results(tmp_path, [CELL]) == ({"a-seed0": failed}, [])
    write_result(tmp_path, GOOD)
    write_result(tmp_path, failed)
    assert read_results(tmp_path, [CELL])[0] == {"a-seed0": GOOD}
