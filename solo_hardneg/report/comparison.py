"""What a report compares: accuracies by group, against baselines and the papers.

Accuracies are in percent, differences in points; standard deviations are the sample's (n - 1),
between seeds. p-values are Holm-corrected over the groups compared by the same metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from solo_hardneg.report import published
from solo_hardneg.report.published import PublishedNumber
from solo_hardneg.runs.find import Note, Run, section
from solo_hardneg.runs.groups import Group, describe_setting, differing_keys
from solo_hardneg.study.significance import holm, welch

# The accuracies compared and their titles; top 1 unless it says top 5.
METRICS = {
    "linear": "linear",
    "linear5": "linear top 5",
    "linear_knn": "kNN afterwards",
    "knn": "kNN during training",
    "online": "online",
}
PUBLISHED = {"top1": "linear", "top5": "linear5"}
_LOGGED = {"online": "val_acc1", "knn": "val_knn_acc1"}
_LOGGED_BY_LINEAR = {"linear": "val_acc1", "linear5": "val_acc5", "linear_knn": "val_knn_acc1"}


@dataclass(frozen=True)
class Value:
    """A metric over seeds.

    Attributes:
        values: Of the seeds that have it.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def std(self) -> float:
        """Standard deviation between seeds; NaN for fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


class Difference(NamedTuple):
    """A group's mean minus its baseline's.

    Attributes:
        points: The difference.
        p: p of Welch's test; NaN if it can't be tested.
        p_holm: p, Holm-corrected over the groups compared by this metric.
    """

    points: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class PublishedMatch:
    """A published number beside a group's.

    Attributes:
        cell: The published number.
        distance: The group's mean minus the published number.
        difference: The published number minus its table's baseline; NaN without one.
    """

    cell: PublishedNumber
    distance: float
    difference: float


@dataclass(frozen=True)
class GroupResult:
    """A group in the table.

    Attributes:
        group: The group.
        baseline: The group it is compared with, if any.
        values: By the names in ``METRICS``.
        differences: To the baseline, for metrics that both have.
        published: Published numbers of the same experiment.
        unfinished: For metrics of unfinished runs, their progress, such as ``3 of 4 epochs``.
    """

    group: Group
    baseline: Group | None
    values: Mapping[str, Value]
    differences: Mapping[str, Difference]
    published: Sequence[PublishedMatch] = ()
    unfinished: Mapping[str, str] = field(default_factory=dict)

    @property
    def progress(self) -> str:
        """How far its runs are, if they have not finished; else empty."""
        return "; ".join(dict.fromkeys(self.unfinished.values()))


@dataclass(frozen=True)
class Comparison:
    """All rows, the metrics that any of them has, and notes."""

    rows: Sequence[GroupResult]
    metrics: Sequence[str]
    notes: Sequence[Note] = ()


def final_value(run: Run, metric: str) -> float:
    """A run's last value of one of ``METRICS``, in percent; NaN if it has none."""
    if metric in _LOGGED:
        return run.last(_LOGGED[metric])
    return math.nan if run.linear is None else run.linear.last(_LOGGED_BY_LINEAR[metric])


def run_progress(run: Run, metric: str) -> str:
    """How far an unfinished run is, or the linear evaluation that a metric is of; else empty."""
    if run.unfinished or run.linear is None or metric not in _LOGGED_BY_LINEAR:
        return run.unfinished
    return run.linear.unfinished and f"linear evaluation: {run.linear.unfinished}"


def compare_groups(groups: Sequence[Group], baselines: Mapping[str, Group | None]) -> Comparison:
    """Means over seeds, differences to the baselines, and the papers' numbers.

    Unfinished runs count only if no seed of their group has finished.

    Args:
        groups: At least one group.
        baselines: The group to compare with, by label.
    """
    values = {g.label: {metric: _value(g, metric) for metric in METRICS} for g in groups}
    rows = []
    for one in groups:
        base, mine = baselines[one.label], values[one.label]
        compared = {} if base is None else values[base.label]
        differences = {
            metric: _difference(mine[metric], value)
            for metric, value in compared.items()
            if mine[metric].values and value.values
        }
        unfinished = {m: text for m in METRICS if (text := _unfinished(one, m))}
        matches = _match_published(one, base, mine)
        rows.append(GroupResult(one, base, mine, differences, matches, unfinished))
    metrics = [m for m in METRICS if any(row.values[m].values for row in rows)]
    notes = [*_left_out(groups), *_other_settings(rows), *_differing_evaluations(groups)]
    return Comparison(_correct(rows), metrics, notes)


def _difference(one: Value, other: Value) -> Difference:
    p = welch(one.values, other.values)
    return Difference(one.mean - other.mean, p, p)


def _correct(rows: Sequence[GroupResult]) -> list[GroupResult]:
    """The rows with Holm-corrected p-values; each metric is a family of tests."""
    found: dict[str, dict[str, Difference]] = {row.group.label: {} for row in rows}
    for metric in METRICS:
        compared = [row for row in rows if metric in row.differences]
        corrected = holm([row.differences[metric].p for row in compared])
        for row, p in zip(compared, corrected, strict=True):
            found[row.group.label][metric] = row.differences[metric]._replace(p_holm=p)
    return [replace(row, differences=found[row.group.label]) for row in rows]


def _value(group: Group, metric: str) -> Value:
    return Value(tuple(final_value(run, metric) for run in _counted_runs(group, metric)))


def _counted_runs(group: Group, metric: str) -> list[Run]:
    """The finished runs that have a metric or, if none has finished, the unfinished ones."""
    known = [run for run in group.runs if math.isfinite(final_value(run, metric))]
    return [run for run in known if not run_progress(run, metric)] or known


def _unfinished(group: Group, metric: str) -> str:
    found = {run_progress(run, metric) for run in _counted_runs(group, metric)} - {""}
    return " and ".join(sorted(found))


def _match_published(
    group: Group, base: Group | None, values: Mapping[str, Value]
) -> list[PublishedMatch]:
    base_cells = [] if base is None else published.matching(base.args)
    # By place, the first of several; and by place and table.
    of_base = {_place(cell): cell for cell in reversed(base_cells)}
    of_base |= {(*_place(cell), cell.table): cell for cell in base_cells}
    found: dict[tuple[Any, ...], PublishedMatch] = {}
    for cell in published.matching(group.args):
        # The baseline of the same table or, if it has none, of the paper.
        beside = of_base.get((*_place(cell), cell.table)) or of_base.get(_place(cell))
        distance = values[PUBLISHED[cell.metric]].mean - cell.value
        gap = math.nan if beside is None else cell.value - beside.value
        # A number that is printed in two tables is shown once.
        key = (cell.paper, cell.metric, cell.temperature, cell.value, cell.std)
        found.setdefault(key, PublishedMatch(cell, distance, gap))
    return list(found.values())


def _place(cell: PublishedNumber) -> tuple[Any, ...]:
    return cell.paper, cell.dataset, cell.config, cell.temperature, cell.metric


# ---------------------------------------------------------------------- notes


def _left_out(groups: Sequence[Group]) -> list[Note]:
    notes = []
    for one in groups:
        for run in one.runs:
            known = [m for m in METRICS if math.isfinite(final_value(run, m))]
            out = [METRICS[m] for m in known if run not in _counted_runs(one, m)]
            if out:
                text = f"not counted beside seeds that have finished: {', '.join(out)}."
                notes.append(Note(run.title, text))
    return notes


def _other_settings(rows: Sequence[GroupResult]) -> list[Note]:
    """Notes on groups that differ from their baseline in more than method and negatives."""
    notes = []
    for row in rows:
        one, base = row.group, row.baseline
        keys = [] if base is None else differing_keys([one, base])
        if base is not None and keys:
            texts = []
            for key in keys[:6]:
                here, there = (describe_setting(key, g.settings[key]) for g in (one, base))
                texts.append(f"{here}, not {there}")
            more = "" if len(keys) <= 6 else f" and {len(keys) - 6} more settings"
            text = (
                f"differs from {base.label} in more than the negatives: {'; '.join(texts)}{more}."
            )
            notes.append(Note(one.label, text))
    return notes


def _differing_evaluations(groups: Sequence[Group]) -> list[Note]:
    """Notes on linear evaluations with different settings, of runs on the same data."""
    settings: dict[tuple[str, str], set[str]] = {}
    for run in (run for g in groups for run in g.runs):
        if run.linear is not None:
            dataset = str(section(run.args, "data").get("dataset"))
            for key, value in _evaluation_settings(run.linear.args).items():
                settings.setdefault((dataset, key), set()).add(value)
    return [
        Note(
            f"linear evaluations of the runs on {dataset}",
            f"differ in {key} ({', '.join(sorted(values))}), so their accuracies can't be compared "
            "fairly.",
        )
        for (dataset, key), values in sorted(settings.items())
        if len(values) > 1
    ]


def _evaluation_settings(args: Mapping[str, Any]) -> dict[str, str]:
    optimizer, data = section(args, "optimizer"), section(args, "data")
    names = ("name", "lr", "batch_size", "weight_decay")
    return {
        "max_epochs": str(args.get("max_epochs")),
        **{f"optimizer.{name}": str(optimizer.get(name)) for name in names},
        "data.dataset": str(data.get("dataset")),
    }
