"""Figures of what the recorder saw: how masses, choices and accuracies change during training.

The functions take groups of courses, ``{label: [one for each seed, ...]}``, and return a
:class:`~solo_hardneg.analysis.plots.Plot`; make them inside ``plots.style()``. With several seeds,
means and standard deviations between seeds are shown. A group that lacks the values is left out; if
all do, DataError says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from solo_hardneg.analysis import plots
from solo_hardneg.analysis.courses import Groups, Line, over_epochs
from solo_hardneg.analysis.plots import Plot
from solo_hardneg.errors import DataError

_BANDS = {"0.1": "hardest 0.1 %", "1": "hardest 1 %", "5": "hardest 5 %", "10": "hardest 10 %"}


def accuracy(groups: Groups) -> Plot:
    """Online and kNN accuracy after each epoch."""
    panels = {"val_acc1": "online", "val_knn_acc1": "kNN"}
    title = "Accuracy during pretraining"
    return _panels(groups, title, panels, "accuracy (%)", columns=1)


def mass(groups: Groups) -> Plot:
    """The share of the softmax mass that the hardest negatives carry."""
    panels = {f"mass/hardest_{name}": title for name, title in _BANDS.items()}
    title = "How much of the softmax mass the hardest carry"
    return _panels(groups, title, panels, "share of mass (%)", factor=100, columns=2)


def effective_number(groups: Groups) -> Plot:
    """How many negatives, all equal, would have the same spread of mass."""
    panels = {"effective_negatives": "effective number"}
    title = "Effective number of negatives"
    return _panels(groups, title, panels, "effective number", log=True)


def verbs(groups: Groups) -> Plot:
    """What policies take away, add, and leave without a gradient, where they do."""
    panels = {
        "count/dropped": "dropped",
        "count/filled": "filled in from the reserve",
        "count/synthetic": "synthetic",
    }
    panels = {name: title for name, title in panels.items() if _ever(groups, name)}
    title, axis = "What the policies do", "negatives per query"
    shares = {"floored": "queries whose negatives teach nothing (floored, %)"}
    if _ever(groups, "floored"):
        panels |= shares
    scale = {"floored": 100.0}
    return _panels(groups, title, panels, axis, columns=1, factors=scale)


def _ever(groups: Groups, quantity: str) -> bool:
    return any(bool((c.scalar(quantity) > 0).any()) for cs in groups.values() for c in cs)


# ---------------------------------------------------------------------- curves over epochs


def _panels(
    groups: Groups,
    title: str,
    panels: Mapping[str, str],
    axis: str,
    *,
    columns: int = 1,
    factor: float = 1.0,
    factors: Mapping[str, float] | None = None,
    log: bool = False,
) -> Plot:
    """One panel for each quantity, one line for each group."""
    found: dict[str, dict[str, Line]] = {}
    for name in panels:
        scale = (factors or {}).get(name, factor)
        all_lines = {label: over_epochs(c, name, scale) for label, c in groups.items()}
        known = {label: line for label, line in all_lines.items() if line is not None}
        if known:
            found[name] = known
    if not found:
        raise DataError(f"No run knows {', '.join(panels.values())}: there is nothing to draw.")
    figure, grid = grid_of(title, len(found), columns, len(groups))
    colours = dict(zip(groups, plots.looks(len(groups)), strict=True))
    for axes, (name, lines) in zip(grid, found.items(), strict=False):
        for label, line in lines.items():
            draw(axes, line, label, colours[label])
        if panels[name] != axis:
            axes.set_title(panels[name], fontsize=11, fontweight="normal")
        axes.set_ylabel("share of queries (%)" if name == "floored" else axis)
        if log and _wide(lines.values()):
            logarithmic(axes)
    finish(figure, grid, columns, groups)
    return Plot(
        figure, f"Curves over epochs, {axis}. {told({panels[k]: v for k, v in found.items()})}"
    )


def _wide(lines: Iterable[Line]) -> bool:
    """Whether the values, all above 0, stretch over more than a factor of ten."""
    values = np.concatenate([line.mean[np.isfinite(line.mean)] for line in lines])
    return bool(len(values) and values.min() > 0 and values.max() > 10 * values.min())


def logarithmic(axes: Axes) -> None:
    """Sets the vertical axis to logarithms, and its labels to plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def told(found: Mapping[str, Mapping[str, Line]]) -> str:
    """Where the curves of each panel begin and end, panel by panel."""
    return " ".join(
        f"{title}: {'; '.join(f'{label} {in_words(line)}' for label, line in lines.items())}."
        for title, lines in found.items()
    )


def grid_of(
    title: str, number: int, columns: int, lines: int, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with a title and so many panels, whose axes across are shared.

    Args:
        title: of all of it; broken if it is long.
        number: of panels.
        columns: how many stand side by side.
        lines: how many a legend below will have to tell apart.
        height: in inches; by default it follows from the rows.
    """
    rows = math.ceil(number / columns)
    default = plots.SIZE[1] - 0.3 if rows == 1 else 1.0 + 2.1 * rows
    figure = Figure(figsize=(plots.SIZE[0], (height or default) + room(lines)))
    size = {"fontsize": 12, "fontweight": "bold"}
    figure.suptitle(textwrap.fill(title, 48), x=0.01, ha="left", **size)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, squeeze=False)).ravel()
    for axes in grid[number:]:
        axes.remove()
    return figure, list(grid[:number])


def room(lines: int) -> float:
    """The height, in inches, of a legend below for so many lines."""
    return 0.24 * lines if lines > 1 else 0.0


def finish(figure: Figure, grid: Sequence[Axes], columns: int, groups: Groups) -> None:
    """Names the axes of epochs, and says which line is whose."""
    for axes in grid[-columns:]:
        axes.set_xlabel("epoch")
    for axes in grid:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid[:-columns]:
        axes.tick_params(labelbottom=False)
    legend_below(figure, grid[0], len(groups))


def legend_below(figure: Figure, axes: Axes, number: int) -> None:
    """A legend under the figure, where it covers nothing, if there is more than one line."""
    if number < 2:
        return
    handles, labels = axes.get_legend_handles_labels()
    names = [textwrap.fill(label, 44) for label in labels]
    figure.legend(handles, names, loc="outside lower left")


def draw(axes: Axes, line: Line, label: str, look: Mapping[str, Any]) -> None:
    """A curve with the standard deviation between seeds around it."""
    known = np.isfinite(line.mean)
    marker = "o" if known.sum() < 2 else None
    axes.plot(line.x[known], line.mean[known], label=label, marker=marker, **look)
    spread = known & np.isfinite(line.std)
    if spread.any():
        low, high = (line.mean + sign * line.std for sign in (-1, 1))
        area = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(line.x[spread], low[spread], high[spread], **area)


def in_words(line: Line) -> str:
    """Where a curve begins and ends."""
    known = np.flatnonzero(np.isfinite(line.mean))
    if not len(known):  # damaged records: what was counted is no number
        return "is unknown"
    first, last = known[0], known[-1]
    spread = f" ± {line.std[last]:.3g}" if np.isfinite(line.std[last]) else ""
    end = f"{line.mean[last]:.3g}{spread}"
    if first == last:
        return f"{end} in epoch {line.x[last]}"
    return f"from {line.mean[first]:.3g} in epoch {line.x[first]} to {end} in epoch {line.x[last]}"
