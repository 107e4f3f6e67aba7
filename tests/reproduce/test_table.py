"""The table, the page and the terminal: published numbers beside ours."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from solo_hardneg.reproduce import claims, page
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.page import Outcome
from solo_hardneg.reproduce.results import DONE, FAILED, Result, result_of
from solo_hardneg.reproduce.show import show
from solo_hardneg.reproduce.table import build, readable, values


def outcome(
    name: str,
    data: str,
    numbers: Mapping[str, Sequence[float]],
    changed: Sequence[str] = (),
    errors: Mapping[str, str] | None = None,
) -> Outcome:
    """A reproduction of these rows by two seeds, with these top-1 accuracies, top-5 10 higher."""
    experiment, errors = load_experiment(name), errors or {}
    cells: list[Cell] = []
    found: dict[str, Result] = {}
    for row in (experiment.row(name) for name in numbers):
        overrides = (f"data={data}", *experiment.pretrain, *row.overrides)
        own = (*changed, f"negatives.mix.pairs={len(row.name)}") if changed else ()
        for seed in range(2):
            cell = Cell(
                f"{row.name}-seed{seed}", row.name, seed, row.config, overrides, (), own, "0"
            )
            cells.append(cell)
            if cell.name in errors:
                found[cell.name] = result_of(cell, FAILED, error=errors[cell.name])
            elif seed < len(numbers[row.name]):
                top1 = numbers[row.name][seed]
                more: dict[str, Any] = {"metrics": {"top1": top1, "top5": top1 + 10, "online": 1.0}}
                more["ran_on"] = {"device": "CPU, 2 threads"}
                found[cell.name] = result_of(cell, DONE, seconds=60.0, **more)
    table = build(experiment, data, {cell.name: cell for cell in cells}, found)
    verdicts = claims.judge(experiment.claims, values(found, "top1"))
    return Outcome(experiment, load_scale("minute"), data, cells, found, table, verdicts)


def line(table: pd.DataFrame, row: str) -> dict:
    lines = table[table["row"] == row].to_dict("records")
    assert len(lines) == 1
    return lines[0]


def test_published_ours_and_difference() -> None:
    made = outcome("sscl_table3", "cifar100", {"simclr": [52.0, 54.0], "sscl": [60.0, 61.0]})
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


def test_each_dataset_has_its_published_numbers_and_others_are_not_subtracted() -> None:
    assert line(outcome("sscl_table3", "cifar10", {}).table, "sscl")["published_top1"] == 86.20
    made = outcome("cai_figure2", "cifar100", {"all": [50.0, 51.0], "easiest_95": [45.0, 46.0]})
    easiest = made.table[made.table["row"] == "easiest_95"].to_dict("records")[0]
    assert (easiest["published_top1"], easiest["published_on"]) == (62.10, "imagenet")
    assert easiest["published_top1_std"] == 0.24
    assert math.isnan(easiest["difference_top1"])
    assert easiest["published_top1_to_baseline"] == pytest.approx(62.10 - 67.48)
    assert easiest["ours_top1_to_baseline"] == pytest.approx(-5)
    assert "The published numbers are of imagenet" in page.page(made)
    shown = Console(width=120, file=io.StringIO())
    show(made, Path("page.md"), shown)
    text = " ".join(shown.file.getvalue().split())
    assert "on cifar100, scale minute: top-1 in percent; published on imagenet" in text
    assert (
        "The hardest 5 % suffice: they come near all negatives. UNDECIDED (hardest_5 has no" in text
    )


def test_a_row_that_is_printed_twice_has_two_lines() -> None:
    numbers = {"hardest_5": [66.0, 67.0], "hardest_10": [], "band_90_95": []}
    table = outcome("cai_tableA1", "imagenet", numbers).table
    twice = table[table["row"] == "hardest_5"]
    assert list(twice["published_top1"]) == [66.69, 67.32]
    assert set(twice["ours_top1"]) == {66.5}
    # The other half's number is of other runs.
    assert line(table, "hardest_10")["published_top1_to_baseline"] == pytest.approx(67.15 - 67.32)
    assert line(table, "band_90_95")["published_top1_to_baseline"] == pytest.approx(51.89 - 66.69)


def test_the_temperature_chooses_among_a_tables_columns() -> None:
    table = outcome("cai_table1", "imagenet", {"all_cold": [], "all_warm": []}).table
    assert line(table, "all_cold")["published_top1"] == 64.78
    assert line(table, "all_warm")["published_top1"] == 67.48
    table = outcome("cai_figure3", "imagenet", {"all_t01": [], "all_t03": []}).table
    assert line(table, "all_t01")["published_top1"] == 66.44
    assert line(table, "all_t03")["published_top1"] == 67.03  # the row whose τ can't be read


def test_the_page_says_what_it_is(tmp_path: Path) -> None:
    numbers = {"simclr": [52.0, 52.5], "byol": [], "dcl": [50.0], "sscl": [60.0, 60.5]}
    errors = {"byol-seed0": "ConfigError: x | y"}
    made = outcome("sscl_table3", "cifar100", numbers, ("max_epochs=5",), errors)
    text = page.write(tmp_path, made).read_text()
    assert "run on cifar100 at the scale *minute*" in text
    assert "5 of 8 cells have a result" in text
    assert "Changed against the published settings, with 2 seeds for each row:" in text
    assert "- `max_epochs=5`\n" in text
    assert "- `negatives.mix.pairs=4` (byol, sscl)" in text
    assert "| SSCL is better than SimCLR. | confirmed | +8.00 points" in text
    assert "| DCL is better than SimCLR. | undecided | -2.25 points; a row has one seed" in text
    assert "- byol-seed0: ConfigError: x | y" in text
    assert "- not run yet: byol-seed1, dcl-seed1" in text
    assert "device CPU, 2 threads. 5 minutes for all cells together" in text
    tables = [row for row in text.splitlines() if row.startswith("|")]
    assert {row.count("|") - row.count("\\|") for row in tables} == {8, 5}  # every table is whole
    cells = pd.read_csv(tmp_path / "cells.csv").set_index("cell")
    assert list(cells["top1"].dropna()) == [52.0, 52.5, 50.0, 60.0, 60.5]
    assert cells.loc["byol-seed0", "state"] == "failed"
    assert "negatives=sscl" in cells.loc["sscl-seed0", "pretrain"]
    assert len(pd.read_csv(tmp_path / "claims.csv")) == 6
    assert len(pd.read_csv(tmp_path / "table.csv")) == 7

    unchanged = replace(made, cells=[replace(cell, changed=()) for cell in made.cells])
    assert "The settings are the published ones, with 2 seeds for each row." in page.page(unchanged)
