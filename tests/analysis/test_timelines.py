"""What records say of each epoch, against plain loops, and figures that say it in numbers."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import MOCO, changed, write_args, write_metrics, write_records

from solo_hardneg.analysis import distributions, plots, timelines
from solo_hardneg.analysis.courses import EDGES, Course, course, over_epochs, unlike
from solo_hardneg.analysis.records import Rows
from solo_hardneg.analysis.runs import find
from solo_hardneg.errors import DataError


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plots.style():
        yield


def course_of(folder: Path, **settings: Any) -> Course:
    args = changed(MOCO, seed=int(settings.pop("seed", 0)))
    write_records(write_args(folder, args), args, **settings)
    return course(find([folder]).runs[0])


@pytest.fixture
def one(tmp_path: Path) -> Course:
    return course_of(tmp_path / "m" / "one")


def recorded(folder: Path, *rows: tuple[Any, ...]) -> Course:
    """From rows of (epoch, kind, quantity, bin, value, weight)."""
    write_args(folder, MOCO)
    for epoch in {row[0] for row in rows}:
        parts = Rows()
        for _, kind, quantity, place, value, weight in (r for r in rows if r[0] == epoch):
            parts.add(epoch, 0, 0, kind, quantity, [place], [value], [weight])
        parts.write(folder / "hardness", epoch, 0, json.dumps(MOCO))
    return course(find([folder]).runs[0])


def test_means_are_averaged_by_weight_and_counts_summed(tmp_path: Path) -> None:
    nan = float("nan")
    found = recorded(
        tmp_path / "a" / "b",
        (0, "scalar", "x", -1, 1.0, 30.0),
        (0, "scalar", "x", -1, 5.0, 10.0),
        (0, "scalar", "x", -1, nan, 7.0),
        (0, "scalar", "x", -1, 99.0, 0.0),
        (1, "scalar", "x", -1, nan, 0.0),
        (2, "scalar", "x", -1, 3.0, 1.0),
        (0, "histogram", "negative", 7, 2.0, 1.0),
        (0, "histogram", "negative", 7, 3.0, 1.0),
        (2, "histogram", "negative", 7, 10.0, 1.0),
        (0, "image", "met", 7, 2.0, 1.0),
        (2, "image", "met", 7, 4.0, 1.0),
        (2, "image", "met", 7, 5.0, 1.0),
    )
    assert found.scalar("x").to_dict() == {0: (1.0 * 30 + 5.0 * 10) / 40, 2: 3.0}
    assert found.histogram("negative")[7].to_dict() == {0: 5.0, 2: 10.0}
    rows = found.counts[found.counts["quantity"] == "met"]
    assert dict(zip(rows["epoch"], rows["value"], strict=True)) == {2: 9.0}, "late ones only"
    assert len(found.scalar("y")) == 0


def test_the_last_quarter_of_the_epochs_is_late(tmp_path: Path) -> None:
    rows = [(e, "percentile", "p", b, float(10 * e + b), 1.0) for e in range(8) for b in range(3)]
    rows += [(e, "image", "met", 0, 1.0, 1.0) for e in range(8)]
    found = recorded(tmp_path / "a" / "b", *rows)
    assert found.late("percentile", "p").tolist() == [65.0, 66.0, 67.0]
    assert found.late("image", "met").tolist() == [2.0]
    assert len(found.late("percentile", "q")) == 0


def test_mean_and_deviation_between_seeds(tmp_path: Path) -> None:
    seeds = [course_of(tmp_path / "m" / str(s), seed=s, hard=0.2 + 0.1 * s) for s in range(3)]
    line = over_epochs(seeds, "mass/hardest_5", 100)
    assert line is not None
    assert line.x.tolist() == [1, 2, 3, 4]
    # The second process has two thirds of the queries, and values lower by a tenth.
    expected = [
        [100 * (0.2 + 0.1 * s + 0.05 * e) * (1 + 2 * 0.9) / 3 for s in range(3)] for e in range(4)
    ]
    assert line.mean == pytest.approx([sum(row) / 3 for row in expected])
    assert line.std == pytest.approx([np.std(row, ddof=1) for row in expected])
    assert over_epochs(seeds, "floored") is None


def test_seeds_of_different_length(tmp_path: Path) -> None:
    seeds = [course_of(tmp_path / "m" / str(s), seed=s, epochs=2 + s) for s in range(2)]
    line = over_epochs(seeds, "similarity/negative")
    assert line is not None
    assert line.x.tolist() == [1, 2, 3]
    assert np.isnan(line.std).tolist() == [False, False, True]


def test_every_figure_says_in_numbers_what_it_shows(one: Course, tmp_path: Path) -> None:
    banded = course_of(tmp_path / "m" / "two", hard=0.5, kept=0.05, seed=1)
    made = distributions.figures({"all": [one], "hardest 5 %": [banded]})
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
        "images_in_queue",
    ]
    expected = {
        "accuracy": "online: all from 20 in epoch 1 to 50 in epoch 4",
        "mass": "hardest 5 %: all from 28 in epoch 1 to 42 in epoch 4; hardest 5 % from 46.7",
        "effective": "all from 373 in epoch 1 to 233 in epoch 4",
        "similarity": "negatives: all from 0.0933 in epoch 1 to 0.0933 in epoch 4",
        "histogram all": "negatives in epoch 4: median 0.105, nine tenths between -0.035 and 0.245",
        "same_class": "all: easiest percentile 13, middle percentile 23, hardest percentile 31",
        "age": "all: easiest percentile 500, middle percentile 450, hardest percentile 410",
        "verbs": "dropped: all from 0 in epoch 1 to 0 in epoch 4; hardest 5 % from 887 in epoch 1",
        "images_in_queue": "all: 60 images, mean 4.75 %, median 4.50 %, standard deviation 3.17",
    }
    for name, text in expected.items():
        assert text in made[name].alt


# 4 s: the warnings come when a figure is drawn.
def test_figures_are_drawn_without_a_warning_on_both_grounds(one: Course) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dark in (False, True):
            with plots.style(dark):
                made = distributions.figures({"a $ name_with < marks": [one], "b": [one]})
            texts = [plots.svg(plot.figure) for plot in made.values()]
            assert all("<svg" in text for text in texts)


def test_a_group_that_knows_nothing_is_left_out(one: Course, tmp_path: Path) -> None:
    silent = course(find([write_args(tmp_path / "s" / "s", MOCO)]).runs[0])
    made = distributions.figures({"one": [one], "silent": [silent]})
    assert "histogram silent" not in made
    assert all("silent" not in plot.alt for plot in made.values())
    assert distributions.figures({"silent": [silent]}) == {}
    with pytest.raises(DataError, match="there is nothing to draw"):
        timelines.mass({"silent": [silent]})


def test_accuracy_of_runs_without_records(tmp_path: Path) -> None:
    run = write_args(tmp_path / "a" / "b", MOCO)
    write_metrics(run, [10.0, 30.0], val_knn_acc1=40.0)
    made = distributions.figures({"it": [course(find([run]).runs[0])]})
    assert list(made) == ["accuracy"]
    assert "online: it from 10 in epoch 1 to 30 in epoch 2" in made["accuracy"].alt
    assert "kNN: it 40 in epoch 2" in made["accuracy"].alt
    unlabelled = changed(MOCO, data__no_labels=True)
    write_args(run, unlabelled)
    assert distributions.figures({"it": [course(find([run]).runs[0])]}) == {}


def test_quantiles_of_histograms() -> None:
    values = np.random.default_rng(0).normal(0.2, 0.1, 5000).clip(-1, 1)
    counts = np.histogram(values, EDGES)[0][None]
    for share in (0.05, 0.5, 0.95):
        found = distributions.quantiles(counts, share)
        assert found == pytest.approx([np.quantile(values, share)], abs=0.011)


@pytest.mark.parametrize("rate", [0.05, 7 / 126])
def test_what_chance_would_do_to_images_in_plain_loops(rate: float) -> None:
    met, edges = np.array([50.0, 50.0, 120.0]), np.arange(0, 31, 5.0)
    expected = [0.0] * 6
    for number in (50, 50, 120):
        for hits in range(number + 1):
            probability = math.comb(number, hits) * rate**hits * (1 - rate) ** (number - hits)
            place = int(100 * hits / number + 1e-9) // 5
            if place < 6:
                expected[place] += probability
    assert distributions.chance(met, edges, rate) == pytest.approx(expected, abs=1e-6)


def test_images_that_were_met_too_rarely_do_not_count(tmp_path: Path) -> None:
    rows = [(0, "image", "met", i, 50.0 if i < 3 else 49.0, 1.0) for i in range(9)]
    rows += [(0, "image", "hard", i, 5.0, 1.0) for i in range(2)]
    found = recorded(tmp_path / "a" / "b", *rows)
    plot = distributions.images({"it": [found]})
    assert "it: 3 images, mean 6.67 %" in plot.alt
    assert "33.3 % of the images never hard" in plot.alt
    few = recorded(tmp_path / "c" / "d", *[row for row in rows if row[3] > 2])
    with pytest.raises(DataError, match="No run counted images that were met 50 times"):
        distributions.images({"it": [few]})


def test_chance_has_the_rate_of_the_data(tmp_path: Path) -> None:
    """Of 126 negatives, "the hardest 5 %" are 7, which are 5.56 %."""
    rows = [(0, "image", "met", i, 126.0, 1.0) for i in range(9)]
    rows += [(0, "image", "hard", i, 7.0, 1.0) for i in range(9)]
    rows += [(0, "image", "met", 9, 10.0, 1.0), (0, "image", "hard", 9, 10.0, 1.0)]
    found = recorded(tmp_path / "a" / "b", *rows)
    one = distributions.count([found])
    assert one is not None
    assert one.rate == pytest.approx((9 * 7 + 10) / (9 * 126 + 10)), "those met rarely, too"
    assert one.shares.tolist() == pytest.approx([100 * 7 / 126] * 9)
    by_chance = 100 * math.sqrt(one.rate * (1 - one.rate) / 126)
    assert f"(by chance: {by_chance:.2f})" in distributions.images({"it": [found]}).alt


def test_images_in_a_queue_are_not_told_from_their_ages(one: Course, tmp_path: Path) -> None:
    """An image that was met few times was mostly met while its key was young."""
    without = course_of(tmp_path / "m" / "two", seed=1, queue=False)
    made = distributions.figures({"MoCo": [one], "SimCLR": [without]})
    for name, mine, other in (("images", "SimCLR", "MoCo"), ("images_in_queue", "MoCo", "SimCLR")):
        assert f"{mine}: 60 images" in made[name].alt
        assert other not in made[name].alt
    assert "chance" not in made["images_in_queue"].alt
    assert "(by chance: " in made["images"].alt
    lines = [made[name].figure.axes[0].patches[0] for name in ("images", "images_in_queue")]
    colours = [line.get_edgecolor() for line in lines]
    assert colours[0] != colours[1], "each group has the colour that it has in the other figures"


def test_shades_stand_at_their_epochs(tmp_path: Path) -> None:
    bins = {0: 100, 1: 105, 2: 110, 9: 190}
    rows = [(e, "histogram", "negative", b, 9.0, 1.0) for e, b in bins.items()]
    plot = distributions.histograms({"it": [recorded(tmp_path / "a" / "b", *rows)]}, "it")
    (image,) = plot.figure.axes[0].images
    shown = np.asarray(image.get_array())
    left, right, *_ = image.get_extent()
    assert (left, right) == (0.5, 10.5)
    assert shown.shape == (200, 10)
    nearest = [100, 105, 110, 110, 110, 110, 190, 190, 190, 190]
    assert shown.argmax(axis=0).tolist() == nearest


def test_an_axis_of_depths_does_not_begin_at_nothing(tmp_path: Path) -> None:
    rows = [(0, "percentile", "depth", b, 4.3 + 0.06 * b, 1.0) for b in range(10)]
    rows += [(0, "percentile", "same_class", b, 0.1 + 0.001 * b, 1.0) for b in range(10)]
    found = {"it": [recorded(tmp_path / "a" / "b", *rows)]}
    assert distributions.depth(found).figure.axes[0].get_ylim()[0] > 4
    assert distributions.same_class(found).figure.axes[0].get_ylim()[0] == 0


def test_seeds_with_other_percentiles_are_noted(one: Course, tmp_path: Path) -> None:
    other = course_of(tmp_path / "m" / "two", seed=1, percentiles=20)
    assert unlike({"it": [one, one]}) == []
    (note,) = unlike({"fine": [one], "it": [one, other]})
    assert note.where == "it"
    assert note.text.startswith("its seeds were recorded with 10 and 20 percentiles (hardness.perc")
    made = distributions.figures({"fine": [one], "it": [one, other]})
    assert "it: " not in made["same_class"].alt


def test_an_axis_is_logarithmic_only_where_it_must_be(one: Course, tmp_path: Path) -> None:
    plot = timelines.effective_number({"one": [one]})
    assert plot.figure.axes[0].get_yscale() == "linear"
    rows = [(e, "scalar", "effective_negatives", -1, 10.0**e, 1.0) for e in range(4)]
    plot = timelines.effective_number({"it": [recorded(tmp_path / "a" / "b", *rows)]})
    axes = plot.figure.axes[0]
    assert axes.get_yscale() == "log"
    plot.figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {"1", "10", "100", "1000"} <= set(labels), "no powers that must be read as formulas"
