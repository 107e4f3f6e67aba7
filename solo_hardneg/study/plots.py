"""One style for all figures, and how they are saved.

Only matplotlib's object interface is used: no ``pyplot``, no window, no global state.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

# The colour-blind-safe palette of Okabe and Ito (2008), each colour with a contrast of 3 to white.
COLOURS = (
    "#2b83ba",  # blue
    "#d1602a",  # vermilion
    "#15916c",  # bluish green
    "#b86aa0",  # reddish purple
    "#b47d0c",  # orange
    "#4a97c9",  # sky blue
    "#8a8426",  # yellow
    "#858585",  # grey
)
NEUTRAL = "#858585"
DASHES = ("-", "--", "-.", ":")  # so that lines differ in a grey print, too
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#24292f"
SIZE = (5.0, 3.6)  # inches; readable on a phone at a font size of 11

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.unicode_minus": True,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "figure.figsize": SIZE,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so figures are equal everywhere
    "font.size": 11,
    "grid.alpha": 0.3,
    "grid.color": NEUTRAL,
    "grid.linewidth": 0.6,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "auto",
    "text.color": INK,
    "text.parse_math": False,  # a run's name may hold a dollar sign
    "xtick.color": INK,
    "xtick.labelsize": 10,
    "ytick.color": INK,
    "ytick.labelsize": 10,
}
T = TypeVar("T")


class Line(NamedTuple):
    """A curve over seeds.

    Attributes:
        x: (n,) positions.
        mean: (n,) means over seeds; NaN where unknown.
        std: (n,) standard deviations between seeds; NaN with fewer than two.
    """

    x: NDArray[Any]
    mean: NDArray[Any]
    std: NDArray[Any]


@contextmanager
def style() -> Iterator[None]:
    """Sets the style of the figures made inside: transparent, for a light background.

    A figure's style is fixed when it is made; it may be saved outside.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore the user's own rc file
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(
    title: str, xlabel: str, ylabel: str, height: float = SIZE[1]
) -> tuple[Figure, Axes]:
    """Makes an empty figure, with long titles and labels wrapped; ``height`` is in inches."""
    figure = Figure(figsize=(SIZE[0], height))
    axes = figure.add_subplot()
    # A title of the axes would start only at their left edge.
    figure.suptitle(textwrap.fill(title, 50), x=0.015, ha="left")
    axes.set_xlabel(_wrap_evenly(xlabel, 46))
    axes.set_ylabel(_wrap_evenly(ylabel, 34))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _wrap_evenly(text: str, width: int) -> str:
    """Wraps a text into as few lines as the width needs, of about equal length."""
    if "\n" in text:
        return text
    lines = textwrap.wrap(text, width)
    for narrow in range(len(text) // max(len(lines), 1) or 1, width):
        if len(even := textwrap.wrap(text, narrow)) <= len(lines):
            return "\n".join(even)
    return "\n".join(lines)


def legend_below(figure: Figure, axes: Axes, columns: int = 1, **settings: Any) -> None:
    """Adds a legend below the axes, where it covers nothing, and makes the figure higher."""
    handles, labels = axes.get_legend_handles_labels()
    width = 56 // columns
    if columns == 1:
        labels = [textwrap.fill(label, width, max_lines=2, placeholder=" …") for label in labels]
    else:
        labels = [textwrap.shorten(label, width, placeholder=" …") for label in labels]
    where: Any = {"loc": "outside lower center", "ncols": columns, "columnspacing": 1.2}
    figure.legend(handles, labels, **where, **settings)
    lines = -(-sum(label.count("\n") + 1 for label in labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * lines)


def line_styles(number: int) -> list[dict[str, Any]]:
    """Colours and dashes for this many lines; up to 32 are different."""
    styles = [{"color": c, "linestyle": d} for d in DASHES for c in COLOURS]
    return list(islice(cycle(styles), number))


def draw_line(axes: Axes, line: Line, label: str, look: Mapping[str, Any]) -> None:
    """Draws a curve, and the standard deviation between seeds as a shade around it."""
    known = np.isfinite(line.mean)
    marker = "o" if known.sum() < 2 else None
    axes.plot(line.x[known], line.mean[known], label=label, marker=marker, **look)
    spread = known & np.isfinite(line.std)
    if spread.any():
        low, high = (line.mean + sign * line.std for sign in (-1, 1))
        shade = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(line.x[spread], low[spread], high[spread], **shade)


def set_log_scale(axes: Axes) -> None:
    """Makes the vertical axis logarithmic, with plain numbers as labels."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def in_percent(counts: ArrayLike, least: float = 0.0) -> NDArray[Any]:
    """Counts as percentages of their sum, and NaN, blank on a logarithmic axis, up to ``least``."""
    counts = np.asarray(counts, dtype=float)
    shares = 100 * counts / max(counts.sum(), 1e-9)
    return np.where(shares > least, shares, np.nan)


def available_figures(
    makers: Mapping[str, Callable[[T], Figure | None]], groups: T
) -> dict[str, Figure]:
    """The figures for which the groups have values, by name."""
    figures = {name: maker(groups) for name, maker in makers.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def to_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element: the same text for the same figure on any machine.

    Letters are paths, since a browser may lack the font.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "solo-hardneg", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def save_png(figure: Figure, file: Path | BinaryIO, dpi: int = 200) -> None:
    """Writes the figure on white."""
    figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
