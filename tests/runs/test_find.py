"""Finds runs, their metrics and linear evaluations, and notes what is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from made_up_runs import (
    MOCO,
    SIMCLR,
    changed,
    make_runs,
    write_args,
    write_linear,
    write_metrics,
    write_records,
)

from solo_hardneg.errors import DataError
from solo_hardneg.runs.find import Found, Run, find_runs


def texts(found: Found) -> str:
    return "\n".join(f"{note.where}: {note.text}" for note in found.notes)


def only(found: Found) -> Run:
    assert len(found.runs) == 1
    return found.runs[0]


def test_all_runs_below_a_folder(tmp_path: Path) -> None:
    folders = make_runs(tmp_path)
    found = find_runs([tmp_path])
    assert {run.folder for run in found.runs} == set(folders)
    assert all(run.linear is not None for run in found.runs)
    one = next(run for run in found.runs if run.title == "mocov2_banded/hard1")
    assert one.seed == 1
    assert one.epochs == 4
    assert one.linear is not None
    assert one.linear.last("val_acc1") == 56.0
    assert one.linear.last("val_knn_acc1") == 54.0


def test_a_run_given_twice_is_one_run(tmp_path: Path) -> None:
    folders = make_runs(tmp_path)
    found = find_runs([folders[0], tmp_path, f"{folders[0]}/../all0", folders[0] / "epoch3.ckpt"])
    assert len(found.runs) == len(folders)


def test_linear_evaluations_beside_the_run_are_found(tmp_path: Path) -> None:
    folders = make_runs(tmp_path)
    run = only(find_runs([folders[0]]))
    assert run.linear is not None
    assert run.linear.last("val_acc1") == 60.0
    assert "none of the given runs" not in texts(find_runs([folders[0]])), (
        "the others are of other runs"
    )


@pytest.mark.parametrize("how", ["checkpoint", "folder", "relative", "moved"])
def test_a_linear_evaluation_finds_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    root = tmp_path / "trained_models"
    for name in ("one", "two"):
        write_args(root / "mocov2_banded" / name, MOCO | {"seed": len(name)})
    two = root / "mocov2_banded" / "two"
    source = {
        "checkpoint": two / "x-ep=3.ckpt",
        "folder": two,
        "relative": "trained_models/mocov2_banded/two/x-ep=3.ckpt",  # to its working directory
        "moved": "/home/somebody/trained_models/mocov2_banded/two/x-ep=3.ckpt",
    }[how]
    write_linear(root, source, 70.0, "imagenet", name="it")
    monkeypatch.chdir("/")
    runs = {run.folder.name: run.linear for run in find_runs([root]).runs}
    assert runs["one"] is None
    assert runs["two"] is not None
    assert runs["two"].last("val_acc1") == 70.0


def test_a_linear_evaluation_of_another_run(tmp_path: Path) -> None:
    write_args(tmp_path / "mocov2_banded" / "one", MOCO)
    write_linear(tmp_path, "/elsewhere/simclr/zzz/x.ckpt", 70.0, "imagenet", name="it")
    found = find_runs([tmp_path])
    assert only(found).linear is None
    note = "linear/it: evaluates /elsewhere/simclr/zzz/x.ckpt, which is not among the given runs."
    assert note in texts(found)
    moved_twice = tmp_path / "b"
    for name in ("x", "y"):
        write_args(moved_twice / name / "mocov2_banded" / "one", MOCO)
    write_linear(moved_twice, "/far/mocov2_banded/one/a.ckpt", 70.0, "imagenet", name="it")
    assert [run.linear for run in find_runs([moved_twice]).runs] == [None, None], (
        "it may be of either run"
    )


def test_of_several_linear_evaluations_the_newest_counts(tmp_path: Path) -> None:
    import os

    run = write_args(tmp_path / "mocov2_banded" / "one", MOCO)
    for number, name in enumerate(("b", "a", "c")):
        folder = write_linear(tmp_path, run, 70.0 + number, "imagenet", name=name)
        os.utime(folder / "args.json", (1000.0 + number, 1000.0 + number))
    unfinished = write_linear(tmp_path, run, 99.0, "imagenet", name="d")
    (unfinished / "metrics.csv").unlink()
    found = find_runs([tmp_path])
    linear = only(found).linear
    assert linear is not None
    assert linear.last("val_acc1") == 72.0
    assert "mocov2_banded/one: was evaluated 3 times; the newest, linear/c, counts." in texts(found)


def test_metrics_of_the_records_and_of_the_csv_file(tmp_path: Path) -> None:
    run = write_args(tmp_path / "mocov2_banded" / "one", MOCO)
    write_records(run, MOCO)
    write_metrics(run, [1.0, 2.0, 3.0, 4.0], val_knn_acc1=33.0)
    read = only(find_runs([run]))
    assert read.last("val_acc1") == 50.0, "from the records"
    assert read.last("val_acc5") == 24.0, "missing in the records"
    assert read.last("val_knn_acc1") == 33.0, "logged after the last epoch"
    assert math.isnan(read.last("val_loss"))
    accuracy = read.history[read.history["metric"] == "val_acc1"]
    assert accuracy["value"].tolist() == [20.0, 30.0, 40.0, 50.0]
    assert accuracy["epoch"].tolist() == [0, 1, 2, 3]


def test_sparse_rows_of_lightning(tmp_path: Path) -> None:
    run = write_args(tmp_path / "simclr" / "one", SIMCLR)
    (run / "metrics.csv").write_text(
        "epoch,step,lr,val_acc1,hardness/x\n,0,0.1,,\n0,9,,10.0,\n,10,0.1,,\n,11,,,0.5\n"
        "1,19,,,\n1,19,,12.5,\n2,29,,\n"
    )
    history = only(find_runs([run])).history
    assert history["epoch"].tolist() == [0, 1]
    assert history["value"].tolist() == [10.0, 12.5]


def test_without_labels_there_is_no_accuracy(tmp_path: Path) -> None:
    run = write_args(tmp_path / "simclr" / "one", changed(SIMCLR, data__no_labels=True))
    write_metrics(run, [0.0, 0.0])
    found = find_runs([run])
    assert math.isnan(only(found).last("val_acc1"))
    assert only(found).last("train_nce_loss_epoch") == 4.5
    assert "simclr/one: its images have no labels (data.no_labels), so it has no" in texts(found)


def test_only_references_to_the_config_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """solo-learn writes its config unresolved."""
    args = changed(SIMCLR, optimizer__lr="${oc.select:data.lr,0.4}", data__lr=0.3)
    run = write_args(tmp_path / "simclr" / "one", args)
    assert only(find_runs([run])).args["optimizer"]["lr"] == 0.3
    monkeypatch.setenv("SECRET_OF_MINE", "abc")
    write_args(run, args | {"name": "${oc.env:SECRET_OF_MINE}"})
    assert only(find_runs([run])).args["name"] == "${oc.env:SECRET_OF_MINE}"
    write_args(run, args | {"name": "${no.such.key}"})
    assert only(find_runs([run])).args["name"] == "${no.such.key}"


def test_what_is_missing_is_noted(tmp_path: Path) -> None:
    run = write_args(tmp_path / "simclr" / "one", SIMCLR)
    said = texts(find_runs([run]))
    for part in (
        "no online accuracy was logged",
        "it has no linear evaluation; run one with: solo-hardneg linear",
        "its negatives were not recorded; hardness.enabled=true",
    ):
        assert f"simclr/one: {part}" in said
    write_metrics(run, [1.0, 2.0])
    assert "it is at 2 of 4 epochs" in texts(find_runs([run]))
    write_metrics(run, [1.0, 2.0, 3.0, 4.0])
    assert "of 4 epochs" not in texts(find_runs([run]))


def test_damaged_files_are_noted_and_left_out(tmp_path: Path) -> None:
    make_runs(tmp_path)
    broken = tmp_path / "mocov2_banded"
    (broken / "all0" / "args.json").write_text('{"method": "moco')
    (broken / "all1" / "hardness" / "epoch00001-rank0.parquet").write_bytes(b"PAR1 cut")
    (broken / "all2" / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    for path in (broken / "hard1" / "hardness").glob("*.parquet"):
        path.write_bytes(b"")
    (broken / "hard2" / "args.json").write_text("[1, 2]")
    found = find_runs([tmp_path])
    said = texts(found)
    assert {r.folder.name for r in found.runs} == {"all1", "all2", "hard0", "hard1", "one"}
    assert "mocov2_banded/all0: left out, because its args.json is damaged" in said
    assert "epoch00001-rank0.parquet: left out, because it is damaged" in said
    assert "mocov2_banded/all2: its metrics.csv is left out, because it is damaged" in said
    assert "mocov2_banded/hard1: its records are left out." in said
    assert "mocov2_banded/hard2: left out, because its args.json isn't the config of a run" in said
    assert "linear/mocov2_banded-all0-epoch3.ckpt: evaluates" in said


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder. Give the folders of"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"holds no run \(no args.json in it or below"):
        find_runs([tmp_path])
    (tmp_path / "args.json").write_text("{")
    with pytest.raises(DataError, match=r"holds no run of pretraining, but none that can be read"):
        find_runs([tmp_path])
    (tmp_path / "args.json").write_text(json.dumps({"pretrained_feature_extractor": "x"}))
    with pytest.raises(DataError, match=r"but only linear evaluations. Give the folders of pre"):
        find_runs([tmp_path])
