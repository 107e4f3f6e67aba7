"""The process of a cell: nothing runs twice, and nothing unfinished is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from test_store import CELL, GOOD

from solo_hardneg.errors import DataError
from solo_hardneg.reproduce import worker
from solo_hardneg.reproduce.store import (
    cell_folder,
    read_result,
    result_file,
    write_plan,
    write_result,
)
from solo_hardneg.reproduce.train import TrainedRun

EPOCHS = 3
PLACE = (f"max_epochs={EPOCHS}",)


def save_checkpoint(home: Path, epoch: int) -> Path:
    file = home / "simclr" / "run" / f"{epoch}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": epoch, "state_dict": {}}, file)
    return file


def test_a_stopped_pretraining_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "train", lambda *_: TrainedRun(save_checkpoint(tmp_path, 0), {}))
    with pytest.raises(DataError, match="a-seed0: pretraining was stopped. Start again"):
        worker._pretrain(CELL, tmp_path, PLACE, None)
    assert not (tmp_path / "pretrained.json").exists()


def test_a_finished_pretraining_is_not_repeated_even_in_a_moved_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def train(*arguments: object) -> TrainedRun:
        calls.append(arguments)
        return TrainedRun(save_checkpoint(tmp_path, EPOCHS - 1), {"val_acc1": 5.0})

    monkeypatch.setattr(worker, "train", train)
    pretrained = worker._pretrain(CELL, tmp_path, PLACE, None)
    assert pretrained == {"checkpoint": "simclr/run/2.ckpt", "metrics": {"val_acc1": 5.0}}
    assert "auto_resume.enabled=True" in calls[0][2]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert worker._pretrain(CELL, moved, PLACE, None) == pretrained
    assert len(calls) == 1


def test_a_pretraining_killed_before_its_marker_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, EPOCHS - 1)
    monkeypatch.setattr(worker, "train", lambda *_: pytest.fail("it trained again"))
    pretrained = worker._pretrain(CELL, tmp_path, PLACE, None)
    assert pretrained == {"checkpoint": "simclr/run/2.ckpt", "metrics": {}}


def test_other_ranks_wait_for_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_is_rank_zero", lambda: False)
    monkeypatch.setattr(worker, "train", lambda *_: TrainedRun(None, {}))
    with pytest.raises(DataError, match="rank 0 has not written it"):
        worker._wait_for_file(tmp_path / "pretrained.json", 0.2)
    (tmp_path / "pretrained.json").write_text(json.dumps({"checkpoint": "x", "metrics": {}}))
    assert worker._pretrain(CELL, tmp_path, PLACE, None)["checkpoint"] == "x"


def test_a_cell_that_is_done_or_running_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path, [CELL], {})
    monkeypatch.setattr(worker, "train", lambda *_: pytest.fail("it ran"))
    lock = cell_folder(tmp_path, CELL) / "lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(Timeout):
        worker.run_cell(plan, "a-seed0")
    write_result(tmp_path, GOOD)
    worker.run_cell(plan, "a-seed0")
    assert read_result(result_file(tmp_path, CELL)) == GOOD
    with pytest.raises(DataError, match="there is no cell b-seed0 in it"):
        worker.run_cell(plan, "b-seed0")
