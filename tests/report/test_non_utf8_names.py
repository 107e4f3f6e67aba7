"""Names of classes, runs and folders that aren't UTF-8 are shown, and written as UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from made_up_runs import MOCO, changed, make_study, write_args, write_metrics, write_records
from typer.testing import CliRunner

from solo_hardneg.cli import app
from solo_hardneg.data.classes import class_names
from solo_hardneg.recording import records
from solo_hardneg.study.measure import load_study
from solo_hardneg.study.output import CheckpointStudy, write_results

CAFE = os.fsdecode(b"caf\xe9")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose name isn't UTF-8."""
    folder = tmp_path / CAFE
    try:
        folder.mkdir()
    except OSError as error:  # macOS allows UTF-8 only
        pytest.skip(str(error))
    return folder


def test_class_names(place: Path) -> None:
    (place.parent / "tea").mkdir()
    data = {"dataset": "custom", "train_path": str(place.parent)}
    assert class_names(data) == [r"caf\udce9", "tea"]


def test_records(place: Path) -> None:
    write_records(place, changed(MOCO, name=CAFE), epochs=1)
    assert records.read_records(place / "hardness").config["name"] == CAFE


def test_report(place: Path) -> None:
    for name, lr in (("a", 0.1), (CAFE, 0.2)):
        run = place / name
        args = changed(MOCO, name=name, optimizer__lr=lr)
        write_args(run, changed(args, negatives={CAFE: {}}) if name == CAFE else args)
        write_metrics(run, [50.0])
    out = place / "report"
    done = CliRunner().invoke(app, ["report", str(place), "--out", str(out), "--title", CAFE])
    assert done.exit_code == 0, done.output
    assert "caf" in done.output
    assert r"caf\udce9" in (out / "report.html").read_text(encoding="utf-8")
    table = pd.read_csv(out / "runs.csv", encoding="utf-8")
    assert table["name"].tolist() == ["a", r"caf\udce9"]


def test_study(place: Path) -> None:
    study = make_study(
        names=(r"caf\udce9", "dog", "truck"), checkpoint=str(place / "last.ckpt"), name=CAFE
    )
    done = CheckpointStudy(
        study, place / "last.ckpt", changed(MOCO, name=CAFE, negatives={CAFE: {}})
    )
    found = write_results([done], place / "study")
    assert load_study(place / "study" / "study.npz").class_names[0] == r"caf\udce9"
    tables = [file for file in found.written if file.suffix == ".csv"]
    texts = [file.read_text(encoding="utf-8") for file in tables]
    assert any(r"caf\udce9" in text for text in texts)
