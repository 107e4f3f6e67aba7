"""The figures of a study: figures 4 to 6 of Cai et al. 2020 (arXiv 2010.06682), and t-SNE.

Call the functions inside ``plots.style()``. They take ``{label: [one study per seed, ...]}``, show
means and standard deviations between seeds, leave out groups without the values, and return None
if no group has any.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from solo_hardneg.errors import bad_value
from solo_hardneg.study import plots
from solo_hardneg.study.measure import Study
from solo_hardneg.study.plots import Line
from solo_hardneg.study.significance import mean_and_std

Groups = Mapping[str, Sequence[Study]]

_SAME = "share of negatives of the query's class (%)"
_DEPTH = "depth of the common ancestor\nin WordNet (0 = nothing shared)"
_PERCENTILE = "difficulty percentile\n(0 = easiest, 100 = hardest)"
_PARTS = {"hardest_5": "hardest 5 %", "easiest_95": "easiest 95 %"}
TSNE_CLASSES = 10  # as many colours and shapes as can be distinguished


def draw_study_figures(groups: Groups) -> dict[str, Figure]:
    """All figures that these studies have values for, by name, in the papers' order."""
    makers: dict[str, Callable[[Groups], Figure | None]] = {
        "figure4a": figure4a,
        "figure4b": figure4b,
        "figure5a": figure5a,
        "figure5b": figure5b,
        "figure5c": figure5c,
        "figure6": figure6,
    }
    return plots.available_figures(makers, groups)


# ---------------------------------------------------------------------- figure 4


def figure4a(groups: Groups) -> Figure | None:
    """Share of the query's class among the hardest 5 % and the easiest 95 %."""
    title = "Hard negatives: more often of the query's class?"
    return _hard_and_easy(groups, "same_class", title, _SAME, 100, "%")


def figure4b(groups: Groups) -> Figure | None:
    """Depth of the common ancestor in WordNet of the hardest 5 % and the easiest 95 %."""
    return _hard_and_easy(groups, "depth", "Hard negatives: nearer in meaning?", _DEPTH, 1, "")


def _hard_and_easy(
    groups: Groups, quantity: str, title: str, xlabel: str, factor: float, unit: str
) -> Figure | None:
    """Bars for the hardest and the easiest negatives of each group."""
    bars: dict[str, list[tuple[float, float]]] = {}
    for label, studies in groups.items():
        keys = [f"{quantity}/{part}" for part in _PARTS]
        values = [[s.scalars.get(key, np.nan) * factor for s in studies] for key in keys]
        pairs = [mean_and_std(seeds) for seeds in values]
        if all(np.isfinite(mean) for mean, _ in pairs):
            bars[label] = pairs
    if not bars:
        return None
    figure, axes = plots.new_figure(title, xlabel, "", 1.75 + 0.85 * len(bars))
    top = max(mean + np.nan_to_num(std) for pairs in bars.values() for mean, std in pairs)
    for row, pairs in enumerate(bars.values()):
        for number, (part, (mean, std)) in enumerate(zip(_PARTS.values(), pairs, strict=True)):
            y = row + 0.4 * number
            error: Any = {"xerr": std, "error_kw": {"ecolor": plots.NEUTRAL, "capsize": 4}}
            look: Any = {"color": plots.COLOURS[1 - number], **(error if std == std else {})}
            axes.barh(y, mean, 0.36, label=part if row == 0 else None, **look)
            end = mean + np.nan_to_num(std) + 0.015 * top
            axes.text(end, y, f"{mean:.2f} {unit}".strip(), va="center")
    names = [""] if len(bars) == 1 else [textwrap.fill(label, 22) for label in bars]
    axes.set_yticks(np.arange(len(bars)) + 0.2, names)
    plots.legend_below(figure, axes, columns=2)
    axes.invert_yaxis()
    axes.set_xlim(0, top * 1.22)
    axes.grid(False, axis="y")
    return figure


# ---------------------------------------------------------------------- figure 5


def figure5a(groups: Groups) -> Figure | None:
    """Share of the query's class in each percentile, with the easiest half in an inset."""
    title = "Negatives of the query's class, by difficulty"
    lines = _by_percentile(groups, "same_class", 100)
    figure = _draw_curves(lines, title, _SAME)
    if figure is not None:
        _add_easiest_half(figure.axes[0], lines)
    return figure


def figure5b(groups: Groups) -> Figure | None:
    """Depth of the common ancestor in WordNet in each percentile."""
    lines = _by_percentile(groups, "depth")
    return _draw_curves(lines, "Nearness in meaning, by difficulty", _DEPTH)


def figure5c(groups: Groups) -> Figure | None:
    """Mean similarity in each percentile."""
    title = "Similarity of the negatives, by difficulty"
    ylabel = "mean similarity to the query (cosine, 1 = equal)"
    return _draw_curves(_by_percentile(groups, "similarity"), title, ylabel)


def _by_percentile(groups: Groups, quantity: str, factor: float = 1) -> dict[str, Line]:
    """Curves over the percentiles.

    Raises:
        ConfigError: The studies of a group differ in their number of percentiles.
    """
    lines = {}
    for label, studies in groups.items():
        rows = [getattr(s, quantity) * factor for s in studies]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            do = "Make them again with one number of percentiles."
            raise bad_value("percentiles", lengths, f"the studies of {label} differ in it", do)
        mean, std = mean_and_std(rows)
        if np.isfinite(mean).any():
            lines[label] = Line((np.arange(len(mean)) + 0.5) * 100 / len(mean), mean, std)
    return lines


def _draw_curves(lines: Mapping[str, Line], title: str, ylabel: str) -> Figure | None:
    if not lines:
        return None
    figure, axes = plots.new_figure(title, _PERCENTILE, ylabel)
    _draw_lines(axes, lines)
    axes.set_xlim(0, 100)
    if len(lines) > 1:
        plots.legend_below(figure, axes)
    return figure


def _draw_lines(axes: Axes, lines: Mapping[str, Line]) -> None:
    for (label, line), look in zip(lines.items(), plots.line_styles(len(lines)), strict=True):
        plots.draw_line(axes, line, label, look)


def _add_easiest_half(axes: Axes, lines: Mapping[str, Line]) -> None:
    inset = axes.inset_axes((0.13, 0.5, 0.47, 0.4))
    _draw_lines(inset, lines)
    inset.set_xlim(0, 50)
    highest = [
        np.nanmax((line.mean + np.nan_to_num(line.std))[: len(line.mean) // 2 + 1], initial=0)
        for line in lines.values()
    ]
    inset.set_ylim(0, float(max(highest)) * 1.1 or 1)
    inset.set_title("the easiest half", fontsize=9, fontweight="normal")
    inset.tick_params(labelsize=8)
    inset.locator_params(nbins=4)


# ---------------------------------------------------------------------- figure 6


def figure6(groups: Groups) -> Figure | None:
    """For which share of the queries each negative is hard, beside shuffled ranks.

    The mean of these shares is 5 % by definition. Shuffled ranks give a binomial near it; negatives
    that are hard for many queries, and others that never are, show as wide tails.
    """
    if not any(groups.values()):
        return None
    figure, axes = plots.new_figure(
        "Are the same negatives hard for all queries?",
        "share of the queries for which a negative is among the hardest 5 % (%)",
        "share of the negatives (%)",
    )
    hard = {label: _pool(studies, "hard_share") for label, studies in groups.items()}
    shuffled = np.concatenate([_pool(studies, "shuffled_share") for studies in groups.values()])
    top = max(float(values.max()) for values in [*hard.values(), shuffled])
    edges = np.linspace(0, top * 1.0001 or 1, 41)
    for (label, values), look in zip(hard.items(), plots.line_styles(len(hard)), strict=True):
        name = label if len(groups) > 1 else "as the encoder ranks them"
        heights = plots.in_percent(np.histogram(values, edges)[0])
        axes.stairs(heights, edges, label=name, linewidth=1.8, **look)
        if len(groups) == 1:
            axes.stairs(heights, edges, fill=True, color=look["color"], alpha=0.15)
    look = {"color": plots.NEUTRAL, "linestyle": ":"}
    heights = plots.in_percent(np.histogram(shuffled, edges)[0])
    axes.stairs(heights, edges, label="shuffled ranks", linewidth=1.8, **look)
    plots.set_log_scale(axes)
    axes.set_xlim(0, edges[-1])
    plots.legend_below(figure, axes)
    return figure


def _pool(studies: Sequence[Study], name: str) -> NDArray[Any]:
    """A share of all seeds together, in percent."""
    return np.concatenate([getattr(s, name) for s in studies]) * 100


# ---------------------------------------------------------------------- t-SNE


def draw_tsne(study: Study) -> Figure:
    """The backbone's features in two dimensions, coloured by class (SSCL, figure 6).

    With more than ten classes, the ten with most images are coloured, and the others are grey.
    """
    labels = study.tsne_labels
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    coloured = [int(c) for c in np.argsort(-sizes, kind="stable")[:TSNE_CLASSES] if sizes[c]]
    figure, axes = plots.new_figure("Features in two dimensions (t-SNE)", "", "", height=4.2)
    rest = ~np.isin(labels, coloured)
    if rest.any():
        name = "other classes" if (labels >= 0).any() else "class unknown"
        grey: Any = {"color": plots.NEUTRAL, "alpha": 0.35, "linewidths": 0}
        x, y = study.tsne[rest].T
        axes.scatter(x, y, s=7, label=name, **grey)
    for number, c in enumerate(sorted(coloured)):
        look: Any = {
            "c": plots.COLOURS[number % 7],
            "marker": plots.MARKERS[number % len(plots.MARKERS)],
        }
        x, y = study.tsne[labels == c].T
        name = study.class_names[c]
        axes.scatter(x, y, s=11, label=name, linewidths=0, alpha=0.8, **look)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    plots.legend_below(figure, axes, columns=3, markerscale=1.8, fontsize=9, handletextpad=0.2)
    return figure
