"""Result files, plans and the process of one cell: whole or not there, and nothing runs twice."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout

from solo_hardneg.errors import DataError
from solo_hardneg.reproduce import cell as process
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.programs import Trained
from solo_hardneg.reproduce.results import (
    DONE,
    FAILED,
    read_plan,
    read_result,
    result_file,
    result_of,
    run_folder,
    standing,
    write_plan,
    write_result,
)

DATA = ("data=digits",)
CELL = Cell("a-seed0", "a", 0, "simclr", DATA, DATA, ("max_epochs=1",), "0123456789ab")
GOOD = result_of(CELL, DONE, metrics={"top1": 50.0, "top5": 90.0}, seconds=3.0)
EPOCHS = 3
PLACE = (f"max_epochs={EPOCHS}",)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, GOOD)
    assert read_result(result_file(tmp_path, CELL)) == GOOD
    assert standing(tmp_path, [CELL]) == ({"a-seed0": GOOD}, [])
    assert not list(tmp_path.rglob("*.part"))


def test_each_sweep_has_a_plan_of_its_own_and_the_last_is_the_folders(tmp_path: Path) -> None:
    changed = replace(CELL, fingerprint="f" * 12)
    plans = [write_plan(tmp_path, [cell], {"experiment": "x"}) for cell in (CELL, changed)]
    read = [read_plan(file) for file in (*plans, tmp_path / "plan.json")]
    assert [cells["a-seed0"] for cells, _ in read] == [CELL, changed, changed]
    assert all(settings["experiment"] == "x" for _, settings in read)


@pytest.mark.parametrize("text", ['{"cells": [{"name"', "[]", '{"cells": 3}'])
def test_a_plan_that_cant_be_read_says_what_writes_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match=r"plan\.json: .*solo-hardneg reproduce"):
        read_plan(tmp_path / "plan.json")


def broken(**changes: object) -> str:
    content = {"format": "solo-hardneg result", "version": 1, **asdict(GOOD), **changes}
    return json.dumps({k: v for k, v in content.items() if v != "gone"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (broken()[:-30], "cut short or damaged"),
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
    kept = tmp_path / "cells" / "replaced" / "a-seed0-0123456789ab-1.json"
    file.parent.mkdir()
    file.write_text(text)
    found, [note] = standing(tmp_path, [CELL])
    assert found == {}
    assert not file.exists()
    assert kept.read_text() == text
    for part in (message, str(kept), "runs again"):
        assert part in note


def test_a_result_of_another_config_stays_and_holds_again(tmp_path: Path) -> None:
    changed = replace(CELL, fingerprint="f" * 12)
    write_result(tmp_path, GOOD)
    found, [note] = standing(tmp_path, [changed])
    assert found == {}
    assert note.startswith("a-seed0: its config has changed")
    assert str(result_file(tmp_path, CELL)) in note
    write_result(tmp_path, replace(GOOD, fingerprint="f" * 12))
    assert standing(tmp_path, [changed])[1] == []
    assert standing(tmp_path, [CELL]) == ({"a-seed0": GOOD}, [])


def test_a_cell_with_a_longer_name_is_another(tmp_path: Path) -> None:
    write_result(tmp_path, replace(GOOD, cell="a-seed0-seed0"))
    assert standing(tmp_path, [CELL]) == ({}, [])


def test_a_failure_never_takes_the_place_of_a_number(tmp_path: Path) -> None:
    failed = result_of(CELL, FAILED, error="ConfigError: x=1: must be 2.")
    write_result(tmp_path, failed)
    assert standing(tmp_path, [CELL]) == ({"a-seed0": failed}, [])
    write_result(tmp_path, GOOD)
    write_result(tmp_path, failed)
    assert standing(tmp_path, [CELL])[0] == {"a-seed0": GOOD}


# ---------------------------------------------------------------------- the process of a cell


def checkpoint(home: Path, epoch: int) -> Path:
    file = home / "simclr" / "run" / f"{epoch}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": epoch, "state_dict": {}}, file)
    return file


def test_a_pretraining_that_was_stopped_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "train", lambda *_: Trained(checkpoint(tmp_path, 0), {}))
    with pytest.raises(DataError, match="a-seed0: pretraining was stopped. Start again"):
        process._pretrain(CELL, tmp_path, PLACE, None)
    assert not (tmp_path / "pretrained.json").exists()


def test_a_finished_one_is_not_run_again_even_if_its_folder_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def whole(*arguments: object) -> Trained:
        ran.append(arguments)
        return Trained(checkpoint(tmp_path, EPOCHS - 1), {"val_acc1": 5.0})

    monkeypatch.setattr(process, "train", whole)
    known = process._pretrain(CELL, tmp_path, PLACE, None)
    assert known == {"checkpoint": "simclr/run/2.ckpt", "metrics": {"val_acc1": 5.0}}
    assert "auto_resume.enabled=True" in ran[0][2]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert process._pretrain(CELL, moved, PLACE, None) == known
    assert len(ran) == 1


def test_one_that_was_killed_before_its_marker_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, EPOCHS - 1)
    monkeypatch.setattr(process, "train", lambda *_: pytest.fail("it trained again"))
    known = process._pretrain(CELL, tmp_path, PLACE, None)
    assert known == {"checkpoint": "simclr/run/2.ckpt", "metrics": {}}


def test_another_process_of_the_run_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_is_first", lambda: False)
    monkeypatch.setattr(process, "train", lambda *_: Trained(None, {}))
    with pytest.raises(DataError, match="the first process of the run has not written it"):
        process._when_there(tmp_path / "pretrained.json", 0.2)
    (tmp_path / "pretrained.json").write_text(json.dumps({"checkpoint": "x", "metrics": {}}))
    assert process._pretrain(CELL, tmp_path, PLACE, None)["checkpoint"] == "x"


def test_a_cell_that_is_done_or_being_run_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path, [CELL], {})
    monkeypatch.setattr(process, "train", lambda *_: pytest.fail("it ran"))
    lock = run_folder(tmp_path, CELL) / "lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(Timeout):
        process.run(plan, "a-seed0")
    write_result(tmp_path, GOOD)
    process.run(plan, "a-seed0")
    assert read_result(result_file(tmp_path, CELL)) == GOOD
    with pytest.raises(DataError, match="there is no cell b-seed0 in it"):
        process.run(plan, "b-seed0")
