"""Pictures: one style for all of them, and how they are saved.

The figures of a study are in :mod:`solo_hardneg.analysis.figures`. Only matplotlib's object
interface is used: no ``pyplot``, no window, no state that outlives a call.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from solo_hardneg.analysis.untrusted import write_text
from solo_hardneg.errors import DataError

# The colours of Okabe and Ito (2008), which the colour-blind can tell apart, moved to a middle
# lightness: each has a contrast of 3 or more to white and to the dark ground alike.
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
# Beside the colour, so that a grey print and any eye can tell lines and points apart.
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GROUND = {False: "#ffffff", True: "#1b1e23"}
_INK = {False: "#24292f", True: "#d7dce2"}
SIZE = (5.0, 3.6)  # inches; with 11 points it can be read on a phone


class Plot(NamedTuple):
    """A figure, and what it shows in words and numbers for those who can't see it."""

    figure: Figure
    alt: str


@contextmanager
def style(dark: bool = False) -> Iterator[None]:
    """Figures that are made inside have our style: transparent, for a light or a dark ground.

    A figure's colours are fixed when it is made; it may be saved outside.
    """
    ink = _INK[dark]
    settings: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": ink,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": ink,
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
        "font.family": "DejaVu Sans",  # matplotlib brings it along: equal everywhere
        "font.size": 11,
        "grid.alpha": 0.3,
        "grid.color": NEUTRAL,
        "grid.linewidth": 0.6,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "legend.labelcolor": ink,
        "lines.linewidth": 1.8,
        "savefig.facecolor": "auto",
        "text.color": ink,
        "text.parse_math": False,  # a run's name may hold a dollar sign
        "xtick.color": ink,
        "xtick.labelsize": 10,
        "ytick.color": ink,
        "ytick.labelsize": 10,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own rc file must not change our figures
        matplotlib.rcParams.update(settings)
        yield


def new(title: str, across: str, up: str, height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """An empty figure with a title and the names of its axes; long ones are broken."""
    figure = Figure(figsize=(SIZE[0], height))
    axes = figure.add_subplot()
    # of the figure, not of the axes: these begin where the names on the left end
    figure.suptitle(textwrap.fill(title, 50), x=0.015, ha="left")
    axes.set_xlabel(_broken(across, 46))
    axes.set_ylabel(_broken(up, 34))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _broken(text: str, width: int) -> str:
    """In as few lines as that width needs, of about equal length; or as it is broken already."""
    if "\n" in text:
        return text
    lines = textwrap.wrap(text, width)
    for narrow in range(len(text) // max(len(lines), 1) or 1, width):
        if len(even := textwrap.wrap(text, narrow)) <= len(lines):
            return "\n".join(even)
    return "\n".join(lines)


def below(figure: Figure, axes: Axes, columns: int = 1, **settings: Any) -> None:
    """A legend below the axes, where it covers nothing; the figure grows with it."""
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-len(labels) // columns)
    labels = [textwrap.shorten(label, 56 // columns, placeholder=" …") for label in labels]
    where: Any = {"loc": "outside lower center", "ncols": columns, "columnspacing": 1.2}
    figure.legend(handles, labels, **where, **settings)
    figure.set_figheight(figure.get_figheight() + 0.22 * rows)


def legend(axes: Axes, number: int, **where: Any) -> None:
    """A legend, where there is more than one thing to tell apart; long labels are broken."""
    if number < 2:
        return
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, [textwrap.fill(label, 34) for label in labels], **where)


def looks(number: int) -> list[dict[str, Any]]:
    """Colour and dashes of so many lines; no two are equal up to 32."""
    lines = [{"color": c, "linestyle": d} for d in DASHES for c in COLOURS]
    return list(islice(cycle(lines), number))


def mean_and_std(values: Sequence[float] | NDArray[Any]) -> tuple[Any, Any]:
    """Over the first axis, the seeds: the mean, and the standard deviation between seeds.

    Unknown values (NaN) are left out; the deviation is NaN with fewer than two known ones.
    """
    known = np.ma.masked_invalid(np.asarray(values, dtype=float))
    number = np.asarray(known.count(axis=0))
    mean = np.asarray(known.mean(axis=0).filled(np.nan) if known.ndim > 1 else _plain(known.mean()))
    distance = np.ma.masked_invalid(np.asarray(values, dtype=float) - mean)
    squares = np.asarray((distance**2).filled(0.0)).sum(axis=0)
    std = np.where(number > 1, np.sqrt(squares / np.maximum(number - 1, 1)), np.nan)
    return mean[()], std[()]


def _plain(value: Any) -> float:
    return float("nan") if value is np.ma.masked else float(value)


def those_possible(makers: Mapping[str, Callable[[Any], Plot]], groups: Any) -> dict[str, Plot]:
    """The figures that there are values for; of the others, notes elsewhere say why not."""
    made = {}
    for name, maker in makers.items():
        with suppress(DataError):
            made[name] = maker(groups)
    return made


def svg(figure: Figure, alt: str = "") -> str:
    """The figure as an ``<svg>`` element: the same text for the same figure, anywhere.

    Letters are drawn as paths: a browser's fonts are not ours.

    Args:
        figure: what to draw.
        alt: a text for those who can't see it; it becomes the element's title.
    """
    out = io.StringIO()
    metadata = {"Date": None, "Creator": None, **({"Title": alt} if alt else {})}
    with matplotlib.rc_context({"svg.hashsalt": "solo-hardneg", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata=metadata)
    text = out.getvalue()
    return text[text.index("<svg") :]


def save_svg(figure: Figure, path: Path, alt: str = "") -> None:
    """Writes :func:`svg` to a file."""
    write_text(path, svg(figure, alt))


def save_png(figure: Figure, path: Path, dpi: int = 200, dark: bool = False) -> None:
    """Writes the figure on an opaque ground, light or (if it was made so) dark."""
    figure.savefig(path, format="png", dpi=dpi, facecolor=GROUND[dark], metadata={"Software": None})
