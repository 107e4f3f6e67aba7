"""Names of classes, runs and folders that are no UTF-8: shown, and written as UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from made_up_runs import MOCO, changed, make_study, write_args, write_metrics, write_records
from typer.testing import CliRunner

from solo_hardneg.analysis import records
from solo_hardneg.analysis.classes import class_names
from solo_hardneg.analysis.results import Studied
from solo_hardneg.analysis.results import write as write_studies
from solo_hardneg.analysis.study import load
from solo_hardneg.cli import app

CAFE = os.fsdecode(b"caf\xe9")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose name is no UTF-8."""
    folder = tmp_path / CAFE
    try:
        folder.mkdir()
    except OSError as error:  # macOS has UTF-8 alone
        pytest.skip(str(error))
    return folder


def test_classes(place: Path) -> None:
    (place.parent / "tea").mkdir()
    data = {"dataset": "custom", "train_path": str(place.parent)}
    assert class_names(data) == [r"caf\udce9", "tea"]


def test_records(place: Path) -> None:
    write_records(place, changed(MOCO, name=CAFE), epochs=1)
    assert records.read(place / "hardness").config["name"] == CAFE


def test_a_report(place: Path) -> None:
    for name, lr in (("a", 0.1), (CAFE, 0.2)):
        run = place / name
        args = changed(MOCO, name=name, optimizer__lr=lr)
        write_args(run, changed(args, negatives={CAFE: {}}) if name == CAFE else args)
        write_metrics(run, [50.0])
    out = place / "report"
    done = CliRunner().invoke(app, ["report", str(place), "--out", str(out), "--title", CAFE])
    assert done.exit_code == 0, done.output
    assert "caf" in done.output
    for name in ("report.html", "report.md"):
        assert r"caf\udce9" in (out / name).read_text(encoding="utf-8").replace("\\\\", "\\")
    table = pd.read_csv(out / "runs.csv", encoding="utf-8")
    assert table["name"].tolist() == ["a", r"caf\udce9"]


def test_a_study(place: Path) -> None:
    study = make_study(
        names=(r"caf\udce9", "dog", "truck"), checkpoint=str(place / "last.ckpt"), name=CAFE
    )
    done = Studied(study, place / "last.ckpt", changed(MOCO, name=CAFE, negatives={CAFE: {}}))
    found = write_studies([done], place / "study")
    assert load(place / "study" / "study.npz").class_names[0] == r"caf\udce9"
    for file in found.written:
        if file.suffix in (".csv", ".md", ".svg"):
            file.read_text(encoding="utf-8")
    assert r"caf\udce9" in (place / "study" / "summary.md").read_text(encoding="utf-8")
