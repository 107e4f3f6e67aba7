"""Figures over epochs: softmax mass, effective number, what policies do, accuracy.

Call the functions inside ``plots.style()``. They take ``{label: [one history per seed, ...]}``,
show means and standard deviations between seeds, leave out groups without the values, and return
None if no group has any.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from solo_hardneg.report.history import Groups, lines_over_epochs
from solo_hardneg.study import plots
from solo_hardneg.study.plots import Line

_BANDS = {"0.1": "hardest 0.1 %", "1": "hardest 1 %", "5": "hardest 5 %", "10": "hardest 10 %"}


def accuracy(groups: Groups) -> Figure | None:
    """Online and kNN accuracy after each epoch."""
    panels = {"val_acc1": "online", "val_knn_acc1": "kNN"}
    return draw_panels(groups, "Accuracy during pretraining", panels, "accuracy (%)")


def mass(groups: Groups) -> Figure | None:
    """Share of the softmax mass on the hardest negatives, and on synthetic ones, if any."""
    panels = {f"mass/hardest_{name}": title for name, title in _BANDS.items()}
    if _occurs(groups, "mass/synthetic"):
        panels["mass/synthetic"] = "synthetic"
    factors = dict.fromkeys(panels, 100.0)
    title = "Softmax mass of the negatives"
    return draw_panels(groups, title, panels, "share of mass (%)", factors, columns=2)


def effective_negatives(groups: Groups) -> Figure | None:
    """Number of negatives of equal mass that would concentrate it as much."""
    panels = {"effective_negatives": ""}
    title = "Effective number of negatives"
    return draw_panels(groups, title, panels, "effective number", log=True)


def verbs(groups: Groups) -> Figure | None:
    """Negatives dropped, filled in and added by the policies, and the share of floored queries."""
    panels = {
        "count/dropped": "dropped",
        "count/filled": "filled in from the reserve",
        "count/synthetic": "synthetic",
        "floored": "queries whose negatives teach nothing (floored, %)",
    }
    panels = {name: title for name, title in panels.items() if _occurs(groups, name)}
    factors = {"floored": 100.0}
    return draw_panels(groups, "What the policies do", panels, "negatives per query", factors)


def dropped(groups: Groups) -> Figure | None:
    """Precision and recall of what the policies dropped, as a guess of the query's class."""
    panels = {
        "dropped/precision": "precision: of the dropped, those of the query's class",
        "dropped/recall": "recall: of the query's class, those that were dropped",
    }
    factors = dict.fromkeys(panels, 100.0)
    return draw_panels(groups, "What the policies drop", panels, "share of negatives (%)", factors)


def spread(groups: Groups) -> Figure | None:
    """RankMe, alignment and uniformity of the recorded embeddings."""
    panels = {
        "rankme": "RankMe: effective rank",
        "alignment": "alignment: squared distance of positives",
        "uniformity": "uniformity: lower is more uniform",
    }
    return draw_panels(groups, "How the embeddings lie", panels, "")


def _occurs(groups: Groups, quantity: str) -> bool:
    histories = [history for several in groups.values() for history in several]
    return any(bool((history.scalar(quantity) > 0).any()) for history in histories)


def draw_panels(
    groups: Groups,
    title: str,
    panels: Mapping[str, str],
    ylabel: str,
    factors: Mapping[str, float] | None = None,
    columns: int = 1,
    log: bool = False,
) -> Figure | None:
    """One panel per quantity, one curve per group.

    Args:
        groups: Histories by group.
        title: Title of the figure.
        panels: Titles of the panels, by quantity.
        ylabel: Name of the vertical axis.
        factors: By quantity, what to multiply it with.
        columns: Panels side by side.
        log: Use a logarithmic axis for values that span more than a factor of ten.
    """
    scales = {name: (factors or {}).get(name, 1.0) for name in panels}
    found = {name: lines_over_epochs(groups, name, factor) for name, factor in scales.items()}
    found = {name: lines for name, lines in found.items() if lines}
    if not found:
        return None
    figure, grid = new_grid(title, len(found), columns)
    styles = dict(zip(groups, plots.line_styles(len(groups)), strict=True))
    for axes, (name, lines) in zip(grid, found.items(), strict=True):
        for label, line in lines.items():
            plots.draw_line(axes, line, label, styles[label])
        axes.set_title(panels[name], fontsize=11, fontweight="normal")
        axes.set_ylabel("share of queries (%)" if name == "floored" else ylabel)
        if log and _spans_decades(lines.values()):
            plots.set_log_scale(axes)
    label_epochs(grid, columns)
    if len(groups) > 1:
        plots.legend_below(figure, grid[0])
    return figure


def _spans_decades(lines: Iterable[Line]) -> bool:
    """Whether the values, all positive, span more than a factor of ten."""
    values = np.concatenate([line.mean[np.isfinite(line.mean)] for line in lines])
    return bool(len(values) and values.min() > 0 and values.max() > 10 * values.min())


def new_grid(
    title: str, panels: int, columns: int, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with a title and panels that share their horizontal axis.

    Args:
        title: Title of the figure, wrapped if it is long.
        panels: Number of panels.
        columns: Panels side by side.
        height: Height in inches; by default, it grows with the rows.
    """
    rows = math.ceil(panels / columns)
    default = plots.SIZE[1] - 0.3 if rows == 1 else 1.0 + 2.1 * rows
    figure = Figure(figsize=(plots.SIZE[0], height or default))
    figure.suptitle(textwrap.fill(title, 48), x=0.01, ha="left")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel().tolist()
    for axes in grid[panels:]:
        axes.remove()
    return figure, grid[:panels]


def label_epochs(grid: Sequence[Axes], columns: int) -> None:
    """Labels the epochs below the last row of panels."""
    for axes in grid:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid[-columns:]:
        axes.set_xlabel("epoch")
    for axes in grid[:-columns]:
        axes.tick_params(labelbottom=False)
