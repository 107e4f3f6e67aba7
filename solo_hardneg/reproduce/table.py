"""The paper's table with our numbers beside it: published, ours over seeds, and the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from solo_hardneg.analysis import published
from solo_hardneg.analysis.published import Cell as Published
from solo_hardneg.analysis.summary import Value
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.experiment import Experiment, Row
from solo_hardneg.reproduce.overrides import composed
from solo_hardneg.reproduce.results import DONE, Result

METRICS = {"top1": "top-1", "top5": "top-5"}


def values(results: Mapping[str, Result], metric: str) -> dict[str, list[float]]:
    """A metric of the cells that are done, by row, in the order of their seeds."""
    found: dict[str, list[float]] = {}
    for result in sorted(results.values(), key=lambda result: (result.row, result.seed)):
        if result.state == DONE and metric in result.metrics:
            found.setdefault(result.row, []).append(float(result.metrics[metric]))
    return found


def published_cells(
    row: Row, data: str, fallback: str, temperature: float
) -> list[list[Published]]:
    """What the papers print of a row: a list for each of its lines, of one number per metric.

    Args:
        row: of the experiment.
        data: the dataset; where the paper has another one only, that is taken, and says so itself.
        fallback: the experiment's own dataset.
        temperature: τ of our run, which chooses where a table has several.
    """
    wanted = temperature if row.temperature == "config" else row.temperature
    lines = []
    for table, label in row.published:
        cells = [c for c in published.cells() if (c.table, c.label) == (table, label)]
        several = len({c.temperature for c in cells}) > 1
        if several and isinstance(wanted, float | int):
            near = [c for c in cells if c.temperature is not None]
            cells = [c for c in near if math.isclose(c.temperature or 0.0, wanted)]
        elif several:
            cells = [c for c in cells if c.temperature is None]
        here = [c for c in cells if c.dataset == data]
        cells = here or [c for c in cells if c.dataset == fallback]
        if cells:
            lines.append(cells)
    return lines


def build(
    experiment: Experiment,
    data: str,
    plan: Mapping[str, Cell],
    results: Mapping[str, Result],
) -> pd.DataFrame:
    """The table: a line for each row and each place where the papers print it.

    Returns:
        for each metric (``top1``, ``top5``) the columns ``published_…``, ``published_…_std``,
        ``ours_…``, ``ours_…_std``, ``difference_…`` (of ours to the published number; NaN unless
        the dataset is the same), ``published_…_to_baseline`` and ``ours_…_to_baseline``; beside
        them ``row``, ``title``, ``baseline``, ``seeds``, ``source``, ``published_on``, ``note``.
        In percent and points.
    """
    ours = {metric: values(results, metric) for metric in METRICS}
    temperatures = {row.name: _temperature(plan, row) for row in experiment.rows}
    printed = {
        row.name: published_cells(row, data, experiment.data, temperatures[row.name])
        for row in experiment.rows
    }
    lines = []
    for row in experiment.rows:
        for cells in printed[row.name] or [[]]:
            first = cells[0] if cells else None
            line: dict[str, Any] = {
                "row": row.name,
                "title": row.title,
                "baseline": row.baseline,
                "seeds": len(ours["top1"].get(row.name, ())),
                "source": first.source if first else "",
                "published_on": first.dataset if first else "",
                "note": first.note if first else "",
            }
            for metric in METRICS:
                line.update(_numbers(metric, row, cells, ours[metric], printed, data))
            lines.append(line)
    return pd.DataFrame(lines)


def _numbers(
    metric: str,
    row: Row,
    cells: Sequence[Published],
    ours: Mapping[str, Sequence[float]],
    printed: Mapping[str, list[list[Published]]],
    data: str,
) -> dict[str, float]:
    theirs, theirs_std = _printed(cells, metric)
    base, _ = _printed(_same_table(cells, printed.get(row.baseline) or []), metric)
    mine, mine_base = Value(tuple(ours.get(row.name, ()))), Value(tuple(ours.get(row.baseline, ())))
    same = bool(cells) and cells[0].dataset == data
    return {
        f"published_{metric}": theirs,
        f"published_{metric}_std": theirs_std,
        f"ours_{metric}": mine.mean,
        f"ours_{metric}_std": mine.std,
        f"difference_{metric}": mine.mean - theirs if same else math.nan,
        f"published_{metric}_to_baseline": theirs - base,
        f"ours_{metric}_to_baseline": mine.mean - mine_base.mean,
    }


def _same_table(
    cells: Sequence[Published], lines: Sequence[list[Published]]
) -> Sequence[Published]:
    """The baseline's line of the same table; its only line, where it has one; else none."""
    tables = {line[0].table: line for line in lines}
    if cells and cells[0].table in tables:
        return tables[cells[0].table]
    return lines[0] if len(lines) == 1 else []


def _printed(cells: Sequence[Published], metric: str) -> tuple[float, float]:
    for cell in cells:
        if cell.metric == metric:
            return cell.value, math.nan if cell.std is None else cell.std
    return math.nan, math.nan


def _temperature(plan: Mapping[str, Cell], row: Row) -> float:
    """τ of the row's runs; NaN for a method without one."""
    mine = [cell for cell in plan.values() if cell.row == row.name]
    if not mine:
        return math.nan
    value = composed(mine[0].config, mine[0].pretrain).method_kwargs.get("temperature")
    return math.nan if value is None else float(value)


def readable(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of the table as text, for a page or a terminal."""
    name = METRICS[metric]
    return pd.DataFrame(
        {
            "row": table["title"],
            "published": [
                _pm(a, b)
                for a, b in zip(
                    table[f"published_{metric}"], table[f"published_{metric}_std"], strict=True
                )
            ],
            f"ours, {name}": [
                _pm(a, b)
                for a, b in zip(table[f"ours_{metric}"], table[f"ours_{metric}_std"], strict=True)
            ],
            "seeds": [str(n) if n else "" for n in table["seeds"]],
            "difference": [_signed(v) for v in table[f"difference_{metric}"]],
            "published, to baseline": [
                _signed(v) for v in table[f"published_{metric}_to_baseline"]
            ],
            "ours, to baseline": [_signed(v) for v in table[f"ours_{metric}_to_baseline"]],
        }
    )


def _pm(mean: float, std: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}"
