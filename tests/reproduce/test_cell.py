"""The process of a cell: when pretraining counts as done, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_results import CELL, GOOD

from solo_hardneg.errors import DataError
from solo_hardneg.reproduce import cell as process
from solo_hardneg.reproduce.programs import Trained
from solo_hardneg.reproduce.results import result_file, run_folder, write_plan, write_result

EPOCHS = 3
PLACE = (f"max_epochs={EPOCHS}",)


def checkpoint(home: Path, epoch: int) -> Path:
    file = home / "simclr" / "run" / f"{epoch}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": epoch, "state_dict": {}}, file)
    return file


def test_a_pretraining_that_was_stopped_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> Trained:
        return Trained(checkpoint(tmp_path, 0), {"val_acc1": 1.0})

    monkeypatch.setattr(process, "train", stopped)
    with pytest.raises(DataError, match="a-seed0: pretraining was stopped. Start again"):
        process._pretrain(CELL, tmp_path, PLACE, None)
    assert not (tmp_path / "pretrained.json").exists()


def test_a_finished_one_is_marked_and_not_run_again(
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


def test_a_cell_that_is_done_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path, [CELL], {})
    write_result(tmp_path, GOOD)
    before = result_file(tmp_path, CELL).read_bytes()
    monkeypatch.setattr(process, "train", lambda *_: pytest.fail("it ran"))
    process.run(plan, "a-seed0")
    assert result_file(tmp_path, CELL).read_bytes() == before
    assert (run_folder(tmp_path, CELL) / "lock").exists()
    with pytest.raises(DataError, match="there is no cell b-seed0 in it"):
        process.run(plan, "b-seed0")
