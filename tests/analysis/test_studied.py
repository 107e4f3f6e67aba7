"""Which studies are of a run, and which of a group's can be taken together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_runs import HARDEST, MOCO, changed, make_study, write_args, write_metrics

from solo_hardneg.analysis.groups import Group, group
from solo_hardneg.analysis.runs import Found, find
from solo_hardneg.analysis.studied import together

OF_RUN = {"method": "mocov2_banded", "seed": 5, "epoch": 4, "checkpoint": "/far/it-ep3.ckpt"}


def write_run(folder: Path, **changes: Any) -> Path:
    """A run of four epochs with its checkpoint."""
    run = write_metrics(write_args(folder, changed(MOCO, **changes)), [1.0, 2.0, 3.0, 4.0])
    (run / "it-ep3.ckpt").touch()
    return run


def save(run: Path, place: str = "study.npz", **info: Any) -> None:
    make_study(**{**OF_RUN, **info}).save(run / "analysis" / place)


def of_study(found: Found) -> list[str]:
    return [note.text for note in found.notes if "stud" in note.text and "made-up" not in note.text]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "mocov2_banded" / "one")


def test_a_study_of_the_run_as_it_is_needs_no_note(run: Path) -> None:
    save(run)
    found = find([run])
    assert found.runs[0].study is not None
    assert of_study(found) == []


def test_of_several_checkpoints_the_study_of_the_latest_epoch_counts(run: Path) -> None:
    for epoch in (2, 4, 3):
        save(run, f"it-ep{epoch}/study.npz", epoch=epoch)
    found = find([run])
    assert found.runs[0].study is not None
    assert found.runs[0].study.info["epoch"] == 4
    expected = "has 3 studies; that of the latest epoch, analysis/it-ep4/study.npz, counts."
    assert of_study(found) == [expected]


def test_a_study_that_is_only_below_a_checkpoints_name(run: Path) -> None:
    save(run, "it-ep3/study.npz")
    assert find([run]).runs[0].study is not None
    assert of_study(find([run])) == []


def test_no_study(run: Path) -> None:
    (text,) = of_study(find([run]))
    assert text.startswith("there is no study of a checkpoint below its analysis/; make one with")
    assert "without out=" in text


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"seed": 6}, "analysis/study.npz is left out: it is of a run with seed=6."),
        ({"method": "simclr"}, "analysis/study.npz is left out: it is of a run with method=simcl"),
        ({"epoch": 2}, "its study is of epoch 2; it was trained on to epoch 4."),
        ({"checkpoint": "C:\\x\\a.ckpt"}, "the checkpoint of its study, a.ckpt, is not there any"),
        ({"dataset": "stl10"}, "its study is of images of stl10, not of imagenet."),
    ],
)
def test_a_study_that_does_not_fit_its_run(run: Path, info: dict[str, Any], text: str) -> None:
    save(run, **info)
    found = find([run])
    assert any(said.startswith(text) for said in of_study(found)), of_study(found)
    assert (found.runs[0].study is None) is ("left out" in text)


def seeds(root: Path, *infos: dict[str, Any]) -> list[Group]:
    """A group with one seed for each study."""
    for seed, info in enumerate(infos):
        save(write_run(root / "mocov2_banded" / str(seed), seed=seed), seed=seed, **info)
    return group(find([root]).runs, [])


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
def test_what_differs_from_most_is_left_out(
    tmp_path: Path, key: str, value: Any, usual: Any
) -> None:
    groups = seeds(tmp_path, {key: value}, {}, {})
    kept, notes = together(groups)
    assert [study.info["seed"] for study in kept["MoCo v2: all"]] == [1, 2]
    why = "its study is left out, because it differs from those of other seeds"
    assert notes == [("mocov2_banded/0", f"{why}: {key} {value}, not {usual}.")]


def test_other_images_are_noted(tmp_path: Path) -> None:
    kept, notes = together(seeds(tmp_path, {"study_seed": 5}, {"study_seed": 6}))
    assert len(kept["MoCo v2: all"]) == 2
    (note,) = notes
    assert note[0] == "MoCo v2: all"
    assert note[1].startswith("its studies draw different images (seed=)")


def test_groups_that_cannot_be_compared_are_noted(tmp_path: Path) -> None:
    save(write_run(tmp_path / "mocov2_banded" / "a"))
    save(write_run(tmp_path / "mocov2_banded" / "b", negatives=HARDEST), split="val", epoch=3)
    kept, notes = together(group(find([tmp_path]).runs, []))
    assert len(kept) == 2
    text = "they differ in split (train, val), so they can't be fairly compared."
    assert notes == [("studies of the runs on imagenet", text)]
