"""Figures of records show the values that they are given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import MOCO, changed, write_args, write_metrics
from matplotlib.figure import Figure
from recorded_histories import made_up_history, read_history, recorded_history

from solo_hardneg.report import distributions, timelines
from solo_hardneg.report.history import EDGES, EpochHistory
from solo_hardneg.study import plots


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plots.style():
        yield


@pytest.fixture
def one(tmp_path: Path) -> EpochHistory:
    return made_up_history(tmp_path / "m" / "one")


def curves_of(figure: Figure | None, panel: int = 0) -> dict[str, Any]:
    """The vertical values of each labelled curve of a panel."""
    assert figure is not None
    return {str(line.get_label()): line.get_ydata() for line in figure.axes[panel].lines}


def test_figures_show_the_recorded_values(one: EpochHistory, tmp_path: Path) -> None:
    banded = made_up_history(tmp_path / "m" / "two", hard=0.5, kept=0.05, seed=1)
    made = distributions.draw_run_figures({"all": [one], "hardest 5 %": [banded]})
    assert list(made) == [
        "accuracy",
        "mass",
        "effective",
        "similarity",
        "histogram all",
        "histogram hardest 5 %",
        "same_class",
        "age",
        "verbs",
        "dropped",
        "dropped_by_difficulty",
        "spread",
        "images_in_queue",
    ]
    both = (1 + 2 * 0.9) / 3  # of the weighted mean of two ranks
    assert curves_of(made["accuracy"])["all"] == pytest.approx([20, 30, 40, 50])
    mass = curves_of(made["mass"], 2)
    assert mass["all"] == pytest.approx([100 * both * (0.3 + 0.05 * e) for e in range(4)])
    assert mass["hardest 5 %"] == pytest.approx([100 * both * (0.5 + 0.05 * e) for e in range(4)])
    effective = curves_of(made["effective"])["all"]
    assert effective == pytest.approx([both * (400 - 50 * e) for e in range(4)])
    assert curves_of(made["similarity"], 1)["all"] == pytest.approx([both * 0.1] * 4)
    same_class = curves_of(made["same_class"])["all"]
    assert same_class == pytest.approx([13 + 2 * b for b in range(10)])
    assert curves_of(made["age"])["all"] == pytest.approx([500 - 10 * b for b in range(10)])
    dropped = curves_of(made["verbs"])
    assert dropped["all"] == pytest.approx([0] * 4)
    assert dropped["hardest 5 %"] == pytest.approx([both * 950] * 4)
    recall = curves_of(made["dropped"], 1)
    assert recall == {"hardest 5 %": pytest.approx([both * (50 - 10 * e) for e in range(4)])}
    for panel in (0, 1):
        by_difficulty = curves_of(made["dropped_by_difficulty"], panel)
        assert by_difficulty == {"hardest 5 %": pytest.approx([13 + 2 * b for b in range(10)])}
    assert curves_of(made["spread"])["all"] == pytest.approx(
        [both * (20 + 2 * e) for e in range(4)]
    )


def test_the_median_and_middle_of_a_histogram(one: EpochHistory) -> None:
    figure = distributions.histograms({"it": [one]}, "it")
    assert figure is not None
    ends = [line.get_ydata()[-1] for line in figure.axes[1].lines]
    assert ends == pytest.approx([-0.035, 0.105, 0.245])


# 4 s: the warnings come when a figure is drawn.
def test_figures_are_drawn_without_a_warning(one: EpochHistory) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = distributions.draw_run_figures({"a $ name_with < marks": [one], "b": [one]})
        texts = [plots.to_svg(figure) for figure in made.values()]
    assert all(text.startswith("<svg") for text in texts)


def test_a_group_without_values_is_left_out(one: EpochHistory, tmp_path: Path) -> None:
    silent = read_history(write_args(tmp_path / "s" / "s", MOCO))
    made = distributions.draw_run_figures({"one": [one], "silent": [silent]})
    assert "histogram silent" not in made
    assert list(curves_of(made["mass"])) == ["one"]
    assert distributions.draw_run_figures({"silent": [silent]}) == {}


def test_accuracy_of_runs_without_records(tmp_path: Path) -> None:
    run = write_args(tmp_path / "a" / "b", MOCO)
    write_metrics(run, [10.0, 30.0], val_knn_acc1=40.0)
    made = distributions.draw_run_figures({"it": [read_history(run)]})
    assert list(made) == ["accuracy"]
    assert curves_of(made["accuracy"])["it"].tolist() == [10, 30]
    (knn,) = made["accuracy"].axes[1].lines
    assert (knn.get_xdata().tolist(), knn.get_ydata().tolist()) == ([2], [40])
    write_args(run, changed(MOCO, data__no_labels=True))
    assert distributions.draw_run_figures({"it": [read_history(run)]}) == {}


def test_quantiles_of_histograms() -> None:
    values = np.random.default_rng(0).normal(0.2, 0.1, 5000).clip(-1, 1)
    counts = np.histogram(values, EDGES)[0][None]
    for share in (0.05, 0.5, 0.95):
        found = distributions.quantiles(counts, share)
        assert found == pytest.approx([np.quantile(values, share)], abs=0.011)


def test_shades_are_at_their_epochs(tmp_path: Path) -> None:
    bins = {0: 100, 1: 105, 2: 110, 9: 190}
    rows = [(e, "histogram", "negative", b, 9.0, 1.0) for e, b in bins.items()]
    history = recorded_history(tmp_path / "a" / "b", *rows)
    figure = distributions.histograms({"it": [history]}, "it")
    assert figure is not None
    (image,) = figure.axes[0].images
    left, right, *_ = image.get_extent()
    assert (left, right) == (0.5, 10.5)
    shown = np.asarray(image.get_array())
    assert shown.shape == (200, 10)
    nearest = [100, 105, 110, 110, 110, 110, 190, 190, 190, 190]
    assert shown.argmax(axis=0).tolist() == nearest


def test_an_axis_of_depths_does_not_start_at_zero(tmp_path: Path) -> None:
    rows = [(0, "percentile", "depth", b, 4.3 + 0.06 * b, 1.0) for b in range(10)]
    rows += [(0, "percentile", "same_class", b, 0.1 + 0.001 * b, 1.0) for b in range(10)]
    made = distributions.draw_run_figures({"it": [recorded_history(tmp_path / "a" / "b", *rows)]})
    assert made["depth"].axes[0].get_ylim()[0] > 4
    assert made["same_class"].axes[0].get_ylim()[0] == 0


def test_mass_of_synthetic_negatives_is_shown_where_there_are_any(
    one: EpochHistory, tmp_path: Path
) -> None:
    rows = [(e, "scalar", "mass/synthetic", -1, 0.1 * e, 1.0) for e in range(3)]
    mixed = recorded_history(tmp_path / "a" / "b", *rows)
    figure = timelines.mass({"all": [one], "mixed": [mixed]})
    assert curves_of(figure, 4) == {"mixed": pytest.approx([0, 10, 20])}
    without = timelines.mass({"all": [one]})
    assert without is not None
    assert len(without.axes) == 4


def test_an_axis_is_logarithmic_only_for_a_wide_range(one: EpochHistory, tmp_path: Path) -> None:
    figure = timelines.effective_negatives({"one": [one]})
    assert figure is not None
    assert figure.axes[0].get_yscale() == "linear"
    rows = [(e, "scalar", "effective_negatives", -1, 10.0**e, 1.0) for e in range(4)]
    figure = timelines.effective_negatives({"it": [recorded_history(tmp_path / "a" / "b", *rows)]})
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {"1", "10", "100", "1000"} <= set(labels), "plain numbers, not powers"


# ---------------------------------------------------------------------- by image


@pytest.mark.parametrize("rate", [0.05, 7 / 126])
def test_expected_counts_in_plain_loops(rate: float) -> None:
    met, edges = np.array([50.0, 50.0, 120.0]), np.arange(0, 31, 5.0)
    expected = [0.0] * 6
    for number in (50, 50, 120):
        for hits in range(number + 1):
            probability = math.comb(number, hits) * rate**hits * (1 - rate) ** (number - hits)
            place = int(100 * hits / number + 1e-9) // 5
            if place < 6:
                expected[place] += probability
    assert distributions.expected_counts(met, edges, rate) == pytest.approx(expected, abs=1e-6)


def test_images_met_too_rarely_do_not_count(tmp_path: Path) -> None:
    rows = [(0, "image", "met", i, 50.0 if i < 3 else 49.0, 1.0) for i in range(9)]
    rows += [(0, "image", "hard", i, 5.0, 1.0) for i in range(2)]
    history = recorded_history(tmp_path / "a" / "b", *rows)
    counts = distributions.count_hard_images([history])
    assert counts is not None
    assert counts.shares.tolist() == [10, 10, 0]
    few = recorded_history(tmp_path / "c" / "d", *[row for row in rows if row[3] > 2])
    assert distributions.images({"it": [few]}) is None


def test_the_expected_rate_is_that_of_the_data(tmp_path: Path) -> None:
    """Of 126 negatives, "the hardest 5 %" are 7, which are 5.56 %."""
    rows = [(0, "image", "met", i, 126.0, 1.0) for i in range(9)]
    rows += [(0, "image", "hard", i, 7.0, 1.0) for i in range(9)]
    rows += [(0, "image", "met", 9, 10.0, 1.0), (0, "image", "hard", 9, 10.0, 1.0)]
    counts = distributions.count_hard_images([recorded_history(tmp_path / "a" / "b", *rows)])
    assert counts is not None
    assert counts.rate == pytest.approx((9 * 7 + 10) / (9 * 126 + 10)), "with those met rarely"
    assert counts.shares.tolist() == pytest.approx([100 * 7 / 126] * 9)


def test_images_in_a_queue_are_in_a_figure_of_their_own(one: EpochHistory, tmp_path: Path) -> None:
    """In a queue, images and their ages can't be separated."""
    without = made_up_history(tmp_path / "m" / "two", seed=1, queue=False)
    made = distributions.draw_run_figures({"MoCo": [one], "SimCLR": [without]})
    legends = {
        name: [text.get_text() for text in made[name].legends[0].get_texts()]
        for name in ("images", "images_in_queue")
    }
    assert legends == {
        "images": ["SimCLR", "by chance"],
        "images_in_queue": ["MoCo", "if all images and ages were alike"],
    }
    colours = [made[name].axes[0].patches[0].get_edgecolor() for name in legends]
    assert colours[0] != colours[1], "each group has its colour of the other figures"
