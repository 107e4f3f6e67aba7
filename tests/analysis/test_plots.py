"""Figures show the values that they are given, say them in words, and are the same every time."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from solo_hardneg.analysis import figures, plots
from solo_hardneg.analysis.study import Study, study
from solo_hardneg.errors import ConfigError, DataError

CLASSES = 12


def planted(seed: int, percentiles: int = 20, **more: Any) -> Study:
    """Classes around centres, of which near ones have a deep common ancestor."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, 16))
    labels = generator.integers(0, CLASSES, (2, 200))
    query, negative = centres[labels] + generator.normal(size=(2, 200, 16))
    depths = 9 - np.abs(np.subtract.outer(np.arange(CLASSES), np.arange(CLASSES))).clip(max=9)
    names = [f"class {c}" for c in range(CLASSES)]
    points = centres[labels[0], :2] * 5 + generator.normal(size=(200, 2))
    more = {"tsne": points.astype(np.float32), "tsne_labels": labels[0], **more}
    return study(query, negative, *labels, percentiles, depths, names, seed, **more)


@pytest.fixture(autouse=True)
def in_our_style() -> Iterator[None]:
    with plots.style():
        yield


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Study]]:
    return {"all negatives": [planted(1), planted(2), planted(3)], "hardest 5 %": [planted(4)]}


# ---------------------------------------------------------------------- style


def test_mean_and_deviation_are_numpys_over_known_values() -> None:
    values = np.random.default_rng(0).normal(size=(4, 6))
    mean, std = plots.mean_and_std(values)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(std, values.std(0, ddof=1))
    values[1, 2] = values[:, 3] = values[1:, 4] = np.nan
    mean, std = plots.mean_and_std(values)
    kept = values[[0, 2, 3], 2]
    assert (mean[2], std[2]) == pytest.approx((kept.mean(), kept.std(ddof=1)))
    assert np.isnan([mean[3], std[3], std[4]]).all()
    assert mean[4] == values[0, 4]
    mean, std = plots.mean_and_std([2.0])
    assert mean == 2.0
    assert np.isnan(std)
    assert np.isnan(plots.mean_and_std([np.nan, np.nan])[0])


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_can_be_seen_on_either_ground() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour, ground in itertools.product(plots.COLOURS, plots.GROUND.values()):
        assert contrast(colour, ground) >= 3, (colour, ground)
    for dark, ground in plots.GROUND.items():
        with plots.style(dark):
            assert contrast(matplotlib.rcParams["text.color"], ground) >= 7


def test_lines_differ_in_more_than_their_colour_once_colours_run_out() -> None:
    looks = [tuple(look.values()) for look in plots.looks(32)]
    assert len(set(looks)) == 32
    assert len(plots.looks(40)) == 40


def test_style_is_ours_inside_and_gone_outside() -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 99, "font.family": "serif"}):
        with plots.style():
            assert matplotlib.rcParams["lines.linewidth"] == 1.8  # whatever the user's file says
            assert matplotlib.rcParams["figure.facecolor"] == "none"
        assert matplotlib.rcParams["lines.linewidth"] == 99
    assert dict(matplotlib.rcParams) == before


def test_an_svg_has_the_text_for_the_blind() -> None:
    figure, axes = plots.new("A title", "x", "y")
    axes.plot([1, 3, 2], label="one")
    plots.below(figure, axes)
    drawn = plots.svg(figure, "a < b & c")
    root = ET.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}title").text == "a < b & c"  # type: ignore
    assert not re.search(r"<text|20\d\d-\d\d|Matplotlib", drawn)  # letters are paths; no date
    assert "fill: none" in drawn or "opacity: 0" in drawn
    assert "<title>" not in plots.svg(plots.new("", "", "")[0])


@pytest.mark.parametrize("dark", [False, True])
def test_a_png_is_opaque(tmp_path: Path, dark: bool) -> None:
    with plots.style(dark):
        figure, _ = plots.new("A title", "x", "y")
    plots.save_png(figure, tmp_path / "a.png", 50, dark)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    corner = np.round(255 * np.array(to_rgb(plots.GROUND[dark])))
    np.testing.assert_array_equal(pixels[0, 0, :3], corner)


@pytest.mark.full
def test_drawing_needs_no_window() -> None:
    """In a process of its own, for other tests may have loaded pyplot."""
    program = (
        "import sys; from solo_hardneg.analysis import figures, plots;"
        "f, a = plots.new('t', 'x', 'y'); plots.svg(f); print('matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.stdout.split()[-1] == "False", out.stderr


def test_dollars_and_long_names_are_drawn_as_they_stand() -> None:
    figure, axes = plots.new("costs $5 and $6 " * 8, "x" * 90, "word " * 20)
    axes.plot([1, 2], label="$x_{1$ " + "word " * 30)
    axes.plot([2, 2], label="other")
    plots.below(figure, axes)
    assert plots.svg(figure)  # as mathematics, "$x_{1$" would be an error
    assert all(len(text.get_text()) <= 60 for text in figure.legends[0].get_texts())


# ---------------------------------------------------------------------- figures


def test_all_figures_are_made_of_a_whole_study(groups: dict[str, list[Study]]) -> None:
    made = figures.figures(groups)
    assert [*made] == ["figure4a", "figure4b", "figure5a", "figure5b", "figure5c", "figure6"]
    for name, plot in made.items():
        assert plot.alt.count("all negatives") == plot.alt.count("hardest 5 %:") == 1, name
        assert "\n" not in plot.alt
        assert "nan" not in plot.alt
        axes = plot.figure.axes[0]
        assert axes.get_xlabel(), name
        assert plot.figure.get_suptitle(), name


def test_figure4_has_bars_of_means_and_lines_of_deviations(groups: dict[str, list[Study]]) -> None:
    plot = figures.figure4a(groups)
    axes = plot.figure.axes[0]
    expected = []
    for studies in groups.values():
        for part in ("hardest_5", "easiest_95"):
            values = [100 * s.scalars[f"same_class/{part}"] for s in studies]
            std = np.std(values, ddof=1) if len(values) > 1 else None
            expected.append((np.mean(values), std))
    bars = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(bars, [mean for mean, _ in expected])
    ends = [line.get_segments()[0][:, 0] for line in axes.collections]
    wanted = [(m - s, m + s) for m, s in expected if s is not None]
    np.testing.assert_allclose(ends, wanted)
    (mean, std), _, (other, _), _ = expected
    assert f"all negatives (3 seeds): hardest 5 % {mean:.2f} ± {std:.2f} %" in plot.alt
    assert f"hardest 5 %: hardest 5 % {other:.2f} %, easiest" in plot.alt


@pytest.mark.parametrize(
    ("maker", "name", "factor"),
    [
        (figures.figure5a, "same_class", 100),
        (figures.figure5b, "depth", 1),
        (figures.figure5c, "similarity", 1),
    ],
)
def test_figure5_has_the_means_of_each_percentile(
    groups: dict[str, list[Study]], maker: Any, name: str, factor: float
) -> None:
    plot = maker(groups)
    axes = plot.figure.axes[0]
    for line, studies in zip(axes.lines, groups.values(), strict=True):
        mean = factor * np.mean([getattr(s, name) for s in studies], axis=0)
        np.testing.assert_allclose(line.get_ydata(), mean)
        np.testing.assert_allclose(line.get_xdata(), np.arange(20) * 5 + 2.5)
        assert f"hardest percentile {mean[-1]:.3g};" in plot.alt
    assert len(axes.collections) == 1  # a band for the group that has several seeds
    several = factor * np.array([getattr(s, name) for s in groups["all negatives"]])
    band = axes.collections[0].get_paths()[0].get_extents()
    low, high = several.mean(0) - several.std(0, ddof=1), several.mean(0) + several.std(0, ddof=1)
    assert (band.y0, band.y1) == pytest.approx((low.min(), high.max()))


def test_figure5a_shows_the_easiest_half_larger(groups: dict[str, list[Study]]) -> None:
    (small,) = figures.figure5a(groups).figure.axes[0].child_axes
    assert small.get_xlim() == (0, 50)
    means = [100 * np.mean([s.same_class for s in studies], axis=0) for studies in groups.values()]
    highest = max(mean[:10].max() for mean in means)
    assert highest <= small.get_ylim()[1] < 3 * max(highest, 1)


def test_figure6_is_a_histogram_beside_chance(groups: dict[str, list[Study]]) -> None:
    plot = figures.figure6(groups)
    steps = [patch for patch in plot.figure.axes[0].patches if not patch.get_fill()]
    assert len(steps) == 3
    for patch in steps:
        assert np.nansum(patch.get_data().values) == pytest.approx(100)
    one = groups["hardest 5 %"][0]
    values, edges, _ = steps[1].get_data()
    expected = np.histogram(one.hard_share * 100, edges)[0] / 2
    np.testing.assert_allclose(np.nan_to_num(values), expected)
    assert f"(chance: {100 * np.sqrt(0.05 * 0.95 / 200):.2f})" in plot.alt


def test_tsne_colours_the_ten_largest_classes() -> None:
    one = planted(1)
    plot = figures.tsne(one)
    names = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    counts = np.bincount(one.tsne_labels)
    ten = sorted(sorted(range(CLASSES), key=lambda c: (-counts[c], c))[:10])
    assert names == ["other classes", *(f"class {c}" for c in ten)]
    points = [c.get_offsets() for c in plot.figure.axes[0].collections]
    assert sum(map(len, points)) == 200
    np.testing.assert_allclose(points[1], one.tsne[one.tsne_labels == ten[0]])
    distances = np.linalg.norm(one.tsne[:, None] - one.tsne[None], axis=2) + np.eye(200) * 1e9
    same = np.mean(one.tsne_labels[distances.argmin(1)] == one.tsne_labels)
    chance = np.sum(counts * (counts - 1)) / (200 * 199)
    assert f"For {same:.0%} of them" in plot.alt
    assert f"(by chance: {chance:.0%})" in plot.alt


def test_tsne_without_labels_says_so() -> None:
    plot = figures.tsne(planted(1, tsne_labels=np.full(200, -1)))
    assert plot.alt.endswith("200 images of 0 classes. Their classes are not known.")
    assert [t.get_text() for t in plot.figure.legends[0].get_texts()] == ["class unknown"]


def test_what_is_not_known_is_left_out(groups: dict[str, list[Study]]) -> None:
    one = groups["all negatives"][0]
    nothing = np.full(20, np.nan)
    scalars = {k: v for k, v in one.scalars.items() if not k.startswith("depth")}
    without = replace(one, depth=nothing, scalars=scalars)
    made = figures.figures({"a": [without]})
    assert [*made] == ["figure4a", "figure5a", "figure5c", "figure6"]
    both = figures.figure5b({"a": [without], "b": [one]})
    assert [line.get_label() for line in both.figure.axes[0].lines] == ["b"]
    with pytest.raises(DataError, match="No study knows the depth of the common ancestor in Word"):
        figures.figure4b({"a": [without]})
    with pytest.raises(DataError, match="This study has no t-SNE. Make it again with tsne=true."):
        figures.tsne(replace(one, tsne=np.empty((0, 2))))


def test_percentiles_without_negatives_leave_a_gap() -> None:
    one = planted(1, percentiles=300)  # of 200 negatives
    line = figures.figure5c({"a": [one]}).figure.axes[0].lines[0]
    assert len(line.get_ydata()) == 200
    assert np.isfinite(line.get_ydata()).all()


def test_seeds_with_different_percentiles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^percentiles=\[10, 20\]: .* a differ .* one number of"):
        figures.figures({"a": [planted(1, 20), planted(2, 10)]})


def test_figures_are_the_same_every_time(groups: dict[str, list[Study]]) -> None:
    first, second = (
        [plots.svg(plot.figure, plot.alt) for plot in figures.figures(groups).values()]
        for _ in range(2)
    )
    assert first == second
