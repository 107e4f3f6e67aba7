"""Means, differences and tests against plain loops and SciPy, and the papers' numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import (
    HARDEST,
    MOCO,
    SIMCLR,
    changed,
    make_runs,
    write_args,
    write_linear,
    write_metrics,
    write_records,
)

from solo_hardneg.analysis import findings
from solo_hardneg.analysis.courses import course
from solo_hardneg.analysis.groups import baselines, group
from solo_hardneg.analysis.runs import Run, find
from solo_hardneg.analysis.summary import (
    Row,
    Summary,
    Value,
    sampling_noise,
    summarize,
)
from solo_hardneg.analysis.tables import (
    beside,
    markdown,
    numbers,
    p_value,
    percent,
    points,
    readable,
)
from solo_hardneg.significance import welch

FEW = st.lists(st.integers(0, 10_000).map(lambda n: n / 100), min_size=2, max_size=6)


def summary_of(*paths: Path) -> Summary:
    groups = group(find(paths).runs, [])
    return summarize(groups, baselines(groups))


def row(summary: Summary, label: str) -> Row:
    return next(row for row in summary.rows if row.group.label == label)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Eight runs in four groups."""
    make_runs(root := tmp_path_factory.mktemp("eight"))
    return summary_of(root)


@given(FEW)
def test_mean_and_deviation_in_plain_loops(values: list[float]) -> None:
    mean = sum(values) / len(values)
    squares = sum((v - mean) ** 2 for v in values)
    found = Value(tuple(values))
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(math.sqrt(squares / (len(values) - 1)), abs=1e-9)


def test_one_seed_has_no_deviation() -> None:
    assert math.isnan(Value((3.0,)).std)
    assert math.isnan(Value(()).mean)
    assert percent(Value((96.06,))) == "96.1"
    assert percent(Value((96.0, 97.0))) == "96.5 ± 0.7"
    assert percent(Value(())) == ""


def test_the_table(eight: Summary) -> None:
    hard, everything = row(eight, "MoCo v2: hardest_5"), row(eight, "MoCo v2: all")
    assert hard.values["linear"].values == (55.0, 56.0, 55.5)
    assert hard.baseline is everything.group
    difference = hard.differences["linear"]
    assert difference.points == pytest.approx(-5.0)
    assert difference.p == pytest.approx(welch([55.0, 56.0, 55.5], [60.0, 61.0, 60.5]))
    assert everything.differences == {}
    one_seed = row(eight, "SimCLR: sscl").differences["linear"]
    assert one_seed.points == pytest.approx(3.0)
    assert math.isnan(one_seed.p)
    assert math.isnan(one_seed.p_holm)
    assert eight.metrics == ["linear", "linear5", "linear_knn", "online"]
    table = readable(eight).set_index("group")["linear, difference"].to_dict()
    assert table == {
        "MoCo v2: all": "",
        "MoCo v2: hardest_5": "−5.0 (p < 0.001)",
        "SimCLR: all": "",
        "SimCLR: sscl": "+3.0",
    }


def test_p_values_are_corrected_for_the_groups_that_are_compared(tmp_path: Path) -> None:
    """Two groups against one: Holm doubles the smaller p, and the larger stays."""
    seeds = ((60.0, 61.0, 60.5), (56.0, 57.0, 56.5), (59.0, 62.0, 58.5))
    summary = write_seeds(tmp_path, *seeds)
    hard, ten = (row(summary, f"MoCo v2: hardest_{n}").differences["online"] for n in (5, 10))
    assert hard.p < 0.05 < ten.p
    assert hard.p_holm == pytest.approx(2 * hard.p)
    assert ten.p_holm == pytest.approx(ten.p)
    found = numbers(summary).set_index("group").loc["MoCo v2: hardest_5"]
    assert (found["online_p"], found["online_p_holm"]) == (hard.p, hard.p_holm)
    shown = readable(summary).set_index("group").loc["MoCo v2: hardest_5", "online, difference"]
    assert shown == f"−4.0 ({p_value(2 * hard.p)})"
    (tested, *_) = findings.differences(summary, "online")
    assert "Of 2 differences" in tested
    assert "Holm" in tested


def test_published_numbers_stand_beside_ours(eight: Summary) -> None:
    everything = row(eight, "MoCo v2: all").published
    found = {(p.cell.table, p.cell.metric): p for p in everything}
    top1 = found["Table 1", "top1"]
    assert (top1.cell.value, top1.cell.std, top1.cell.seeds) == (67.48, 0.07, 3)
    assert top1.distance == pytest.approx(60.5 - 67.48)
    assert math.isnan(top1.difference), "it is the baseline itself"
    hard = {(p.cell.table, p.cell.metric): p for p in row(eight, "MoCo v2: hardest_5").published}
    place = ("Table A1 (first half)", "top1")
    assert hard[place].difference == pytest.approx(66.69 - 67.48), "that table has no baseline"
    sscl = {(p.cell.value, p.cell.metric): p for p in row(eight, "SimCLR: sscl").published}
    assert sscl[86.2, "top1"].difference == pytest.approx(86.2 - 82.35, abs=0.2)
    shown = beside(eight).set_index("group")
    assert "67.48 ± 0.07 top-1, 3 seeds (Cai et al. 2020, Table 1)" in set(shown["published"])
    assert "−0.8" in set(shown["published difference to the baseline"])


def test_no_published_numbers_for_other_data(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "b", changed(MOCO, data__dataset="digits"))
    summary = summary_of(tmp_path)
    assert summary.rows[0].published == []
    assert len(beside(summary)) == 0


def test_what_else_differs_from_the_baseline(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "1", MOCO)
    hard = changed(MOCO, negatives=HARDEST, method_kwargs__temperature=0.1)
    write_args(tmp_path / "a" / "2", hard)
    summary = summary_of(tmp_path)
    assert [r.differing for r in summary.rows] == [[], ["temperature 0.1, not temperature 0.2"]]


def test_linear_evaluations_of_different_settings_are_noted(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = write_args(tmp_path / "a" / str(seed), changed(MOCO, seed=seed))
        write_linear(tmp_path, run, 60.0, "imagenet", lr=float(seed))
    (note,) = summary_of(tmp_path).notes
    assert note.where == "linear evaluations of the runs on imagenet"
    assert note.text.startswith("they differ in optimizer.lr (1.0, 2.0), so their accuracies can't")


def test_sampling_noise_by_trial() -> None:
    """Two models of 90 %, on 360 images each: how far do 95 of 100 pairs lie apart?"""
    history = pd.DataFrame({"epoch": [0], "metric": ["val_acc1"], "value": [90.0]})
    args = changed(MOCO, data__dataset="digits")
    (one,) = group([Run(Path("a/b"), args, history)], [])
    found = sampling_noise(Row(one, None, {"online": Value((90.0,))}, {}), "online")
    hits = np.random.default_rng(0).binomial(360, 0.9, size=(2, 200_000))
    apart = abs(hits[0] - hits[1]) / 3.6
    assert np.quantile(apart, 0.95) == pytest.approx(found, abs=0.3)


def test_noise_is_unknown_where_the_number_of_images_is() -> None:
    for change in ({"data__dataset": "custom"}, {"limit_val_batches": 3}):
        (one,) = group([Run(Path("a/b"), changed(SIMCLR, **change))], [])
        assert math.isnan(sampling_noise(Row(one, None, {"online": Value((9.0,))}, {}), "online"))


# ---------------------------------------------------------------------- sentences


def test_what_stands_out(eight: Summary) -> None:
    said = findings.sentences(eight, {})
    assert said[0].startswith("8 runs in 4 groups on cifar10 and imagenet")
    text = " ".join(said)
    assert "On imagenet, the highest linear accuracy is that of MoCo v2: all (60.5 ± 0.5 %)" in text
    assert "MoCo v2: hardest_5 is 5.0 points below MoCo v2: all (p < 0.001)." in text
    assert "One difference could not be tested" in text
    assert "differences of up to about 1.0 points can't be told from noise" in text
    assert "Larger than that, for this seed: SimCLR: sscl (+3.0)." in text


def write_seeds(root: Path, *accuracies: tuple[float, ...]) -> Summary:
    """Groups on all negatives, the hardest 5 % and 10 %, with these accuracies of their seeds."""
    policies = ({}, HARDEST, {"keep": {"band": [0.9, 1.0]}})
    for number, values in enumerate(accuracies):
        for seed, value in enumerate(values):
            args = changed(MOCO, seed=seed, negatives=policies[number], max_epochs=1)
            args = changed(args, data__dataset="cifar10")
            write_metrics(write_args(root / "m" / f"{number}-{seed}", args), [value])
    return summary_of(root)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (((50.0, 60.0), (51.0, 60.5)), "tested over seeds can't be told from chance"),
        (((50.0,), (50.5,)), "None is larger than that."),
        (((50.0,), (53.5,)), "Larger than that, for this seed: MoCo v2: hardest_5 (+3.5)."),
    ],
)
def test_no_more_is_said_than_the_numbers_bear(
    tmp_path: Path, accuracies: tuple[tuple[float, ...], ...], expected: str
) -> None:
    text = " ".join(findings.sentences(write_seeds(tmp_path, *accuracies), {}))
    assert expected in text
    assert "p < 0.001" not in text


def test_nothing_known_nothing_said(tmp_path: Path) -> None:
    write_args(tmp_path / "a" / "b", changed(MOCO, negatives=HARDEST))
    _, *said = findings.sentences(summary_of(tmp_path), {})
    assert said == ["No accuracy is known of any of them."]


def write_groups(root: Path, epochs: dict[str, int], linear_epochs: int = 2) -> Summary:
    """MoCo v2 on all negatives and on the hardest 5 %, each trained for so many of 4 epochs."""
    for name, number in epochs.items():
        args = changed(MOCO, negatives=HARDEST if name.startswith("hard") else {})
        args = changed(args, seed=len(name), data__dataset="cifar10")
        run = write_metrics(write_args(root / "mocov2" / name, args), [50.0 + number] * number)
        linear = write_linear(root, run, 40.0 + 10 * number, "cifar10")
        if name.startswith("hard"):
            write_metrics(linear, [40.0 + 10 * number] * linear_epochs)
    return summary_of(root)


def test_runs_that_have_not_finished_make_no_headline(tmp_path: Path) -> None:
    summary = write_groups(tmp_path, {"all": 4, "hard": 3})
    hard = row(summary, "MoCo v2: hardest_5")
    assert hard.unfinished["linear"] == hard.unfinished["online"] == "3 of 4 epochs"
    assert row(summary, "MoCo v2: all").unfinished == {}
    _, nothing, unfinished = findings.sentences(summary, {})
    assert nothing.startswith("Nothing can be compared: no group and its baseline both have")
    assert "not compared here: MoCo v2: hardest_5 (3 of 4 epochs)." in unfinished
    assert readable(summary)["group"].tolist() == [
        "MoCo v2: all",
        "MoCo v2: hardest_5 (3 of 4 epochs)",
    ]
    assert numbers(summary)["unfinished"].tolist() == ["", "3 of 4 epochs"]


@pytest.mark.parametrize(
    ("epochs", "linear_epochs", "expected"),
    [
        ({"all": 3, "hard": 4}, 2, "not compared here: MoCo v2: all (3 of 4 epochs)."),
        ({"all": 4, "hard": 4}, 1, "MoCo v2: hardest_5 (linear evaluation: 1 of 2 epochs)."),
        ({"all": 4, "hard": 4}, 1, "The highest online accuracy"),
        ({"hard": 3}, 2, "No accuracy is known of a finished run."),
    ],
)
def test_nothing_is_compared_to_what_has_not_finished(
    tmp_path: Path, epochs: dict[str, int], linear_epochs: int, expected: str
) -> None:
    summary = write_groups(tmp_path, epochs, linear_epochs)
    assert expected in " ".join(findings.sentences(summary, {}))


def test_seeds_that_have_finished_count_alone(tmp_path: Path) -> None:
    summary = write_groups(tmp_path, {"all": 4, "hard": 4, "hard2": 3})
    hard = row(summary, "MoCo v2: hardest_5")
    assert hard.values["linear"].values == (80.0,)
    assert hard.unfinished == {}
    (note,) = summary.notes
    assert note.where == "mocov2/hard2"
    assert note.text.startswith("not counted beside seeds that have finished: linear, ")


def test_the_end_of_training_is_that_of_finished_runs(tmp_path: Path) -> None:
    for name, epochs, hard in (("a", 4, 0.2), ("b", 3, 0.6)):
        args = changed(MOCO, seed=len(name), negatives=HARDEST, max_epochs=4, name=name)
        args["seed"] = epochs
        write_records(write_args(tmp_path / "m" / name, args), args, epochs, hard)
    groups = group(find([tmp_path]).runs, [])
    summary = summarize(groups, baselines(groups))
    courses = {g.label: [course(run) for run in g.runs] for g in groups}
    (text,) = [s for s in findings.sentences(summary, courses) if "At the end of training" in s]
    expected = (0.2 + 0.05 * 3) * (1 + 2 * 0.9) / 3
    assert f"carry {100 * expected:.0f} % of the softmax mass" in text
    only = [replace(r, group=replace(r.group, runs=r.group.runs[:1])) for r in summary.rows]
    assert only[0].group.runs[0].unfinished
    said = findings.sentences(replace(summary, rows=only), {k: c[:1] for k, c in courses.items()})
    assert not any("At the end of training" in sentence for sentence in said)


def test_columns_without_any_number_are_left_out(tmp_path: Path) -> None:
    write_metrics(write_args(tmp_path / "a" / "b", MOCO), [1.0])
    assert list(beside(summary_of(tmp_path))) == ["group", "published"]


# ---------------------------------------------------------------------- texts


def test_numbers_as_texts() -> None:
    assert points(4.66) == "+4.7"
    assert points(-3.0) == "−3.0"
    assert (p_value(math.nan), p_value(0.0004), p_value(0.0312)) == ("", "p < 0.001", "p = 0.031")


def test_markdown_is_no_markup() -> None:
    table = pd.DataFrame({"a|b": ["<script>alert(1)</script>", "x\ny"], "c": ["1 & 2", "\\"]})
    assert markdown(table) == (
        "| a\\|b | c |\n"
        "| --- | ---: |\n"
        "| &lt;script>alert(1)&lt;/script> | 1 &amp; 2 |\n"
        "| x y | \\\\ |\n"
    )
