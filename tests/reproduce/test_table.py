"""The table: published accuracies beside reproduced ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest

from solo_hardneg.reproduce.claims import judge
from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.grid import Cell
from solo_hardneg.reproduce.render import Outcome
from solo_hardneg.reproduce.store import DONE, FAILED, Result
from solo_hardneg.reproduce.table import format_table, group_accuracies, make_table


def make_outcome(
    name: str,
    data: str,
    numbers: Mapping[str, Sequence[float]],
    changed: Sequence[str] = (),
    errors: Mapping[str, str] | None = None,
) -> Outcome:
    """Makes a reproduction: two seeds per row, these top-1 accuracies, and top-5 10 higher."""
    experiment, errors = load_experiment(name), errors or {}
    cells: list[Cell] = []
    results: dict[str, Result] = {}
    for row in (experiment.rows[name] for name in numbers):
        overrides = (f"data={data}", *experiment.pretrain, *row.overrides)
        changes = (*changed, f"negatives.mix.pairs={len(row.name)}") if changed else ()
        for seed in range(2):
            name = f"{row.name}-seed{seed}"
            cells.append(Cell(name, row.name, seed, row.config, overrides, (), changes, "0"))
            if name in errors:
                results[name] = Result(cells[-1], FAILED, error=errors[name])
            elif seed < len(numbers[row.name]):
                top1 = numbers[row.name][seed]
                metrics = {"top1": top1, "top5": top1 + 10, "online": 1.0}
                ran_on = {"device": "CPU, 2 threads"}
                results[name] = Result(cells[-1], DONE, metrics, seconds=60.0, ran_on=ran_on)
    table = make_table(experiment, data, cells, results.values())
    verdicts = judge(experiment.claims, group_accuracies(results.values(), "top1"))
    return Outcome(experiment, load_scale("minute"), data, cells, results, table, verdicts)


def line_of(table: pd.DataFrame, row: str) -> dict[str, Any]:
    [line] = table[table["row"] == row].to_dict("records")
    return line


def test_published_ours_and_difference() -> None:
    table = make_outcome("sscl_table3", "cifar100", {"simclr": [52, 54], "sscl": [60, 61]}).table
    sscl = line_of(table, "sscl")
    assert (sscl["published_top1"], sscl["published_top5"]) == (60.01, 86.34)
    assert (sscl["ours_top1"], sscl["ours_top5"], sscl["seeds"]) == (60.5, 70.5, 2)
    assert sscl["ours_top1_std"] == pytest.approx(math.sqrt(0.5))  # n - 1
    assert sscl["difference_top1"] == pytest.approx(0.49)
    assert sscl["published_top1_to_baseline"] == pytest.approx(60.01 - 52.02)
    assert sscl["ours_top1_to_baseline"] == pytest.approx(7.5)
    assert sscl["source"] == "Dong et al. 2023, Table 3"
    hcl = line_of(table, "hcl")
    assert hcl["seeds"] == 0
    assert math.isnan(hcl["ours_top1"])
    shown = format_table(table, "top1").set_index("row")
    assert shown.loc["SimCLR-SSCL", "ours, top-1"] == "60.50 ± 0.71"
    assert shown.loc["HCL", "ours, top-1"] == ""


def test_published_numbers_of_another_dataset_are_not_subtracted() -> None:
    table = make_outcome("sscl_table3", "cifar10", {}).table
    assert line_of(table, "sscl")["published_top1"] == 86.20
    numbers = {"all": [50.0, 51.0], "easiest_95": [45.0, 46.0]}
    table = make_outcome("cai_figure2", "cifar100", numbers).table
    easiest = table[table["row"] == "easiest_95"].to_dict("records")[0]
    assert (easiest["published_top1"], easiest["published_on"]) == (62.10, "imagenet")
    assert easiest["published_top1_std"] == 0.24
    assert math.isnan(easiest["difference_top1"])
    assert easiest["published_top1_to_baseline"] == pytest.approx(62.10 - 67.48)
    assert easiest["ours_top1_to_baseline"] == pytest.approx(-5)


def test_a_row_that_is_printed_twice_has_two_lines() -> None:
    numbers = {"hardest_5": [66.0, 67.0], "hardest_10": [], "band_90_95": []}
    table = make_outcome("cai_tableA1", "imagenet", numbers).table
    twice = table[table["row"] == "hardest_5"]
    assert list(twice["published_top1"]) == [66.69, 67.32]
    assert set(twice["ours_top1"]) == {66.5}
    # The table's two halves are of different runs.
    hardest = line_of(table, "hardest_10")
    assert hardest["published_top1_to_baseline"] == pytest.approx(67.15 - 67.32)
    band = line_of(table, "band_90_95")
    assert band["published_top1_to_baseline"] == pytest.approx(51.89 - 66.69)


def test_the_temperature_chooses_among_published_lines() -> None:
    table = make_outcome("cai_table1", "imagenet", {"all_cold": [], "all_warm": []}).table
    assert line_of(table, "all_cold")["published_top1"] == 64.78
    assert line_of(table, "all_warm")["published_top1"] == 67.48
    table = make_outcome("cai_figure3", "imagenet", {"all_t01": [], "all_t03": []}).table
    assert line_of(table, "all_t01")["published_top1"] == 66.44
    assert line_of(table, "all_t03")["published_top1"] == 67.03  # its τ is illegible
