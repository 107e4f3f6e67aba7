"""The tables of a report, for people and for programs: of what ``summary`` found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from solo_hardneg.analysis.groups import Group
from solo_hardneg.analysis.summary import (
    METRICS,
    PUBLISHED,
    Difference,
    Placed,
    Row,
    Summary,
    Value,
    progress,
    state,
    value_of,
)
from solo_hardneg.analysis.untrusted import encodable


def percent(value: Value) -> str:
    """``96.1``, or ``96.1 ± 0.3`` for several seeds; empty where it isn't known."""
    if not value.values:
        return ""
    return f"{value.mean:.1f}" + (f" ± {value.std:.1f}" if len(value.values) > 1 else "")


def points(difference: float) -> str:
    """``+4.7`` or ``−2.5``."""
    return f"{difference:+.1f}".replace("-", "−")


def p_value(p: float) -> str:
    """``p = 0.03``, ``p < 0.001``; empty where it isn't known."""
    if math.isnan(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def readable(summary: Summary) -> pd.DataFrame:
    """The table for people: texts, one row for each group."""
    rows = []
    for row in summary.rows:
        mark = f" ({state(row)})" if row.unfinished else ""
        cells = {"group": row.group.label + mark, "seeds": str(row.group.seeds)}
        for metric in summary.metrics:
            title = METRICS[metric]
            cells[title] = percent(row.values[metric])
            if any(r.differences for r in summary.rows):
                cells[f"{title}, difference"] = _difference(row, metric)
        rows.append(cells)
    return pd.DataFrame(rows)


def beside(summary: Summary) -> pd.DataFrame:
    """The papers' numbers for the same experiments, and where ours stand, for people.

    Columns in which nothing is known are left out.
    """
    rows = []
    for row in summary.rows:
        for placed in row.published:
            metric = PUBLISHED[placed.cell.metric]
            ours = percent(row.values[metric])
            cells = {
                "group": row.group.label,
                "published": _published(placed),
                "here": ours,
                "here minus published": points(placed.distance) if ours else "",
                "published difference to the baseline": _known(placed.difference),
                "difference here": _difference(row, metric),
                "remark": "; ".join(t for t in (placed.cell.note, placed.cell.remark) if t),
            }
            rows.append(cells)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()] if rows else table


def _known(difference: float) -> str:
    return "" if math.isnan(difference) else points(difference)


def _difference(row: Row, metric: str) -> str:
    if metric not in row.differences:
        return ""
    difference = row.differences[metric]
    p = p_value(difference.p_holm)
    return points(difference.points) + (f" ({p})" if p else "")


def _published(placed: Placed) -> str:
    """``67.5 ± 0.1 top-1, 3 seeds (Cai et al. 2020, Table 1)``."""
    cell = placed.cell
    spread = "" if cell.std is None else f" ± {cell.std:g}"
    seeds = "" if cell.seeds is None else f", {cell.seeds} seeds"
    kind = {"top1": "top-1", "top5": "top-5"}[cell.metric]
    return f"{cell.value:g}{spread} {kind}{seeds} ({cell.source})"


def numbers(summary: Summary) -> pd.DataFrame:
    """The table for programs: one row for each group, numbers unrounded."""
    rows = []
    for row in summary.rows:
        cells: dict[str, Any] = {
            "group": row.group.label,
            "seeds": row.group.seeds,
            "baseline": "" if row.baseline is None else row.baseline.label,
            "unfinished": state(row),
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
        cells["published"] = "; ".join(_published(p) for p in row.published)
        cells["distance"] = "; ".join(_known(p.distance) for p in row.published)
        rows.append(cells)
    return pd.DataFrame(rows)


def of_runs(groups: Sequence[Group]) -> pd.DataFrame:
    """One row for each run that counts."""
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
                "unfinished": progress(run, "linear"),
                "loss": run.last("train_nce_loss_epoch"),
            }
            cells |= {f"{metric}_acc": value_of(run, metric) for metric in METRICS}
            rows.append(cells)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; what would be markup in it is not."""
    texts = [[plain(value) for value in row] for row in table.to_numpy(dtype=object)]
    first = [plain(name) for name in table.columns]
    rule = ["---"] + ["---:"] * (len(first) - 1)
    return "".join(f"| {' | '.join(line)} |\n" for line in (first, rule, *texts))


def plain(value: Any) -> str:
    """A text for Markdown, in which what would be markup is none."""
    text = " ".join(str(value).split())
    for mark, instead in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(mark, instead)
    return text
