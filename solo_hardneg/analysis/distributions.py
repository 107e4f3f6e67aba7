"""Figures of what the recorder saw: how similarities are spread, and who the hard negatives are.

As in :mod:`solo_hardneg.analysis.timelines`, the functions take ``{label: [one course for each
seed, ...]}``. "Late in training" is the last quarter of the recorded epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from solo_hardneg.analysis import plots, timelines
from solo_hardneg.analysis.courses import EDGES, Course, Groups, Line, over_epochs
from solo_hardneg.analysis.plots import Plot
from solo_hardneg.analysis.timelines import draw, grid_of, legend_below, logarithmic, room, told
from solo_hardneg.errors import DataError

MET = 50  # an image's share is shown if it was a negative so often: chance is then ± 3 points
TAIL = 0.05  # beyond either end of the middle nine tenths
_PERCENTILE = "difficulty percentile of the negatives (0 = easiest, 100 = hardest)"
_COSINE = "similarity (cosine)"
_CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
_SIDES = {"positive": "positives", "negative": "negatives"}


def figures(groups: Groups) -> dict[str, Plot]:
    """All figures that these runs have the values for, by name, in the order of a report."""
    makers: dict[str, Callable[[Groups], Plot]] = {
        "accuracy": timelines.accuracy,
        "mass": timelines.mass,
        "effective": timelines.effective_number,
        "similarity": similarity,
        **{f"histogram {label}": partial(histograms, label=label) for label in groups},
        "same_class": same_class,
        "depth": depth,
        "age": age,
        "verbs": timelines.verbs,
        "images": images,
        "images_in_queue": images_in_queue,
    }
    return plots.those_possible(makers, groups)


# ---------------------------------------------------------------------- similarity


def similarity(groups: Groups) -> Plot:
    """Mean similarity of positives and of negatives; of few groups, the middle nine tenths, too."""
    found = {
        side: {
            label: line
            for label, courses in groups.items()
            if (line := over_epochs(courses, f"similarity/{side}")) is not None
        }
        for side in _SIDES
    }
    found = {side: lines for side, lines in found.items() if lines}
    if not found:
        raise DataError("No run knows its similarities: there is nothing to draw.")
    figure, grid = grid_of("Similarity to the query", len(found), 1, len(groups))
    looks = dict(zip(groups, plots.looks(len(groups)), strict=True))
    for axes, (side, lines) in zip(grid, found.items(), strict=True):
        for label, line in lines.items():
            draw(axes, line, label, looks[label])
            if len(groups) <= 2:
                _middle(axes, groups[label], side, looks[label])
        axes.set_title(f"{_SIDES[side]}, mean", fontsize=11, fontweight="normal")
        axes.set_ylabel(_COSINE)
    timelines.finish(figure, grid, 1, groups)
    text = told({_SIDES[side]: lines for side, lines in found.items()})
    return Plot(figure, f"Curves over epochs, mean {_COSINE}. {text}")


def _middle(axes: Axes, courses: Sequence[Course], side: str, look: Mapping[str, Any]) -> None:
    counts = _counts(courses, side)
    if len(counts):
        low, high = (quantiles(counts.to_numpy(), q) for q in (TAIL, 1 - TAIL))
        area = {"color": look["color"], "alpha": 0.12, "linewidth": 0}
        axes.fill_between(counts.index + 1, low, high, **area)


def _counts(courses: Sequence[Course], side: str) -> pd.DataFrame:
    """(epochs, 200) similarities of all seeds together."""
    tables = [table for c in courses if len(table := c.histogram(side))]
    return pd.concat(tables).groupby(level=0).sum() if tables else pd.DataFrame()


def quantiles(counts: NDArray[Any], share: float) -> NDArray[Any]:
    """Per row of (E, 200) counts, the centre of the bin in which a share of them is reached."""
    reached = counts.cumsum(axis=1) >= share * counts.sum(axis=1, keepdims=True)
    return _CENTRES[reached.argmax(axis=1)]


def histograms(groups: Groups, label: str) -> Plot:
    """How the similarities of one group's positives and negatives are spread, epoch by epoch.

    The shade of an epoch that was not recorded is that of the nearest one that was.
    """
    counts = {side: _counts(groups[label], side) for side in _SIDES}
    counts = {side: table for side, table in counts.items() if len(table)}
    if not counts:
        raise DataError(f"{label} has no histograms: there is nothing to draw.")
    figure, grid = grid_of(f"Spread of similarities. {label}", len(counts), len(counts), 1)
    colour = to_rgb(plots.COLOURS[0])
    shades = ListedColormap([(*colour, share) for share in np.linspace(0, 1, 64)])
    low, high = _visible([table.to_numpy() for table in counts.values()])
    parts = []
    for axes, (side, table) in zip(grid, counts.items(), strict=True):
        epochs = table.index.to_numpy() + 1
        place = (epochs[0] - 0.5, epochs[-1] + 0.5, -1, 1)
        # One column for each epoch: the picture's columns are equally wide.
        filled = table.reindex(range(table.index[0], table.index[-1] + 1), method="nearest")
        density = filled.to_numpy() / filled.to_numpy().sum(axis=1, keepdims=True)
        image = np.sqrt(density / density.max()).T  # the root, so that thin tails can be seen
        spread: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "origin": "lower"}
        axes.imshow(image, cmap=shades, vmin=0, vmax=1, extent=place, **spread)
        ends = [quantiles(table.to_numpy(), q) for q in (0.05, 0.5, 0.95)]
        for values, dashes in zip(ends, (":", "-", ":"), strict=True):
            if len(epochs) > 1:
                axes.plot(epochs, values, dashes, color=plots.COLOURS[1], linewidth=1.2)
        axes.set_title(_SIDES[side], fontsize=11, fontweight="normal")
        axes.set_xlabel("epoch")
        axes.set_xlim(place[:2])
        axes.set_ylim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        five, half, most = (values[-1] for values in ends)
        parts.append(
            f"{_SIDES[side]} in epoch {epochs[-1]}: median {half:.3f}, nine tenths between "
            f"{five:.3f} and {most:.3f}"
        )
    grid[0].set_ylabel(_COSINE)
    for axes in grid[1:]:
        axes.tick_params(labelleft=False)
    return Plot(figure, f"Shades over epochs, {_COSINE}, {label}. " + "; ".join(parts) + ".")


def _visible(tables: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Where all but a thousandth of the similarities lie."""
    total = [table.sum(axis=0, keepdims=True) for table in tables]
    low = min(quantiles(row, 0.0005)[0] for row in total)
    high = max(quantiles(row, 0.9995)[0] for row in total)
    return max(low - 0.03, -1.0), min(high + 0.03, 1.0)


# ---------------------------------------------------------------------- by difficulty


def same_class(groups: Groups) -> Plot:
    """The share of negatives of the query's class in each percentile (as Cai's figure 5a)."""
    title = "Negatives of the query's class, late in training"
    return _by_difficulty(groups, "same_class", title, "share of the query's class (%)", 100)


def depth(groups: Groups) -> Plot:
    """The depth of the least common ancestor in each percentile (as Cai's figure 5b)."""
    title = "Nearness in meaning, late in training"
    axis = "depth of the common ancestor in WordNet"
    return _by_difficulty(groups, "depth", title, axis, 1, from_zero=False)


def age(groups: Groups) -> Plot:
    """How long ago the negatives of each percentile came into the queue."""
    title = "Age in the queue, late in training"
    return _by_difficulty(groups, "age", title, "mean age (in keys)", 1)


def _by_difficulty(
    groups: Groups, quantity: str, title: str, axis: str, factor: float, from_zero: bool = True
) -> Plot:
    """Curves over the percentiles; groups whose seeds differ in their number are left out."""
    found: dict[str, Line] = {}
    for label, courses in groups.items():
        seeds = [row * factor for c in courses if len(row := c.late("percentile", quantity))]
        if seeds and len({len(row) for row in seeds}) == 1:
            mean, std = plots.mean_and_std(np.stack([row.to_numpy(dtype=float) for row in seeds]))
            x = (np.asarray(seeds[0].index) + 0.5) * 100 / (max(seeds[0].index) + 1)
            found[label] = Line(x, mean, std)
    if not found:
        raise DataError(f"No run knows the {axis} by percentile: there is nothing to draw.")
    figure, axes = plots.new(title, _PERCENTILE, axis, plots.SIZE[1] + room(len(found)))
    looks = dict(zip(groups, plots.looks(len(groups)), strict=True))
    for label, line in found.items():
        draw(axes, line, label, looks[label])
    axes.set_xlim(0, 100)
    if from_zero:
        axes.set_ylim(bottom=0)
    legend_below(figure, axes, len(found))
    parts = [f"{label}: {_ends(line)}" for label, line in found.items()]
    return Plot(figure, f"Curves over the difficulty of the negatives, {axis}. {'. '.join(parts)}.")


def _ends(line: Line) -> str:
    places = {"easiest": 0, "middle": len(line.mean) // 2, "hardest": len(line.mean) - 1}
    return ", ".join(f"{name} percentile {line.mean[i]:.3g}" for name, i in places.items())


# ---------------------------------------------------------------------- by image


class Counted(NamedTuple):
    """How often each of n images of a group was a negative, and how often a hard one.

    Attributes:
        met: (n,) how often it was a negative; ``MET`` times or more.
        hard: (n,) how often it was among the hardest 5 %.
        rate: which share of all negatives is "the hardest 5 %" exactly: it depends on how many
            negatives a query has.
    """

    met: NDArray[Any]
    hard: NDArray[Any]
    rate: float

    @property
    def shares(self) -> NDArray[Any]:
        """(n,) in percent."""
        return 100 * self.hard / self.met


def images(groups: Groups) -> Plot:
    """For which share of its queries each image is hard, against chance (as Cai's figure 6).

    By chance all images would be hard equally often; how far shares then lie apart follows from
    how often each image was met. Groups with a queue are left to :func:`images_in_queue`.
    """
    found = {label: c for label, c in groups.items() if not _has_queue(c)}
    return _of_images(groups, found, "How often the same images are hard", "by chance")


def images_in_queue(groups: Groups) -> Plot:
    """The same of groups with a queue, where it tells little of the images themselves.

    An image is met as a negative while its key is in the queue. One that was met few times was
    mostly met while its key was young, and young keys are harder than old ones or less hard: the
    shares lie apart even if all images are alike.
    """
    found = {label: c for label, c in groups.items() if _has_queue(c)}
    title = "How often images in the queue are hard (ages and images mixed)"
    return _of_images(groups, found, title, "if all images and ages were alike")


def _has_queue(courses: Sequence[Course]) -> bool:
    return any(len(c.late("percentile", "age")) for c in courses)


def _of_images(groups: Groups, chosen: Groups, title: str, alike: str) -> Plot:
    counted = {label: one for label, c in chosen.items() if (one := count(c)) is not None}
    if not counted:
        raise DataError(f"No run counted images that were met {MET} times: nothing to draw.")
    figure, axes = plots.new(
        title,
        "share of its queries for which an image is among the hardest 5 % (%)",
        "share of the images (%)",
        plots.SIZE[1] + room(len(counted) + 1),
    )
    every = np.concatenate([one.met for one in counted.values()])
    top = max(float(one.shares.max()) for one in counted.values())
    # Shares are whole numbers over how often an image was met; a bin shall hold four of them.
    width = max(max(top, 15.0) / 40, 400 / float(np.median(every)))
    edges = np.arange(0, max(top, 15.0) + width, width)
    looks = dict(zip(groups, plots.looks(len(groups)), strict=True))
    for label, one in counted.items():
        height = _percent(np.histogram(one.shares, edges)[0])
        name = label if len(groups) > 1 else "as recorded"
        axes.stairs(height, edges, label=name, linewidth=1.8, **looks[label])
    plain: dict[str, Any] = {"color": plots.NEUTRAL, "linestyle": ":", "linewidth": 1.8}
    expected = sum(chance(one.met, edges, one.rate) for one in counted.values())
    axes.stairs(_percent(np.asarray(expected)), edges, **plain)
    axes.plot([], [], label=alike, **plain)
    logarithmic(axes)
    axes.set_xlim(0, edges[-1])
    legend_below(figure, axes, 2)
    parts = [f"{label}: {_apart(one, alike)}" for label, one in counted.items()]
    return Plot(figure, f"{title}, in histograms. {'. '.join(parts)}.")


def count(courses: Sequence[Course]) -> Counted | None:
    """The images of all seeds, late in training; ``None`` if none was met often enough."""
    parts = []
    for course in courses:
        pair = {name: course.late("image", name) for name in ("met", "hard")}
        parts.append(pd.concat(pair, axis=1).fillna(0.0))
    table = pd.concat(parts) if parts else pd.DataFrame(columns=["met", "hard"])
    often = table[table["met"] >= MET]
    if not len(often):
        return None
    met, hard = (often[name].to_numpy(dtype=float) for name in ("met", "hard"))
    return Counted(met, hard, float(table["hard"].sum() / table["met"].sum()))


def chance(met: NDArray[Any], edges: NDArray[Any], rate: float) -> NDArray[Any]:
    """How many images would fall between the edges (percent) if all were hard equally often.

    Args:
        met: (n,) how often each image was a negative.
        edges: (b + 1,) of the bins, in percent.
        rate: for which share of its queries each would be hard.

    Returns:
        (b,) expected numbers of images, from binomial distributions.
    """
    from scipy.stats import binom

    trials, images = np.unique(met.round().astype(int), return_counts=True)
    # A histogram's bins hold their lower edge: so many hits are below an edge.
    below = np.ceil(edges[None, :] / 100 * trials[:, None] - 1e-9) - 1
    reached = binom.cdf(below, trials[:, None], rate)
    return (images[:, None] * np.diff(reached, axis=1)).sum(axis=0)


def _percent(counts: NDArray[Any]) -> NDArray[Any]:
    shares = 100.0 * counts / max(counts.sum(), 1e-9)
    return np.where(shares > 1e-3, shares, np.nan)  # the axis is logarithmic


def _apart(one: Counted, alike: str) -> str:
    shares, rate = one.shares, one.rate
    expected = 100 * math.sqrt(float((rate * (1 - rate) / one.met).mean()))
    return (
        f"{len(shares)} images, mean {shares.mean():.2f} %, median {np.median(shares):.2f} %, "
        f"standard deviation {shares.std():.2f} points ({alike}: {expected:.2f}), "
        f"{100 * (shares == 0).mean():.1f} % of the images never hard, one in a hundred hard for "
        f"{np.percentile(shares, 99):.1f} % of its queries or more"
    )
