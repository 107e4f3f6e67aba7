"""Figures of recorded distributions: similarities, difficulty percentiles, and images.

See :mod:`solo_hardneg.report.timelines` for how they are called. "Late in training" is the last
quarter of the recorded epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from solo_hardneg.report import timelines
from solo_hardneg.report.history import EDGES, EpochHistory, Groups, lines_over_epochs
from solo_hardneg.study import plots
from solo_hardneg.study.plots import Line
from solo_hardneg.study.significance import mean_and_std

Histories = Sequence[EpochHistory]

MET = 50  # least number of queries for an image's share to be shown: ± 3 points by chance
TAIL = 0.05  # left out at either end
_PERCENTILE = "difficulty percentile of the negatives (0 = easiest, 100 = hardest)"
_COSINE = "similarity (cosine)"
_CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
_SIDES = {"positive": "positives", "negative": "negatives"}
_GUESSES = {
    "precision": "precision: of the dropped, those of the query's class",
    "recall": "recall: of the query's class, those that were dropped",
}


def draw_run_figures(groups: Groups) -> dict[str, Figure]:
    """All figures that these runs have values for, by name, in the order of a report."""
    makers: dict[str, Callable[[Groups], Figure | None]] = {
        "accuracy": timelines.accuracy,
        "mass": timelines.mass,
        "effective": timelines.effective_negatives,
        "similarity": similarity,
        **{f"histogram {label}": partial(histograms, label=label) for label in groups},
        "same_class": same_class,
        "depth": depth,
        "age": age,
        "verbs": timelines.verbs,
        "dropped": timelines.dropped,
        "dropped_by_difficulty": dropped_by_difficulty,
        "spread": timelines.spread,
        "images": images,
        "images_in_queue": images_in_queue,
    }
    return plots.available_figures(makers, groups)


# ---------------------------------------------------------------------- similarity


def similarity(groups: Groups) -> Figure | None:
    """Mean similarity of positives and negatives; of one or two groups, the middle 90 %, too."""
    found = {side: lines_over_epochs(groups, f"similarity/{side}") for side in _SIDES}
    found = {side: lines for side, lines in found.items() if lines}
    if not found:
        return None
    figure, grid = timelines.new_grid("Similarity to the query", len(found), 1)
    styles = dict(zip(groups, plots.line_styles(len(groups)), strict=True))
    for axes, (side, lines) in zip(grid, found.items(), strict=True):
        for label, line in lines.items():
            plots.draw_line(axes, line, label, styles[label])
            if len(groups) <= 2:
                _shade_middle(axes, groups[label], side, styles[label])
        axes.set_title(f"{_SIDES[side]}, mean", fontsize=11, fontweight="normal")
        axes.set_ylabel(_COSINE)
    timelines.label_epochs(grid, 1)
    if len(groups) > 1:
        plots.legend_below(figure, grid[0])
    return figure


def _shade_middle(axes: Axes, histories: Histories, side: str, look: Mapping[str, Any]) -> None:
    counts = _pooled_histogram(histories, side)
    if len(counts):
        low, high = (quantiles(counts.to_numpy(), q) for q in (TAIL, 1 - TAIL))
        shade = {"color": look["color"], "alpha": 0.12, "linewidth": 0}
        axes.fill_between(counts.index + 1, low, high, **shade)


def _pooled_histogram(histories: Histories, side: str) -> pd.DataFrame:
    """(epochs, 200) similarities of all seeds together."""
    tables = [table for history in histories if len(table := history.histogram(side))]
    return pd.concat(tables).groupby(level=0).sum() if tables else pd.DataFrame()


def quantiles(counts: NDArray[Any], share: float) -> NDArray[Any]:
    """Per row of (E, 200) counts, the centre of the bin that holds this quantile."""
    reached = counts.cumsum(axis=1) >= share * counts.sum(axis=1, keepdims=True)
    return _CENTRES[reached.argmax(axis=1)]


def histograms(groups: Groups, label: str) -> Figure | None:
    """Distribution of one group's similarities over epochs, of positives and negatives.

    An epoch that was not recorded has the shade of the nearest one that was.
    """
    tables = {side: _pooled_histogram(groups[label], side) for side in _SIDES}
    tables = {side: table for side, table in tables.items() if len(table)}
    if not tables:
        return None
    title = f"Distribution of similarities. {label}"
    figure, grid = timelines.new_grid(title, len(tables), len(tables))
    low, high = _visible_range([table.to_numpy() for table in tables.values()])
    for axes, (side, table) in zip(grid, tables.items(), strict=True):
        _draw_histogram(axes, table)
        axes.set_title(_SIDES[side], fontsize=11, fontweight="normal")
        axes.set_ylim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("epoch")
    grid[0].set_ylabel(_COSINE)
    for axes in grid[1:]:
        axes.tick_params(labelleft=False)
    return figure


def _draw_histogram(axes: Axes, table: pd.DataFrame) -> None:
    """Shades for the counts of each epoch; lines for the median and the middle 90 %."""
    epochs = table.index.to_numpy() + 1
    extent = (epochs[0] - 0.5, epochs[-1] + 0.5, -1, 1)
    # The columns of an image are equally wide, so each epoch needs one.
    filled = table.reindex(range(table.index[0], table.index[-1] + 1), method="nearest").to_numpy()
    density = filled / filled.sum(axis=1, keepdims=True)
    shades = np.sqrt(density / density.max()).T  # the root makes thin tails visible
    colour = to_rgb(plots.COLOURS[0])
    colours = ListedColormap([(*colour, share) for share in np.linspace(0, 1, 64)])
    look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "origin": "lower"}
    axes.imshow(shades, cmap=colours, vmin=0, vmax=1, extent=extent, **look)
    if len(epochs) > 1:
        for share, dashes in ((TAIL, ":"), (0.5, "-"), (1 - TAIL, ":")):
            values = quantiles(table.to_numpy(), share)
            axes.plot(epochs, values, dashes, color=plots.COLOURS[1], linewidth=1.2)
    axes.set_xlim(extent[:2])


def _visible_range(tables: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Where all but a thousandth of the similarities lie."""
    totals = [table.sum(axis=0, keepdims=True) for table in tables]
    low = min(quantiles(row, 0.0005)[0] for row in totals)
    high = max(quantiles(row, 0.9995)[0] for row in totals)
    return max(low - 0.03, -1.0), min(high + 0.03, 1.0)


# ---------------------------------------------------------------------- by difficulty


def same_class(groups: Groups) -> Figure | None:
    """Share of negatives of the query's class in each percentile (as Cai's figure 5a)."""
    title = "Negatives of the query's class, late in training"
    figure = _draw_quantity(groups, "same_class", title, "share of the query's class (%)", 100)
    if figure is not None:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def depth(groups: Groups) -> Figure | None:
    """Depth of the least common ancestor in each percentile (as Cai's figure 5b)."""
    title = "Nearness in meaning, late in training"
    return _draw_quantity(groups, "depth", title, "depth of the common ancestor in WordNet")


def age(groups: Groups) -> Figure | None:
    """Age of the keys in the queue in each percentile."""
    title = "Age in the queue, late in training"
    figure = _draw_quantity(groups, "age", title, "mean age (in keys)")
    if figure is not None:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def dropped_by_difficulty(groups: Groups) -> Figure | None:
    """Precision and recall of what the policies dropped, in each percentile."""
    found = {side: _percentile_lines(groups, f"dropped/{side}", 100) for side in _GUESSES}
    found = {side: lines for side, lines in found.items() if lines}
    if not found:
        return None
    title = "What the policies drop by difficulty, late in training"
    figure, grid = timelines.new_grid(title, len(found), 1)
    styles = dict(zip(groups, plots.line_styles(len(groups)), strict=True))
    for axes, (side, lines) in zip(grid, found.items(), strict=True):
        for label, line in lines.items():
            plots.draw_line(axes, line, label, styles[label])
        axes.set_title(_GUESSES[side], fontsize=11, fontweight="normal")
        axes.set_ylabel("share of negatives (%)")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
    grid[-1].set_xlabel(_PERCENTILE)
    if len(groups) > 1:
        plots.legend_below(figure, grid[0])
    return figure


def _draw_quantity(
    groups: Groups, quantity: str, title: str, ylabel: str, factor: float = 1
) -> Figure | None:
    lines = _percentile_lines(groups, quantity, factor)
    if not lines:
        return None
    figure, axes = plots.new_figure(title, _PERCENTILE, ylabel)
    styles = dict(zip(groups, plots.line_styles(len(groups)), strict=True))
    for label, line in lines.items():
        plots.draw_line(axes, line, label, styles[label])
    axes.set_xlim(0, 100)
    if len(lines) > 1:
        plots.legend_below(figure, axes)
    return figure


def _percentile_lines(groups: Groups, quantity: str, factor: float) -> dict[str, Line]:
    """Curves over the percentiles, without groups whose seeds differ in their number."""
    lines: dict[str, Line] = {}
    for label, histories in groups.items():
        rows = [row * factor for h in histories if len(row := h.late("percentile", quantity))]
        if rows and len({len(row) for row in rows}) == 1:
            mean, std = mean_and_std([row.to_numpy(dtype=float) for row in rows])
            x = (np.asarray(rows[0].index) + 0.5) * 100 / (max(rows[0].index) + 1)
            lines[label] = Line(x, mean, std)
    return lines


# ---------------------------------------------------------------------- by image


class ImageCounts(NamedTuple):
    """How often n images of a group were negatives, and hard ones.

    Attributes:
        met: (n,) times an image was a negative, at least ``MET``.
        hard: (n,) times it was among the hardest 5 %.
        rate: Exact share of all negatives that "the hardest 5 %" are; it depends on the number of
            negatives per query.
    """

    met: NDArray[Any]
    hard: NDArray[Any]
    rate: float

    @property
    def shares(self) -> NDArray[Any]:
        """(n,) in percent."""
        return 100 * self.hard / self.met


def images(groups: Groups) -> Figure | None:
    """For which share of its queries each image is hard, against chance (as Cai's figure 6).

    By chance, all images are hard equally often, and their shares are binomial. Groups with a queue
    are in :func:`images_in_queue`.
    """
    chosen = {label: h for label, h in groups.items() if not _has_queue(h)}
    return _draw_images(groups, chosen, "How often the same images are hard", "by chance")


def images_in_queue(groups: Groups) -> Figure | None:
    """The same for groups with a queue, where it shows little of the images themselves.

    An image that was met few times was mostly met while its key had one age, and hardness depends
    on age. So the shares differ even between images that are alike.
    """
    chosen = {label: h for label, h in groups.items() if _has_queue(h)}
    title = "How often images in the queue are hard (ages and images mixed)"
    return _draw_images(groups, chosen, title, "if all images and ages were alike")


def _has_queue(histories: Histories) -> bool:
    return any(len(history.late("percentile", "age")) for history in histories)


def _draw_images(groups: Groups, chosen: Groups, title: str, expected: str) -> Figure | None:
    counted = {label: counts for label, h in chosen.items() if (counts := count_hard_images(h))}
    if not counted:
        return None
    figure, axes = plots.new_figure(
        title,
        "share of its queries for which an image is among the hardest 5 % (%)",
        "share of the images (%)",
    )
    met = np.concatenate([counts.met for counts in counted.values()])
    top = max(15.0, *(float(counts.shares.max()) for counts in counted.values()))
    # Shares are multiples of 1 / met: each bin holds at least four of them.
    width = max(top / 40, 400 / float(np.median(met)))
    edges = np.arange(0, top + width, width)
    styles = dict(zip(groups, plots.line_styles(len(groups)), strict=True))
    for label, counts in counted.items():
        heights = plots.in_percent(np.histogram(counts.shares, edges)[0], 1e-3)
        name = label if len(groups) > 1 else "as recorded"
        axes.stairs(heights, edges, label=name, linewidth=1.8, **styles[label])
    chance = sum(expected_counts(counts.met, edges, counts.rate) for counts in counted.values())
    look: dict[str, Any] = {"color": plots.NEUTRAL, "linestyle": ":", "linewidth": 1.8}
    axes.stairs(plots.in_percent(chance, 1e-3), edges, label=expected, **look)
    plots.set_log_scale(axes)
    axes.set_xlim(0, edges[-1])
    plots.legend_below(figure, axes)
    return figure


def count_hard_images(histories: Histories) -> ImageCounts | None:
    """The images of all seeds, late in training; None if none was met often enough."""
    parts = [
        pd.concat({name: h.late("image", name) for name in ("met", "hard")}, axis=1).fillna(0.0)
        for h in histories
    ]
    table = pd.concat(parts)
    often = table[table["met"] >= MET]
    if not len(often):
        return None
    met, hard = (often[name].to_numpy(dtype=float) for name in ("met", "hard"))
    return ImageCounts(met, hard, float(table["hard"].sum() / table["met"].sum()))


def expected_counts(met: NDArray[Any], edges: NDArray[Any], rate: float) -> NDArray[Any]:
    """Expected numbers of images between the edges if all were hard equally often.

    Args:
        met: (n,) times each image was a negative.
        edges: (b + 1,) edges of the bins, in percent.
        rate: Share of its queries for which each image is hard.

    Returns:
        (b,) sums of binomial probabilities.
    """
    from scipy.stats import binom

    trials, images = np.unique(met.round().astype(int), return_counts=True)
    # Bins include their lower edge, so the cdf is taken just below each edge.
    below = np.ceil(edges[None, :] / 100 * trials[:, None] - 1e-9) - 1
    reached = binom.cdf(below, trials[:, None], rate)
    return (images[:, None] * np.diff(reached, axis=1)).sum(axis=0)
