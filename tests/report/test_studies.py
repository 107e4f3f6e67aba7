"""Which study belongs to a run, and which of a group's can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_runs import HARDEST, MOCO, changed, make_study, write_args, write_metrics

from solo_hardneg.report.studies import newest_study, studies_by_group
from solo_hardneg.runs.find import Note, find_runs
from solo_hardneg.runs.groups import Group, group_runs
from solo_hardneg.study.measure import Study

OF_RUN = {"method": "mocov2_banded", "seed": 5, "epoch": 4, "checkpoint": "/far/it-ep3.ckpt"}


def write_run(folder: Path, **changes: Any) -> Path:
    """A run of four epochs with its checkpoint."""
    run = write_metrics(write_args(folder, changed(MOCO, **changes)), [1.0, 2.0, 3.0, 4.0])
    (run / "it-ep3.ckpt").touch()
    return run


def save_study(run: Path, place: str = "study.npz", **info: Any) -> None:
    make_study(**{**OF_RUN, **info}).save(run / "analysis" / place)


def study_of(folder: Path) -> tuple[Study | None, list[str]]:
    (run,) = find_runs([folder]).runs
    study, notes = newest_study(run)
    return study, [text for text in notes if "made-up" not in text]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "mocov2_banded" / "one")


@pytest.mark.parametrize("place", ["study.npz", "it-ep3/study.npz"])
def test_a_study_that_fits_needs_no_note(run: Path, place: str) -> None:
    save_study(run, place)
    study, notes = study_of(run)
    assert study is not None
    assert notes == []


def test_of_several_checkpoints_the_study_of_the_latest_epoch_counts(run: Path) -> None:
    for epoch in (2, 4, 3):
        save_study(run, f"it-ep{epoch}/study.npz", epoch=epoch)
    study, notes = study_of(run)
    assert study is not None
    assert study.info["epoch"] == 4
    expected = "has 3 studies; that of the latest epoch, analysis/it-ep4/study.npz, counts."
    assert notes == [expected]


def test_a_missing_study(run: Path) -> None:
    (text,) = study_of(run)[1]
    assert text.startswith("it has no study in analysis/; make one with: solo-hardneg analyze")
    assert "without out=" in text


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"seed": 6}, "analysis/study.npz is left out: it is of a run with seed=6."),
        ({"method": "simclr"}, "analysis/study.npz is left out: it is of a run with method=simcl"),
        ({"epoch": 2}, "its study is of epoch 2 of 4."),
        ({"checkpoint": "C:\\x\\a.ckpt"}, "the checkpoint of its study, a.ckpt, no longer exists"),
        ({"dataset": "stl10"}, "its study is of images of stl10, not of imagenet."),
    ],
)
def test_a_study_that_does_not_fit_its_run(run: Path, info: dict[str, Any], text: str) -> None:
    save_study(run, **info)
    study, notes = study_of(run)
    assert any(note.startswith(text) for note in notes), notes
    assert (study is None) is ("left out" in text)


def group_of_seeds(root: Path, *infos: dict[str, Any]) -> list[Group]:
    """A group with one seed per study."""
    for seed, info in enumerate(infos):
        run = write_run(root / "mocov2_banded" / str(seed), seed=seed)
        save_study(run, seed=seed, **info)
    return group_runs(find_runs([root]).runs, [])


@pytest.mark.parametrize(
    ("key", "value", "usual"),
    [
        ("epoch", 3, 4),
        ("queries", 8, 4),
        ("negatives", 10, 20),
        ("split", "val", "train"),
        ("views", "augmented", "plain"),
        ("dataset", "stl10", None),
    ],
)
def test_a_study_unlike_the_others_is_left_out(
    tmp_path: Path, key: str, value: Any, usual: Any
) -> None:
    kept, notes = studies_by_group(group_of_seeds(tmp_path, {key: value}, {}, {}))
    assert [study.info["seed"] for study in kept["MoCo v2: all"]] == [1, 2]
    text = f"its study is left out, unlike other seeds: {key} {value}, not {usual}."
    assert Note("mocov2_banded/0", text) in notes


def test_different_images_are_noted(tmp_path: Path) -> None:
    kept, notes = studies_by_group(group_of_seeds(tmp_path, {"study_seed": 5}, {"study_seed": 6}))
    assert len(kept["MoCo v2: all"]) == 2
    (note,) = [note for note in notes if "made-up" not in note.text]
    assert note.where == "MoCo v2: all"
    assert note.text.startswith("its studies draw different images (seed=)")


def test_groups_that_cannot_be_compared_are_noted(tmp_path: Path) -> None:
    save_study(write_run(tmp_path / "mocov2_banded" / "a"))
    other = write_run(tmp_path / "mocov2_banded" / "b", negatives=HARDEST)
    save_study(other, split="val", epoch=3)
    kept, notes = studies_by_group(group_runs(find_runs([tmp_path]).runs, []))
    assert len(kept) == 2
    text = "differ in split (train, val), so they can't be compared fairly."
    assert Note("studies of the runs on imagenet", text) in notes
