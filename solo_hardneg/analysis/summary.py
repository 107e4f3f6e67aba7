"""What a report compares: accuracies by group, against baselines, and against the papers.

All accuracies are in percent, differences in points. The standard deviation is the sample's
(n - 1), between seeds; differences are tested as in :mod:`solo_hardneg.significance`, corrected
over the groups that are compared by the same metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from solo_hardneg.analysis import published
from solo_hardneg.analysis.groups import Group, differing, words_for
from solo_hardneg.analysis.published import Cell
from solo_hardneg.analysis.runs import Note, Run, section
from solo_hardneg.significance import holm, welch

# What is compared, the most telling first; top 1 where it doesn't say top 5.
METRICS = {
    "linear": "linear",
    "linear5": "linear top 5",
    "linear_knn": "kNN afterwards",
    "knn": "kNN during training",
    "online": "online",
}
PUBLISHED = {"top1": "linear", "top5": "linear5"}
# How many images the hosts validate on, where that is known.
TEST_IMAGES = {
    "cifar10": 10_000,
    "cifar100": 10_000,
    "digits": 360,
    "imagenet": 50_000,
    "imagenet100": 5_000,
}


@dataclass(frozen=True)
class Value:
    """A metric over seeds; NaN where it isn't known.

    Attributes:
        values: of the seeds that have it.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds that have it."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def std(self) -> float:
        """Between seeds; NaN for fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


class Difference(NamedTuple):
    """A group's mean minus its baseline's, in points; NaN where it can't be tested.

    Attributes:
        points: the difference.
        p: of Welch's test.
        p_holm: the same, Holm-corrected over the groups compared by this metric.
    """

    points: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Placed:
    """A published number beside ours.

    Attributes:
        cell: what was published.
        distance: ours minus theirs.
        difference: theirs minus the same table's number for our baseline; NaN if there is none.
    """

    cell: Cell
    distance: float
    difference: float


@dataclass(frozen=True)
class Row:
    """A group in the table.

    Attributes:
        group: whose row it is.
        baseline: what it is compared with, if anything.
        values: by the names in ``METRICS``.
        differences: to the baseline by metric, where both have it.
        published: the papers' numbers for the same experiment.
        differing: what else than method and negatives differs from the baseline.
        unfinished: of the metrics whose values are of runs that have not finished, how far these
            are, such as ``3 of 4 epochs``.
    """

    group: Group
    baseline: Group | None
    values: Mapping[str, Value]
    differences: Mapping[str, Difference]
    published: Sequence[Placed] = ()
    differing: Sequence[str] = ()
    unfinished: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """All rows; ``metrics`` are those that any of them has, ``notes`` what to mind."""

    rows: Sequence[Row]
    metrics: Sequence[str]
    notes: Sequence[Note] = field(default_factory=tuple)


def value_of(run: Run, metric: str) -> float:
    """A run's last value of one of ``METRICS``, in percent; NaN if it has none."""
    if metric == "online":
        return run.last("val_acc1")
    if metric == "knn":
        return run.last("val_knn_acc1")
    names = {"linear": "val_acc1", "linear5": "val_acc5", "linear_knn": "val_knn_acc1"}
    return math.nan if run.linear is None else run.linear.last(names[metric])


def progress(run: Run, metric: str) -> str:
    """How far a run is that has not finished, or its linear evaluation, if a metric is of that."""
    if run.unfinished or run.linear is None or not metric.startswith("linear"):
        return run.unfinished
    return run.linear.unfinished and f"linear evaluation: {run.linear.unfinished}"


def summarize(groups: Sequence[Group], baselines: Mapping[str, Group | None]) -> Summary:
    """Means over seeds, differences to the baselines, and the papers' numbers.

    Runs that have not finished count only where no other seed of the group has finished.

    Args:
        groups: at least one.
        baselines: for each group's label, what to compare it with.
    """
    values = {g.label: {metric: _value(g, metric) for metric in METRICS} for g in groups}
    rows = []
    for one in groups:
        base, mine = baselines[one.label], values[one.label]
        theirs = {} if base is None else values[base.label]
        differences = {
            metric: Difference(mine[metric].mean - value.mean, p := _p(mine[metric], value), p)
            for metric, value in theirs.items()
            if mine[metric].values and value.values
        }
        placed = _placed(one, base, mine)
        keys = [] if base is None else differing([one, base])
        other = [] if base is None else [_unlike(key, one, base) for key in keys]
        unfinished = {m: text for m in METRICS if (text := _unfinished(one, m))}
        rows.append(Row(one, base, mine, differences, placed, other, unfinished))
    metrics = [m for m in METRICS if any(row.values[m].values for row in rows)]
    return Summary(_corrected(rows), metrics, [*_left_out(groups), *_unfair(groups)])


def _p(one: Value, other: Value) -> float:
    return welch(one.values, other.values)


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """The same with Holm-corrected p-values; each metric is a family of tests."""
    found: dict[str, dict[str, Difference]] = {row.group.label: {} for row in rows}
    for metric in METRICS:
        compared = [row for row in rows if metric in row.differences]
        corrected = holm([row.differences[metric].p for row in compared])
        for row, p in zip(compared, corrected, strict=True):
            found[row.group.label][metric] = row.differences[metric]._replace(p_holm=p)
    return [replace(row, differences=found[row.group.label]) for row in rows]


def _unlike(key: str, one: Group, base: Group) -> str:
    here, there = (words_for(key, g.settings[key]) for g in (one, base))
    return f"{here}, not {there}"


def _value(group: Group, metric: str) -> Value:
    return Value(tuple(value_of(run, metric) for run in _counting(group, metric)))


def _counting(group: Group, metric: str) -> list[Run]:
    """The runs that have a metric and have finished; if none has, those that have not."""
    known = [run for run in group.runs if math.isfinite(value_of(run, metric))]
    return [run for run in known if not progress(run, metric)] or known


def _unfinished(group: Group, metric: str) -> str:
    found = {progress(run, metric) for run in _counting(group, metric)} - {""}
    return " and ".join(sorted(found))


def _left_out(groups: Sequence[Group]) -> list[Note]:
    notes = []
    for one in groups:
        for run in one.runs:
            known = [m for m in METRICS if math.isfinite(value_of(run, m))]
            out = [METRICS[m] for m in known if run not in _counting(one, m)]
            if out:
                text = f"not counted beside seeds that have finished: {', '.join(out)}."
                notes.append(Note(run.title, text))
    return notes


def of_finished(summary: Summary) -> Summary:
    """The same without the values of runs that have not finished, and what is compared to them."""
    behind = {row.group.label: row.unfinished for row in summary.rows}
    rows = []
    for row in summary.rows:
        base = {} if row.baseline is None else behind.get(row.baseline.label, {})
        values = {m: Value(()) if m in row.unfinished else v for m, v in row.values.items()}
        out = {*row.unfinished, *base}
        differences = {m: pair for m, pair in row.differences.items() if m not in out}
        rows.append(replace(row, values=values, differences=differences))
    return replace(summary, rows=rows)


def state(row: Row) -> str:
    """How far the runs of a row are, if they have not finished; else empty."""
    return "; ".join(dict.fromkeys(row.unfinished.values()))


def _placed(group: Group, base: Group | None, mine: Mapping[str, Value]) -> list[Placed]:
    beside_ours = [] if base is None else published.matching(base.args)
    theirs = {_place(cell): cell for cell in reversed(beside_ours)}  # of several, the first
    theirs |= {(*_place(cell), cell.table): cell for cell in beside_ours}
    found: dict[tuple[Any, ...], Placed] = {}
    for cell in published.matching(group.args):
        # The baseline of the same table or, where it has none, the paper's.
        beside = theirs.get((*_place(cell), cell.table)) or theirs.get(_place(cell))
        distance = mine[PUBLISHED[cell.metric]].mean - cell.value
        gap = math.nan if beside is None else cell.value - beside.value
        # A number that a paper prints in two tables stands once.
        key = (cell.paper, cell.metric, cell.temperature, cell.value, cell.std)
        found.setdefault(key, Placed(cell, distance, gap))
    return list(found.values())


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell.paper, cell.dataset, cell.config, cell.temperature, cell.metric


def _unfair(groups: Sequence[Group]) -> list[Note]:
    """Linear evaluations of different settings, of runs on the same data, are not comparable."""
    settings: dict[tuple[str, str], set[str]] = {}
    for run in (run for g in groups for run in g.runs if run.linear is not None):
        dataset = str(section(run.args, "data").get("dataset"))
        for key, value in _evaluation(run.linear.args if run.linear else {}).items():
            settings.setdefault((dataset, key), set()).add(value)
    return [
        Note(
            f"linear evaluations of the runs on {dataset}",
            f"they differ in {key} ({', '.join(sorted(values))}), so their accuracies can't be "
            "fairly compared.",
        )
        for (dataset, key), values in sorted(settings.items())
        if len(values) > 1
    ]


def _evaluation(args: Mapping[str, Any]) -> dict[str, str]:
    optimizer, data = section(args, "optimizer"), section(args, "data")
    return {
        "max_epochs": str(args.get("max_epochs")),
        "optimizer.name": str(optimizer.get("name")),
        "optimizer.lr": str(optimizer.get("lr")),
        "optimizer.batch_size": str(optimizer.get("batch_size")),
        "optimizer.weight_decay": str(optimizer.get("weight_decay")),
        "data.dataset": str(data.get("dataset")),
    }


def sampling_noise(row: Row, metric: str) -> float:
    """How far two equally good models' accuracies may lie apart by the choice of test images.

    Half the width, in points, of the 95 % interval of the difference of two binomial shares at
    this row's mean; NaN where it isn't known how many test images there are.
    """
    data = section(row.group.args, "data")
    number = TEST_IMAGES.get(str(data.get("dataset")), 0)
    if not number or "limit_val_batches" in row.group.args:
        return math.nan
    share = min(max(row.values[metric].mean / 100, 1 / number), 1 - 1 / number)
    return 100 * 1.96 * math.sqrt(2 * share * (1 - share) / number)
