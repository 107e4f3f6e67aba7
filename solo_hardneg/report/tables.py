"""The tables of a report, for readers and for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from solo_hardneg.files import encodable
from solo_hardneg.report.comparison import (
    METRICS,
    PUBLISHED,
    Comparison,
    Difference,
    GroupResult,
    PublishedMatch,
    Value,
    final_value,
    run_progress,
)
from solo_hardneg.report.history import EpochHistory, Groups
from solo_hardneg.runs.groups import Group
from solo_hardneg.study.measure import Study, class_pairs, t_tests
from solo_hardneg.study.output import pool_class_means

# What was recorded late in training: title, factor.
RECORDED = {
    "dropped/precision": ("dropped, precision (%)", 100),
    "dropped/recall": ("dropped, recall (%)", 100),
    "rankme": ("RankMe", 1),
    "alignment": ("alignment", 1),
    "uniformity": ("uniformity", 1),
}


def format_percent(value: Value) -> str:
    """``96.1``, or ``96.1 ± 0.3`` for several seeds; empty if unknown."""
    if not value.values:
        return ""
    return f"{value.mean:.1f}" + (f" ± {value.std:.1f}" if len(value.values) > 1 else "")


def format_points(difference: float) -> str:
    """``+4.7`` or ``−2.5``; empty if unknown."""
    return "" if math.isnan(difference) else f"{difference:+.1f}".replace("-", "−")


def format_p(p: float) -> str:
    """``p = 0.03`` or ``p < 0.001``; empty if unknown."""
    if math.isnan(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


# ---------------------------------------------------------------------- for readers


def accuracy_table(comparison: Comparison, histories: Groups | None = None) -> pd.DataFrame:
    """Accuracies and differences as texts, one row per group.

    Args:
        comparison: The accuracies.
        histories: Of the groups, for what was recorded of them late in training.
    """
    recorded = {label: _recorded_values(several) for label, several in (histories or {}).items()}
    known = {name for values in recorded.values() for name, value in values.items() if value.values}
    rows = []
    for row in comparison.rows:
        mark = f" ({row.progress})" if row.unfinished else ""
        cells = {"group": row.group.label + mark, "seeds": str(row.group.seeds)}
        for metric in comparison.metrics:
            title = METRICS[metric]
            cells[title] = format_percent(row.values[metric])
            if any(r.differences for r in comparison.rows):
                cells[f"{title}, difference"] = _format_difference(row, metric)
        for name, (title, factor) in RECORDED.items():
            if name in known:
                cells[title] = _format_value(recorded[row.group.label][name], factor)
        rows.append(cells)
    return pd.DataFrame(rows)


def _recorded_values(histories: Sequence[EpochHistory]) -> dict[str, Value]:
    """Means late in training over seeds, by quantity."""
    found = {name: [h.late("scalar", name) for h in histories] for name in RECORDED}
    return {
        name: Value(tuple(float(series.iloc[0]) for series in several if len(series)))
        for name, several in found.items()
    }


def _format_value(value: Value, factor: float) -> str:
    """Three digits, with the standard deviation of several seeds; empty if unknown."""
    if not value.values:
        return ""
    text = f"{factor * value.mean:.3g}"
    return text + (f" ± {factor * value.std:.2g}" if len(value.values) > 1 else "")


def published_table(comparison: Comparison) -> pd.DataFrame:
    """The papers' numbers for the same experiments beside the runs', without empty columns."""
    rows = []
    for row in comparison.rows:
        for one in row.published:
            metric = PUBLISHED[one.cell.metric]
            cells = {
                "group": row.group.label,
                "published": _format_published(one),
                "here": format_percent(row.values[metric]),
                "here minus published": format_points(one.distance),
                "published difference to the baseline": format_points(one.difference),
                "difference here": _format_difference(row, metric),
                "remark": "; ".join(t for t in (one.cell.note, one.cell.remark) if t),
            }
            rows.append(cells)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()] if rows else table


def _format_difference(row: GroupResult, metric: str) -> str:
    if metric not in row.differences:
        return ""
    difference = row.differences[metric]
    p = format_p(difference.p_holm)
    return format_points(difference.points) + (f" ({p})" if p else "")


def _format_published(one: PublishedMatch) -> str:
    """``67.5 ± 0.1 top-1, 3 seeds (Cai et al. 2020, Table 1)``."""
    cell = one.cell
    spread = "" if cell.std is None else f" ± {cell.std:g}"
    seeds = "" if cell.seeds is None else f", {cell.seeds} seeds"
    kind = {"top1": "top-1", "top5": "top-5"}[cell.metric]
    return f"{cell.value:g}{spread} {kind}{seeds} ({cell.source})"


def last_values_table(groups: Sequence[Group]) -> pd.DataFrame:
    """Last values of each run, without columns that no run has."""
    table = run_table(groups)
    titles = {f"{metric}_acc": title for metric, title in METRICS.items()}
    known = [name for name in titles if table[name].notna().any()]
    columns = ["group", "seed", "name", "folder", "epochs", *known]
    columns += ["unfinished"] if (table["unfinished"] != "").any() else []
    shown = table[columns].copy()
    for name in known:
        shown[name] = [f"{v:.1f}" if v == v else "" for v in shown[name]]
    return shown.rename(columns=titles)


def pair_tables(studies: Mapping[str, Sequence[Study]]) -> dict[str, list[pd.DataFrame]]:
    """Tables A4 to A6 of Cai et al. 2020 by group, over all of its seeds."""
    found: dict[str, list[pd.DataFrame]] = {}
    for label, several in studies.items():
        for kind, table in class_pairs(pool_class_means(several)).items():
            if len(table):
                texts = [f"{v:.3f}" for v in table["mean similarity"]]
                shown = table.assign(**{"mean similarity": texts}).rename_axis(kind)
                found.setdefault(label, []).append(shown)
    return found


def t_test_table(studies: Mapping[str, Sequence[Study]]) -> pd.DataFrame:
    """Hard against easy negatives over seeds as texts, by group."""
    if not studies:
        return pd.DataFrame()
    tests = {label: t_tests(several) for label, several in studies.items()}
    table = pd.concat(tests, names=["group"]).reset_index("group")
    table = table.dropna(subset=["hardest 5 %", "easiest 95 %"], how="all")
    numbers = table.select_dtypes("number").columns.drop("seeds")
    texts = {name: [f"{v:.3g}" if v == v else "" for v in table[name]] for name in numbers}
    return table.assign(**texts).astype(str)


# ---------------------------------------------------------------------- for programs


def group_table(comparison: Comparison, histories: Groups | None = None) -> pd.DataFrame:
    """One row per group, numbers unrounded; see :func:`accuracy_table`."""
    rows = []
    for row in comparison.rows:
        cells: dict[str, Any] = {
            "group": row.group.label,
            "seeds": row.group.seeds,
            "baseline": "" if row.baseline is None else row.baseline.label,
            "unfinished": row.progress,
        }
        for metric in METRICS:
            value = row.values[metric]
            difference = row.differences.get(metric, Difference(math.nan, math.nan, math.nan))
            cells |= {
                f"{metric}_mean": value.mean,
                f"{metric}_std": value.std,
                f"{metric}_seeds": len(value.values),
                f"{metric}_difference": difference.points,
                f"{metric}_p": difference.p,
                f"{metric}_p_holm": difference.p_holm,
            }
        for name, value in _recorded_values((histories or {}).get(row.group.label, ())).items():
            column = name.replace("/", "_")
            cells |= {f"{column}_mean": value.mean, f"{column}_std": value.std}
        cells["published"] = "; ".join(_format_published(one) for one in row.published)
        cells["distance"] = "; ".join(format_points(one.distance) for one in row.published)
        rows.append(cells)
    return pd.DataFrame(rows)


def run_table(groups: Sequence[Group]) -> pd.DataFrame:
    """One row per run that counts, numbers unrounded."""
    rows = []
    for one in groups:
        for run in one.runs:
            cells: dict[str, Any] = {
                "group": one.label,
                "seed": run.seed,
                "name": encodable(run.args.get("name")),
                "folder": encodable(run.folder.as_posix()),
                "linear": "" if run.linear is None else encodable(run.linear.folder.as_posix()),
                "epochs": run.epochs,
                "unfinished": run_progress(run, "linear"),
                "loss": run.last("train_nce_loss_epoch"),
            }
            cells |= {f"{metric}_acc": final_value(run, metric) for metric in METRICS}
            rows.append(cells)
    return pd.DataFrame(rows)
