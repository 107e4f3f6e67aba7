"""The figures of a study show the values that they are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from solo_hardneg.errors import ConfigError
from solo_hardneg.study import figures, plots
from solo_hardneg.study.measure import Study, measure

CLASSES = 12


def make_study(seed: int, percentiles: int = 20, **more: Any) -> Study:
    """Classes around centres, of which near ones have a deep common ancestor."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, 16))
    labels = generator.integers(0, CLASSES, (2, 200))
    query, negative = centres[labels] + generator.normal(size=(2, 200, 16))
    depths = 9 - np.abs(np.subtract.outer(np.arange(CLASSES), np.arange(CLASSES))).clip(max=9)
    names = [f"class {c}" for c in range(CLASSES)]
    points = centres[labels[0], :2] * 5 + generator.normal(size=(200, 2))
    more = {"tsne": points.astype(np.float32), "tsne_labels": labels[0], **more}
    return measure(query, negative, *labels, percentiles, depths, names, seed, **more)


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plots.style():
        yield


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Study]]:
    several = [make_study(1), make_study(2), make_study(3)]
    return {"all negatives": several, "hardest 5 %": [make_study(4)]}


def test_a_whole_study_has_all_figures(groups: dict[str, list[Study]]) -> None:
    made = figures.draw_study_figures(groups)
    assert [*made] == ["figure4a", "figure4b", "figure5a", "figure5b", "figure5c", "figure6"]
    for name, figure in made.items():
        assert figure.axes[0].get_xlabel(), name
        assert figure.get_suptitle(), name


def test_figure4_has_bars_of_means_with_deviations(groups: dict[str, list[Study]]) -> None:
    axes = drawn(figures.figure4a(groups)).axes[0]
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
    axes = maker(groups).axes[0]
    for line, studies in zip(axes.lines, groups.values(), strict=True):
        mean = factor * np.mean([getattr(s, name) for s in studies], axis=0)
        np.testing.assert_allclose(line.get_ydata(), mean)
        np.testing.assert_allclose(line.get_xdata(), np.arange(20) * 5 + 2.5)
    assert len(axes.collections) == 1  # a shade for the group with several seeds
    several = factor * np.array([getattr(s, name) for s in groups["all negatives"]])
    shade = axes.collections[0].get_paths()[0].get_extents()
    low, high = several.mean(0) - several.std(0, ddof=1), several.mean(0) + several.std(0, ddof=1)
    assert (shade.y0, shade.y1) == pytest.approx((low.min(), high.max()))


def test_figure5a_enlarges_the_easiest_half(groups: dict[str, list[Study]]) -> None:
    (inset,) = drawn(figures.figure5a(groups)).axes[0].child_axes
    assert inset.get_xlim() == (0, 50)
    means = [100 * np.mean([s.same_class for s in studies], axis=0) for studies in groups.values()]
    highest = max(mean[:10].max() for mean in means)
    assert highest <= inset.get_ylim()[1] < 3 * max(highest, 1)


def test_figure6_is_a_histogram_beside_shuffled_ranks(groups: dict[str, list[Study]]) -> None:
    figure = drawn(figures.figure6(groups))
    steps = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    assert len(steps) == 3
    for patch in steps:
        assert np.nansum(patch.get_data().values) == pytest.approx(100)
    study = groups["hardest 5 %"][0]
    values, edges, _ = steps[1].get_data()
    expected = np.histogram(study.hard_share * 100, edges)[0] / 2
    np.testing.assert_allclose(np.nan_to_num(values), expected)


def test_tsne_colours_the_ten_largest_classes() -> None:
    study = make_study(1)
    figure = figures.draw_tsne(study)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    counts = np.bincount(study.tsne_labels)
    ten = sorted(sorted(range(CLASSES), key=lambda c: (-counts[c], c))[:10])
    assert names == ["other classes", *(f"class {c}" for c in ten)]
    points = [c.get_offsets() for c in figure.axes[0].collections]
    assert sum(map(len, points)) == 200
    np.testing.assert_allclose(points[1], study.tsne[study.tsne_labels == ten[0]])


def test_tsne_without_labels_is_grey() -> None:
    figure = figures.draw_tsne(make_study(1, tsne_labels=np.full(200, -1)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["class unknown"]


def test_unknown_values_are_left_out(groups: dict[str, list[Study]]) -> None:
    study = groups["all negatives"][0]
    scalars = {k: v for k, v in study.scalars.items() if not k.startswith("depth")}
    without = replace(study, depth=np.full(20, np.nan), scalars=scalars)
    made = figures.draw_study_figures({"a": [without]})
    assert [*made] == ["figure4a", "figure5a", "figure5c", "figure6"]
    both = drawn(figures.figure5b({"a": [without], "b": [study]}))
    assert [line.get_label() for line in both.axes[0].lines] == ["b"]
    assert figures.draw_study_figures({}) == {}


def test_percentiles_without_negatives_are_skipped() -> None:
    study = make_study(1, percentiles=300)  # of 200 negatives
    line = drawn(figures.figure5c({"a": [study]})).axes[0].lines[0]
    assert len(line.get_ydata()) == 200
    assert np.isfinite(line.get_ydata()).all()


def test_seeds_with_different_percentiles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^percentiles=\[10, 20\]: .* a differ .* one number of"):
        figures.draw_study_figures({"a": [make_study(1, 20), make_study(2, 10)]})
