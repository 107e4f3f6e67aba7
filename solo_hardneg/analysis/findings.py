"""What stands out in a report, in sentences: no more than the numbers bear."""

from __future__ import annotations

import math
from collections.abc import Sequence

from solo_hardneg.analysis.courses import Course, Groups
from solo_hardneg.analysis.summary import (
    METRICS,
    TEST_IMAGES,
    Row,
    Summary,
    of_finished,
    sampling_noise,
    state,
)
from solo_hardneg.analysis.tables import p_value, percent, points
from solo_hardneg.significance import LEVEL

_FIRST = ("linear", "linear_knn", "knn", "online")  # what is spoken of, if it is known


def sentences(summary: Summary, courses: Groups) -> list[str]:
    """What the runs are, which group is best, what can be told from chance, and who is hard."""
    told = [what_they_are(summary)]
    behind = [f"{row.group.label} ({state(row)})" for row in summary.rows if row.unfinished]
    finished = of_finished(summary)
    metric = main_metric(finished)
    if metric is None:
        of = "a finished run" if behind else "any of them"
        told.append(f"No accuracy is known of {of}.")
    else:
        told += [*_best(finished, metric), *differences(finished, metric)]
    if behind:
        told.append(f"What has not finished is not compared here: {', '.join(behind)}.")
    return [*told, *_hardness(summary, courses)]


def what_they_are(summary: Summary) -> str:
    """``4 runs in 3 groups on digits, with resnet18, 10 epochs; one seed in each group.``"""
    groups = [row.group for row in summary.rows]
    runs = sum(g.seeds for g in groups)

    def values(key: str) -> str:
        return " and ".join(sorted({g.settings.get(key, "unknown") for g in groups}))

    seeds = sorted({g.seeds for g in groups})
    several = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seeds"
    how_many = "one seed" if seeds == [1] else several
    where = f"{_number(len(groups), 'group').lower()} on {values('data.dataset')}"
    return (
        f"{_number(runs, 'run')} in {where}, with {values('backbone.name')}, "
        f"{values('max_epochs')} epochs of pretraining; {how_many} in each group."
    )


def main_metric(summary: Summary) -> str | None:
    """The most telling metric with which anything can be compared; else that anyone has."""
    for compared in (True, False):
        for metric in _FIRST:
            rows = (r.differences if compared else r.values[metric].values for r in summary.rows)
            if metric in summary.metrics and any(metric in r if compared else r for r in rows):
                return metric
    return None


def _best(summary: Summary, metric: str) -> list[str]:
    """The highest and the lowest of each data set; there is no better between two of them."""
    rows: dict[str, list[Row]] = {}
    for row in summary.rows:
        if row.values[metric].values:
            rows.setdefault(row.group.settings.get("data.dataset", "unknown"), []).append(row)
    told = []
    for dataset, known in rows.items():
        known.sort(key=lambda row: -row.values[metric].mean)
        first, last = known[0], known[-1]
        where = f"On {dataset}, the" if len(rows) > 1 else "The"
        text = f"{where} highest {METRICS[metric]} accuracy is that of {_with(first, metric)}"
        if len(known) > 1:
            told.append(f"{text}, the lowest that of {_with(last, metric)}.")
    return told


def _with(row: Row, metric: str) -> str:
    return f"{row.group.label} ({percent(row.values[metric])} %)"


def differences(summary: Summary, metric: str) -> list[str]:
    """Which differences to the baselines can be told from chance, and which can't."""
    compared = [row for row in summary.rows if metric in row.differences]
    tested = [row for row in compared if not math.isnan(row.differences[metric].p)]
    untested = [row for row in compared if row not in tested]
    if not compared and any(row.baseline for row in summary.rows):
        text = f"no group and its baseline both have a {METRICS[metric]} accuracy that counts"
        return [f"Nothing can be compared: {text}."]
    if not compared:
        return ["Nothing can be compared: there is no group with all negatives of the same family."]
    told = []
    if tested:
        found = [row for row in tested if row.differences[metric].p_holm < LEVEL]
        found.sort(key=lambda row: row.differences[metric].p_holm)
        told.append(_of_tests(len(tested), len(found)))
        told += [_against(row, metric) for row in found]
    if untested:
        told += _of_one_seed(untested, metric)
    return told


def _of_tests(tested: int, found: int) -> str:
    if tested == 1:
        verb = "can" if found else "can't"
        what = "The one difference that was tested over seeds"
        return f"{what} {verb} be told from chance (p < {LEVEL})."
    return (
        f"Of {tested} differences that were tested over seeds, {found or 'none'} "
        f"{'has' if found == 1 else 'have'} p < {LEVEL} (Holm-corrected)."
    )


def _against(row: Row, metric: str) -> str:
    difference, _, p = row.differences[metric]
    way = "above" if difference > 0 else "below"
    base = "" if row.baseline is None else row.baseline.label
    return f"{row.group.label} is {abs(difference):.1f} points {way} {base} ({p_value(p)})."


def _of_one_seed(rows: Sequence[Row], metric: str) -> list[str]:
    number = _number(len(rows), "difference")
    text = f"{number} could not be tested, which takes two seeds or more on both sides"
    known = [row for row in rows if not math.isnan(sampling_noise(row, metric))]
    if not known:
        return [f"{text}; nothing here says how far apart chance alone would put them."]
    noise = max(sampling_noise(row, metric) for row in known)
    images = max(TEST_IMAGES[row.group.settings["data.dataset"]] for row in known)
    chance = (
        f"With one seed, differences of up to about {noise:.1f} points can't be told from noise: "
        f"the choice of {images} test images alone may put two equally good models so far apart, "
        "and training adds chance of its own."
    )
    larger = [
        f"{row.group.label} ({points(row.differences[metric].points)})"
        for row in known
        if abs(row.differences[metric].points) > sampling_noise(row, metric)
    ]
    which = (
        f"Larger than that, for this seed: {', '.join(larger)}."
        if larger
        else "None is larger than that."
    )
    return [f"{text}.", chance, which]


def _hardness(summary: Summary, courses: Groups) -> list[str]:
    """Of a baseline, or else of the first group that knows it; of runs that have finished."""
    order = sorted(summary.rows, key=lambda row: not row.group.takes_all)
    for row in order:
        several = zip(row.group.runs, courses.get(row.group.label, ()), strict=False)
        members = [course for run, course in several if not run.unfinished]
        mass = _last(members, "mass/hardest_5")
        if math.isnan(mass):
            continue
        text = (
            f"At the end of training of {row.group.label}, the hardest 5 % of the negatives carry "
            f"{100 * mass:.0f} % of the softmax mass"
        )
        hard, easy = (_last(members, f"same_class/{n}") for n in ("hardest_5", "easiest_95"))
        if not math.isnan(hard + easy):
            text += (
                f"; {100 * hard:.1f} % of them are of the query's class, and "
                f"{100 * easy:.1f} % of the others"
            )
        return [f"{text}."]
    return []


def _last(courses: Sequence[Course], quantity: str) -> float:
    values = [series.iloc[-1] for c in courses if len(series := c.scalar(quantity).sort_index())]
    return float(sum(values) / len(values)) if values else math.nan


def _number(number: int, what: str) -> str:
    return f"{'One' if number == 1 else number} {what}{'' if number == 1 else 's'}"
