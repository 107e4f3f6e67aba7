"""The table and the page: published numbers beside ours."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from solo_hardneg.reproduce import claims, page
from solo_hardneg.reproduce.cells import Images, make_cells
from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.overrides import told_apart
from solo_hardneg.reproduce.page import Outcome
from solo_hardneg.reproduce.results import DONE, FAILED, Result, result_of
from solo_hardneg.reproduce.show import show
from solo_hardneg.reproduce.table import build, readable, values


def outcome(name: str, data: str, numbers: dict[str, list[float]], scale: str = "paper") -> Outcome:
    """A reproduction with these top-1 accuracies by row; top-5 is 10 points higher."""
    experiment, size = load_experiment(name), load_scale(scale)
    told = told_apart([f"data={data}"])
    cells = make_cells(experiment, size, experiment.rows, range(3), told, Images(50_000))
    found: dict[str, Result] = {}
    for cell in cells:
        mine = numbers.get(cell.row, [])
        if cell.seed < len(mine):
            metrics = {"top1": mine[cell.seed], "top5": mine[cell.seed] + 10, "online": 1.0}
            ran_on = {"device": "CPU, 2 threads"}
            found[cell.name] = result_of(cell, DONE, metrics=metrics, seconds=60.0, ran_on=ran_on)
    plan = {cell.name: cell for cell in cells}
    table = build(experiment, data, plan, found)
    verdicts = claims.judge(experiment.claims, values(found, "top1"))
    return Outcome(experiment, size, data, cells, found, table, verdicts)


def line(table: pd.DataFrame, row: str) -> dict:
    lines = table[table["row"] == row].to_dict("records")
    assert len(lines) == 1
    return lines[0]


def test_published_ours_and_difference() -> None:
    made = outcome("sscl_table3", "cifar100", {"simclr": [52.0, 53.0, 54.0], "sscl": [60.0, 61.0]})
    sscl = line(made.table, "sscl")
    assert (sscl["published_top1"], sscl["published_top5"]) == (60.01, 86.34)
    assert (sscl["ours_top1"], sscl["ours_top5"], sscl["seeds"]) == (60.5, 70.5, 2)
    assert sscl["ours_top1_std"] == pytest.approx(math.sqrt(0.5))  # the sample's
    assert sscl["difference_top1"] == pytest.approx(0.49)
    assert sscl["published_top1_to_baseline"] == pytest.approx(60.01 - 52.02)
    assert sscl["ours_top1_to_baseline"] == pytest.approx(7.5)
    assert sscl["source"] == "Dong et al. 2023, Table 3"
    hcl = line(made.table, "hcl")
    assert hcl["seeds"] == 0
    assert math.isnan(hcl["ours_top1"])
    shown = readable(made.table, "top1").set_index("row")
    assert shown.loc["SimCLR-SSCL", "ours, top-1"] == "60.50 ± 0.71"
    assert shown.loc["HCL", "ours, top-1"] == ""


def test_another_dataset_has_other_published_numbers() -> None:
    assert line(outcome("sscl_table3", "cifar10", {}).table, "sscl")["published_top1"] == 86.20


def test_numbers_of_another_dataset_are_shown_but_not_subtracted() -> None:
    made = outcome("cai_figure2", "cifar100", {"all": [50.0, 51.0], "easiest_95": [45.0, 46.0]})
    easiest = made.table[made.table["row"] == "easiest_95"].to_dict("records")[0]
    assert (easiest["published_top1"], easiest["published_on"]) == (62.10, "imagenet")
    assert easiest["published_top1_std"] == 0.24
    assert math.isnan(easiest["difference_top1"])
    assert easiest["published_top1_to_baseline"] == pytest.approx(62.10 - 67.48)
    assert easiest["ours_top1_to_baseline"] == pytest.approx(-5)
    assert "The published numbers are of imagenet" in page.page(made)


def test_a_row_that_is_printed_twice_has_two_lines() -> None:
    table = outcome("cai_tableA1", "imagenet", {"hardest_5": [66.0, 67.0]}).table
    twice = table[table["row"] == "hardest_5"]
    assert list(twice["published_top1"]) == [66.69, 67.32]
    assert set(twice["ours_top1"]) == {66.5}
    # The other half's number is of other runs.
    assert line(table, "hardest_10")["published_top1_to_baseline"] == pytest.approx(67.15 - 67.32)
    assert line(table, "band_90_95")["published_top1_to_baseline"] == pytest.approx(51.89 - 66.69)


def test_the_temperature_chooses_among_a_tables_columns() -> None:
    table = outcome("cai_table1", "imagenet", {}).table
    assert line(table, "all_cold")["published_top1"] == 64.78
    assert line(table, "all_warm")["published_top1"] == 67.48
    table = outcome("cai_figure3", "imagenet", {}).table
    assert line(table, "all_t01")["published_top1"] == 66.44
    assert line(table, "all_t03")["published_top1"] == 67.03  # the row whose τ can't be read


def test_the_page_says_what_it_is(tmp_path: Path) -> None:
    numbers = {"simclr": [52.0, 52.5, 52.2], "sscl": [60.0, 60.5, 60.1], "dcl": [50.0]}
    made = outcome("sscl_table3", "cifar100", numbers, scale="minute")
    failed = next(cell for cell in made.cells if cell.name == "byol-seed0")
    broken = {**made.results, "byol-seed0": result_of(failed, FAILED, error="ConfigError: x | y")}
    made = Outcome(
        made.experiment, made.scale, made.data, made.cells, broken, made.table, made.verdicts
    )
    text = page.write(tmp_path, made).read_text()
    assert "run on cifar100 at the scale *minute*" in text
    assert "7 of 21 cells have a result" in text
    assert "Changed against the published settings, with 3 seeds for each row:" in text
    assert "- `max_epochs=5`\n" in text
    assert "- `negatives.mix.pairs=4` (sscl)" in text
    assert "| SSCL is better than SimCLR. | confirmed | +7.97 points" in text
    assert "| DCL is better than SimCLR. | undecided | -2.23 points; a row has one seed" in text
    assert "- byol-seed0: ConfigError: x | y" in text
    assert "not run yet: " in text
    assert "device CPU, 2 threads. 7 minutes for all cells together" in text
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert list(cells["top1"].dropna()) == [52.0, 50.0, 60.0, 52.5, 60.5, 52.2, 60.1]
    assert cells.loc[cells["cell"] == "byol-seed0", "state"].item() == "failed"
    assert "negatives=sscl" in cells.loc[cells["cell"] == "sscl-seed0", "pretrain"].item()
    assert len(pd.read_csv(tmp_path / "claims.csv")) == 6
    assert len(pd.read_csv(tmp_path / "table.csv")) == 7
    heads = [row for row in text.splitlines() if row.startswith("|")]
    assert {row.count("|") - row.count("\\|") for row in heads} == {8, 5}  # every table is whole


def test_at_the_papers_scale_the_page_says_so() -> None:
    assert "The settings are the published ones, with 3 seeds for each row." in page.page(
        outcome("sscl_table4", "cifar100", {})
    )


def test_the_terminal_says_what_the_published_numbers_are_of() -> None:
    shown = Console(width=120, file=io.StringIO())
    numbers = {"all": [50.0, 51.0], "hardest_5": [45.0, 46.5]}
    show(outcome("cai_figure2", "cifar100", numbers), Path("page.md"), shown)
    text = " ".join(shown.file.getvalue().split())
    assert "on cifar100, scale paper: top-1 in percent; published on imagenet" in text
    assert "The hardest 5 % suffice: they come near all negatives. UNDECIDED (-4.75 points" in text
