"""The committed ``results``: tables follow from cells, and the README from tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from integration_helpers import PROJECT

from solo_hardneg.files import markdown_table
from solo_hardneg.reproduce.claims import judge
from solo_hardneg.reproduce.experiment import load_experiment
from solo_hardneg.reproduce.table import format_table


@pytest.fixture(params=sorted(PROJECT.glob("results/*/")), ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_table_and_verdicts_follow_from_the_cells(folder: Path) -> None:
    experiment = load_experiment(folder.name.split("-")[0])
    cells = pd.read_csv(folder / "cells.csv")
    values = cells[cells["state"] == "done"].groupby("row")["top1"].apply(list).to_dict()
    assert set(values) == set(experiment.rows)
    for line in pd.read_csv(folder / "table.csv").to_dict("records"):
        mine = values[line["row"]]
        assert line["seeds"] == len(mine)
        assert line["ours_top1"] == pytest.approx(np.mean(mine), abs=1e-3)
        assert line["ours_top1_std"] == pytest.approx(np.std(mine, ddof=1), abs=1e-3)
    verdicts, written = judge(experiment.claims, values), pd.read_csv(folder / "claims.csv")
    assert verdicts["verdict"].tolist() == written["verdict"].tolist()
    assert verdicts["claim"].tolist() == written["claim"].tolist()
    assert written["holm_for"].tolist() == pytest.approx(verdicts["holm_for"].tolist(), abs=1e-3)


def test_they_list_what_ran_without_paths_of_a_machine(folder: Path) -> None:
    for file in folder.iterdir():
        assert not re.search(r"/(tmp|root|home|work|mnt)/", file.read_text()), file.name
    cells = pd.read_csv(folder / "cells.csv")
    assert cells["pretrain"].str.contains("max_epochs=").all()
    assert cells["ran_on"].str.contains("torch=").all()


def test_the_readme_has_the_table(folder: Path) -> None:
    readme = (PROJECT / "README.md").read_text()
    table = pd.read_csv(folder / "table.csv").fillna({"source": "", "note": "", "baseline": ""})
    for line in markdown_table(format_table(table, "top1")).splitlines():
        assert line in readme or "---" in line
