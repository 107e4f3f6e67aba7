"""Means, differences, notes and the papers' numbers, and how tables show them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import (
    HARDEST,
    MOCO,
    changed,
    make_runs,
    write_args,
    write_linear,
    write_metrics,
)

from solo_hardneg.report.comparison import Comparison, GroupResult, Value, compare_groups
from solo_hardneg.report.tables import (
    accuracy_table,
    format_p,
    format_percent,
    format_points,
    group_table,
    published_table,
)
from solo_hardneg.runs.find import Note, find_runs
from solo_hardneg.runs.groups import find_baselines, group_runs
from solo_hardneg.study.significance import welch

FEW = st.lists(st.integers(0, 10_000).map(lambda n: n / 100), min_size=2, max_size=6)


def comparison_of(*paths: Path) -> Comparison:
    groups = group_runs(find_runs(paths).runs, [])
    return compare_groups(groups, find_baselines(groups))


def row_of(comparison: Comparison, label: str) -> GroupResult:
    return next(row for row in comparison.rows if row.group.label == label)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Eight runs in four groups."""
    make_runs(root := tmp_path_factory.mktemp("eight"))
    return comparison_of(root)


@given(FEW)
def test_mean_and_deviation_in_plain_loops(values: list[float]) -> None:
    mean = sum(values) / len(values)
    squares = sum((v - mean) ** 2 for v in values)
    found = Value(tuple(values))
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(math.sqrt(squares / (len(values) - 1)), abs=1e-9)


def test_values_of_fewer_than_two_seeds() -> None:
    assert math.isnan(Value((3.0,)).std)
    assert math.isnan(Value(()).mean)


def test_differences_to_the_baseline(eight: Comparison) -> None:
    hard, everything = row_of(eight, "MoCo v2: hardest_5"), row_of(eight, "MoCo v2: all")
    assert hard.values["linear"].values == (55.0, 56.0, 55.5)
    assert hard.baseline is everything.group
    difference = hard.differences["linear"]
    assert difference.points == pytest.approx(-5.0)
    assert difference.p == pytest.approx(welch([55.0, 56.0, 55.5], [60.0, 61.0, 60.5]))
    assert everything.differences == {}
    one_seed = row_of(eight, "SimCLR: sscl").differences["linear"]
    assert one_seed.points == pytest.approx(3.0)
    assert math.isnan(one_seed.p)
    assert math.isnan(one_seed.p_holm)
    assert eight.metrics == ["linear", "linear5", "linear_knn", "online"]
    table = accuracy_table(eight).set_index("group")["linear, difference"].to_dict()
    assert table == {
        "MoCo v2: all": "",
        "MoCo v2: hardest_5": "−5.0 (p < 0.001)",
        "SimCLR: all": "",
        "SimCLR: sscl": "+3.0",
    }


def test_p_values_are_corrected_over_the_compared_groups(tmp_path: Path) -> None:
    """With two groups against one, Holm doubles the smaller p, and the larger stays."""
    policies = ({}, HARDEST, {"keep": {"band": [0.9, 1.0]}})
    accuracies = ((60.0, 61.0, 60.5), (56.0, 57.0, 56.5), (59.0, 62.0, 58.5))
    for negatives, values in zip(policies, accuracies, strict=True):
        for seed, value in enumerate(values):
            args = changed(MOCO, seed=seed, negatives=negatives, max_epochs=1)
            write_metrics(write_args(tmp_path / "m" / f"{len(negatives)}{value}", args), [value])
    comparison = comparison_of(tmp_path)
    hard, ten = (row_of(comparison, f"MoCo v2: hardest_{n}").differences["online"] for n in (5, 10))
    assert hard.p < 0.05 < ten.p
    assert hard.p_holm == pytest.approx(2 * hard.p)
    assert ten.p_holm == pytest.approx(ten.p)
    found = group_table(comparison).set_index("group").loc["MoCo v2: hardest_5"]
    assert (found["online_p"], found["online_p_holm"]) == (hard.p, hard.p_holm)
    shown = accuracy_table(comparison).set_index("group")["online, difference"]
    assert shown["MoCo v2: hardest_5"] == f"−4.0 ({format_p(2 * hard.p)})"


def test_published_numbers_beside_ours(eight: Comparison) -> None:
    everything = row_of(eight, "MoCo v2: all").published
    found = {(p.cell.table, p.cell.metric): p for p in everything}
    top1 = found["Table 1", "top1"]
    assert (top1.cell.value, top1.cell.std, top1.cell.seeds) == (67.48, 0.07, 3)
    assert top1.distance == pytest.approx(60.5 - 67.48)
    assert math.isnan(top1.difference), "it is the baseline itself"
    hard = {(p.cell.table, p.cell.metric): p for p in row_of(eight, "MoCo v2: hardest_5").published}
    place = ("Table A1 (first half)", "top1")
    assert hard[place].difference == pytest.approx(66.69 - 67.48), "this table has no baseline"
    sscl = {(p.cell.value, p.cell.metric): p for p in row_of(eight, "SimCLR: sscl").published}
    assert sscl[86.2, "top1"].difference == pytest.approx(86.2 - 82.35, abs=0.2)
    shown = published_table(eight).set_index("group")
    assert "67.48 ± 0.07 top-1, 3 seeds (Cai et al. 2020, Table 1)" in set(shown["published"])
    assert "−0.8" in set(shown["published difference to the baseline"])


def test_no_published_numbers_for_other_data(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "b", changed(MOCO, data__dataset="digits"))
    comparison = comparison_of(tmp_path)
    assert comparison.rows[0].published == []
    assert len(published_table(comparison)) == 0


def test_empty_columns_are_left_out(tmp_path: Path) -> None:
    write_metrics(write_args(tmp_path / "a" / "b", MOCO), [1.0])
    assert list(published_table(comparison_of(tmp_path))) == ["group", "published"]


# ---------------------------------------------------------------------- notes


def test_other_differences_from_the_baseline_are_noted(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "1", MOCO)
    hard = changed(MOCO, negatives=HARDEST, method_kwargs__temperature=0.1)
    write_args(tmp_path / "a" / "2", hard)
    text = (
        "differs from MoCo v2: all, temperature 0.2 in more than the negatives: temperature 0.1, "
        "not temperature 0.2."
    )
    assert comparison_of(tmp_path).notes == [Note("MoCo v2: hardest_5, temperature 0.1", text)]


def test_linear_evaluations_of_different_settings_are_noted(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = write_args(tmp_path / "a" / str(seed), changed(MOCO, seed=seed))
        write_linear(tmp_path, run, 60.0, "imagenet", lr=float(seed))
    (note,) = comparison_of(tmp_path).notes
    assert note.where == "linear evaluations of the runs on imagenet"
    assert note.text.startswith("differ in optimizer.lr (1.0, 2.0), so their accuracies can't")


# ---------------------------------------------------------------------- unfinished runs


def write_groups(root: Path, epochs: dict[str, int], linear_epochs: int = 2) -> Comparison:
    """MoCo v2 on all negatives and the hardest 5 %, each trained for some of 4 epochs."""
    for name, number in epochs.items():
        args = changed(MOCO, negatives=HARDEST if name.startswith("hard") else {})
        args = changed(args, seed=len(name), data__dataset="cifar10")
        run = write_metrics(write_args(root / "mocov2" / name, args), [50.0 + number] * number)
        linear = write_linear(root, run, 40.0 + 10 * number, "cifar10")
        if name.startswith("hard"):
            write_metrics(linear, [40.0 + 10 * number] * linear_epochs)
    return comparison_of(root)


@pytest.mark.parametrize(
    ("epochs", "linear_epochs", "progress"),
    [(3, 2, "3 of 4 epochs"), (4, 1, "linear evaluation: 1 of 2 epochs")],
)
def test_unfinished_runs_are_marked(
    tmp_path: Path, epochs: int, linear_epochs: int, progress: str
) -> None:
    comparison = write_groups(tmp_path, {"all": 4, "hard": epochs}, linear_epochs)
    hard = row_of(comparison, "MoCo v2: hardest_5")
    assert hard.unfinished["linear"] == progress
    assert hard.unfinished.get("online", "") == ("" if epochs == 4 else progress)
    assert row_of(comparison, "MoCo v2: all").unfinished == {}
    labels = ["MoCo v2: all", f"MoCo v2: hardest_5 ({progress})"]
    assert accuracy_table(comparison)["group"].tolist() == labels
    assert group_table(comparison)["unfinished"].tolist() == ["", progress]


def test_finished_seeds_count_alone(tmp_path: Path) -> None:
    comparison = write_groups(tmp_path, {"all": 4, "hard": 4, "hard2": 3})
    hard = row_of(comparison, "MoCo v2: hardest_5")
    assert hard.values["linear"].values == (80.0,)
    assert hard.unfinished == {}
    (note,) = comparison.notes
    assert note.where == "mocov2/hard2"
    assert note.text.startswith("not counted beside seeds that have finished: linear, ")


# ---------------------------------------------------------------------- formats


def test_formats() -> None:
    assert format_percent(Value((96.06,))) == "96.1"
    assert format_percent(Value((96.0, 97.0))) == "96.5 ± 0.7"
    assert format_percent(Value(())) == ""
    assert [format_points(v) for v in (4.66, -3.0, math.nan)] == ["+4.7", "−3.0", ""]
    assert [format_p(p) for p in (math.nan, 0.0004, 0.0312)] == ["", "p < 0.001", "p = 0.031"]
