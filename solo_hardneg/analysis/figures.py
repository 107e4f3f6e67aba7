"""The figures of a study: Cai et al. 2020 (arXiv 2010.06682), 4-6; Dong et al. 2023 (SSCL), 6.

Each function takes groups of studies, ``{label: [one study for each seed, ...]}``, and returns a
:class:`~solo_hardneg.analysis.plots.Plot`. Make them inside ``plots.style()``. With several seeds,
means and standard deviations between seeds are shown. A group that lacks the values is left out;
if all do, DataError says so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from solo_hardneg.analysis import plots
from solo_hardneg.analysis.plots import Plot
from solo_hardneg.analysis.study import Study
from solo_hardneg.errors import DataError, bad_value

Groups = Mapping[str, Sequence[Study]]

_SAME = "share of negatives of the query's class (%)"
_DEPTH = "depth of the common ancestor\nin WordNet (0 = nothing shared)"
_PERCENTILE = "difficulty percentile\n(0 = easiest, 100 = hardest)"
_PARTS = {"hardest_5": "hardest 5 %", "easiest_95": "easiest 95 %"}
TSNE_CLASSES = 10  # so many colours and shapes can be told apart


def figures(groups: Groups) -> dict[str, Plot]:
    """All figures that these studies have the values for, by name, in the papers' order."""
    makers: dict[str, Callable[[Groups], Plot]] = {
        "figure4a": figure4a,
        "figure4b": figure4b,
        "figure5a": figure5a,
        "figure5b": figure5b,
        "figure5c": figure5c,
        "figure6": figure6,
    }
    return plots.those_possible(makers, groups)


# ---------------------------------------------------------------------- figure 4


def figure4a(groups: Groups) -> Plot:
    """How many of the easiest 95 % and the hardest 5 % are of the query's class."""
    title = "Hard negatives: more often of the query's class?"
    return _hard_and_easy(groups, "same_class", title, _SAME, 100, "%")


def figure4b(groups: Groups) -> Plot:
    """How near the easiest 95 % and the hardest 5 % are to the query in WordNet."""
    title = "Hard negatives: nearer in meaning?"
    return _hard_and_easy(groups, "depth", title, _DEPTH, 1, "")


def _hard_and_easy(
    groups: Groups, quantity: str, title: str, axis: str, factor: float, unit: str
) -> Plot:
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for label, studies in groups.items():
        pairs = {}
        for part in _PARTS:
            values = [s.scalars.get(f"{quantity}/{part}", np.nan) * factor for s in studies]
            pairs[part] = plots.mean_and_std(values)
        if all(np.isfinite(mean) for mean, _ in pairs.values()):
            found[label] = pairs
    _refuse_nothing(found, axis)
    single = len(found) == 1
    figure, axes = plots.new(title, axis, "", height=1.7 + (0.9 if single else 0.85 * len(found)))
    places: list[float] = []
    names: list[str] = []
    top = max(mean + np.nan_to_num(std) for pairs in found.values() for mean, std in pairs.values())
    for row, pairs in enumerate(found.values()):
        for number, (part, (mean, std)) in enumerate(pairs.items()):
            y = row + 0.4 * number
            error: Any = {"xerr": std, "error_kw": {"ecolor": plots.NEUTRAL, "capsize": 4}}
            axes.barh(
                y,
                mean,
                0.36,
                color=plots.COLOURS[1 - number],
                label=_PARTS[part] if row == 0 else None,
                **(error if np.isfinite(std) else {}),
            )
            end = mean + np.nan_to_num(std) + 0.015 * top
            axes.text(end, y, f"{mean:.2f} {unit}".strip(), va="center")
            places, names = [*places, y], [*names, _PARTS[part]]
    if single:
        axes.set_yticks(places, names)
    else:
        axes.set_yticks(np.arange(len(found)) + 0.2, [textwrap.fill(x, 22) for x in found])
        plots.below(figure, axes, columns=2)
    axes.invert_yaxis()
    axes.set_xlim(0, top * 1.22)
    axes.grid(False, axis="y")
    text = " ".join(
        f"{label}{_seeds(groups[label])}: "
        + ", ".join(f"{_PARTS[p]} {_number(*pair)}{unit and ' ' + unit}" for p, pair in v.items())
        + "."
        for label, v in found.items()
    )
    return Plot(figure, f"Bars, {_words(axis)}. {text}")


# ---------------------------------------------------------------------- figure 5


def figure5a(groups: Groups) -> Plot:
    """The share of the query's class in each percentile; an inset shows the easiest half."""
    title = "Negatives of the query's class, by difficulty"
    return _by_percentile(groups, "same_class", title, _SAME, 100, inset=True)


def figure5b(groups: Groups) -> Plot:
    """Nearness in WordNet in each percentile."""
    return _by_percentile(groups, "depth", "Nearness in meaning, by difficulty", _DEPTH, 1)


def figure5c(groups: Groups) -> Plot:
    """The mean similarity in each percentile."""
    title = "Similarity of the negatives, by difficulty"
    axis = "mean similarity to the query (cosine, 1 = equal)"
    return _by_percentile(groups, "similarity", title, axis, 1)


def _by_percentile(
    groups: Groups, quantity: str, title: str, axis: str, factor: float, inset: bool = False
) -> Plot:
    found: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for label, studies in groups.items():
        rows = [getattr(s, quantity) * factor for s in studies]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            do = "Make them again with one number of percentiles."
            raise bad_value("percentiles", lengths, f"the studies of {label} differ in it", do)
        mean, std = plots.mean_and_std(rows)
        if np.isfinite(mean).any():
            found[label] = (mean, std)
    _refuse_nothing(found, axis)
    figure, axes = plots.new(title, _PERCENTILE, axis)
    _lines(axes, found)
    axes.set_xlim(0, 100)
    if inset:
        _easiest_half(axes, found)
    if len(found) > 1:
        plots.below(figure, axes)
    text = " ".join(
        f"{label}{_seeds(groups[label])}: {_course(mean)}." for label, (mean, _) in found.items()
    )
    return Plot(figure, f"Curves over the difficulty of the negatives, {_words(axis)}. {text}")


def _lines(axes: Axes, found: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> None:
    for (label, (mean, std)), look in zip(found.items(), plots.looks(len(found)), strict=True):
        x = (np.arange(len(mean)) + 0.5) * 100 / len(mean)
        known = np.isfinite(mean)
        marker = "o" if known.sum() < 2 else None
        axes.plot(x[known], mean[known], label=label, marker=marker, **look)
        if np.isfinite(std).any():
            low, high = mean - np.nan_to_num(std), mean + np.nan_to_num(std)
            axes.fill_between(x[known], low[known], high[known], color=look["color"], alpha=0.25)


def _easiest_half(axes: Axes, found: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> None:
    small = axes.inset_axes((0.13, 0.5, 0.47, 0.4))
    halves = {k: (m[: len(m) // 2 + 1], s[: len(m) // 2 + 1]) for k, (m, s) in found.items()}
    # The x of a half is its own percentile, so it is drawn as a whole and cut off.
    _lines(small, found)
    small.set_xlim(0, 50)
    top = max(float(np.nanmax(m + np.nan_to_num(s), initial=0)) for m, s in halves.values())
    small.set_ylim(0, top * 1.1 or 1)
    small.set_title("the easiest half", fontsize=9, fontweight="normal")
    small.tick_params(labelsize=8)
    small.locator_params(nbins=4)


def _course(mean: NDArray[Any]) -> str:
    known = np.flatnonzero(np.isfinite(mean))
    first, middle, last = known[0], known[len(known) // 2], known[-1]
    places = {"easiest": first, "middle": middle, "hardest": last}
    words = ", ".join(f"{name} percentile {mean[i]:.3g}" for name, i in places.items())
    lowest, highest = known[np.argmin(mean[known])], known[np.argmax(mean[known])]
    at = [f"{round(100 * i / len(mean))}" for i in (lowest, highest)]
    low, high = mean[lowest], mean[highest]
    return f"{words}; lowest {low:.3g} at percentile {at[0]}, highest {high:.3g} at {at[1]}"


# ---------------------------------------------------------------------- figure 6


def figure6(groups: Groups) -> Plot:
    """For which share of the queries each negative is hard, against what chance would have.

    Each negative is hard for some share of the queries. The mean of these shares is 5 % by
    definition, for every query has that many hard negatives. By chance they would be binomial, and
    lie near the mean; negatives that are hard for many queries, and others that never are, show in
    wide tails.
    """
    _refuse_nothing([s for studies in groups.values() for s in studies], "hard negatives")
    figure, axes = plots.new(
        "Are the same negatives hard for all queries?",
        "share of the queries for which a negative is among the hardest 5 % (%)",
        "share of the negatives (%)",
    )
    pooled = {label: _together(s, "hard_share") for label, s in groups.items()}
    dealt = np.concatenate([_together(s, "shuffled_share") for s in groups.values()])
    top = max(float(values.max()) for values in [*pooled.values(), dealt])
    steps = np.linspace(0, top * 1.0001 or 1, 41)
    looks = plots.looks(len(groups))
    for (label, values), look in zip(pooled.items(), looks, strict=True):
        name = label if len(groups) > 1 else "as the encoder ranks them"
        axes.stairs(_share(values, steps), steps, label=name, linewidth=1.8, **look)
        if len(groups) == 1:
            axes.stairs(_share(values, steps), steps, fill=True, color=look["color"], alpha=0.15)
    plain: Any = {"color": plots.NEUTRAL, "linestyle": ":", "linewidth": 1.8}
    axes.stairs(_share(dealt, steps), steps, label="ranks dealt out at random", **plain)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, steps[-1])
    plots.below(figure, axes)
    text = " ".join(f"{label}: {_spread(s)}." for label, s in groups.items())
    low, high = np.percentile(dealt, [0, 100])
    chance = f"With ranks dealt out at random all lie between {low:.2f} and {high:.2f} %."
    return Plot(figure, f"Histograms of how often each negative is hard. {text} {chance}")


def _together(studies: Sequence[Study], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(s, name) for s in studies]) * 100


def _share(values: NDArray[Any], steps: NDArray[Any]) -> NDArray[Any]:
    counts = np.histogram(values, steps)[0] * 100.0 / len(values)
    return np.where(counts > 0, counts, np.nan)  # the axis is logarithmic: nothing is left blank


def expected_spread(queries: int, rate: float) -> float:
    """The standard deviation of ``hard_share`` by chance: that of a binomial share."""
    return float(np.sqrt(rate * (1 - rate) / queries))


def _spread(studies: Sequence[Study]) -> str:
    """The spread of ``hard_share`` in words, beside that of a binomial."""
    values = _together(studies, "hard_share")
    middle, tail = np.percentile(values, [50, 99])
    one = studies[0]
    chance = 100 * expected_spread(len(one.query_labels), one.hard_rate)
    return (
        f"mean {values.mean():.2f} % (by definition), median {middle:.2f} %, standard deviation "
        f"{values.std():.2f} points (chance: {chance:.2f}); one in a hundred negatives is hard "
        f"for {tail:.1f} % of the queries or more, and {100 * (values == 0).mean():.1f} % of them "
        "for none"
    )


# ---------------------------------------------------------------------- t-SNE


def tsne(study: Study) -> Plot:
    """The backbone's features in two dimensions, coloured by class (SSCL, figure 6).

    With more than ten classes, the ten with most images are coloured, and the others are grey.
    """
    if not len(study.tsne):
        raise DataError("This study has no t-SNE. Make it again with tsne=true.")
    labels = study.tsne_labels
    numbers = np.bincount(labels[labels >= 0], minlength=1)
    order = [int(c) for c in np.argsort(-numbers, kind="stable")[:TSNE_CLASSES] if numbers[c]]
    figure, axes = plots.new("Features in two dimensions (t-SNE)", "", "", height=4.2)
    rest = ~np.isin(labels, order)
    grey: Any = {"color": plots.NEUTRAL, "alpha": 0.35, "linewidths": 0}
    if rest.any():
        name = "other classes" if (labels >= 0).any() else "class unknown"
        x, y = study.tsne[rest].T
        axes.scatter(x, y, s=7, label=name, **grey)
    for number, c in enumerate(sorted(order)):
        look = plots.COLOURS[number % 7], plots.MARKERS[number % len(plots.MARKERS)]
        x, y = study.tsne[labels == c].T
        name = study.class_names[c]
        axes.scatter(x, y, s=11, c=look[0], marker=look[1], label=name, linewidths=0, alpha=0.8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    plots.below(figure, axes, columns=3, markerscale=1.8, fontsize=9, handletextpad=0.2)
    whose = str(study.info.get("group") or study.info.get("method") or "an encoder")
    count = f"{len(labels)} images of {int((numbers > 0).sum())} classes"
    text = f"A scatter of the features of {whose}: {count}."
    return Plot(figure, f"{text} {_neighbours(study)}")


def _neighbours(study: Study) -> str:
    from sklearn.neighbors import NearestNeighbors

    labels, points = study.tsne_labels, study.tsne
    known = labels >= 0
    if known.sum() < 2:
        return "Their classes are not known."
    points, labels = points[known], labels[known]
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points, return_distance=False)
    # a point is its own nearest neighbour, but not always the first of several at one place
    other = np.where(nearest[:, 0] == np.arange(len(points)), nearest[:, 1], nearest[:, 0])
    share = (labels[other] == labels).mean()
    sizes = np.bincount(labels)
    chance = (sizes * (sizes - 1)).sum() / (len(labels) * (len(labels) - 1))
    return (
        f"For {share:.0%} of them, the nearest other point is of the same class "
        f"(by chance: {chance:.0%})."
    )


# ---------------------------------------------------------------------- words


def _words(axis: str) -> str:
    return axis.replace("\n", " ")


def _seeds(studies: Sequence[Study]) -> str:
    return f" ({len(studies)} seeds)" if len(studies) > 1 else ""


def _number(mean: float, std: float) -> str:
    return f"{mean:.2f} ± {std:.2f}" if np.isfinite(std) else f"{mean:.2f}"


def _refuse_nothing(found: Any, what: str) -> None:
    if not len(found):
        raise DataError(f"No study knows the {_words(what)}: there is nothing to draw.")
