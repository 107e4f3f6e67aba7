"""A paper's table with the reproduced accuracies beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from solo_hardneg.report import published
from solo_hardneg.reproduce.experiment import Experiment, Row
from solo_hardneg.reproduce.grid import Cell
from solo_hardneg.reproduce.overrides import compose_config
from solo_hardneg.reproduce.store import DONE, Result
from solo_hardneg.study.significance import mean_and_std

METRICS = {"top1": "top-1", "top5": "top-5"}
# A line of a paper's table: its numbers by metric.
Line = Mapping[str, published.PublishedNumber]


def group_accuracies(results: Iterable[Result], metric: str) -> dict[str, list[float]]:
    """Returns a metric of the finished cells by row, in the order of the seeds."""
    groups: dict[str, list[float]] = {}
    for result in sorted(results, key=lambda result: result.cell.seed):
        if result.state == DONE and metric in result.metrics:
            groups.setdefault(result.cell.row, []).append(float(result.metrics[metric]))
    return groups


def published_lines(row: Row, data: str, fallback: str, temperature: float) -> list[Line]:
    """Finds the lines that the papers print of a row.

    Args:
        row: Row of the experiment.
        data: Dataset.
        fallback: The experiment's dataset, taken where the paper has no numbers of ``data``.
        temperature: τ of the runs; chooses where a table has several.
    """
    wanted = row.published_temperature
    wanted = temperature if isinstance(wanted, str) else wanted
    lines: list[Line] = []
    for reference in row.published:
        cells = [c for c in published.cells() if [c.table, c.label] == reference]
        if len({c.temperature for c in cells}) > 1:
            cells = [c for c in cells if _matches_temperature(c.temperature, wanted)]
        for dataset in (data, fallback):
            if line := {c.metric: c for c in cells if c.dataset == dataset}:
                lines.append(line)
                break
    return lines


def _matches_temperature(one: float | None, other: float | None) -> bool:
    return one is other if one is None or other is None else math.isclose(one, other)


def make_table(
    experiment: Experiment, data: str, cells: Sequence[Cell], results: Iterable[Result]
) -> pd.DataFrame:
    """Makes the table: a line for each row and each place where the papers print it.

    Returns:
        For each metric (``top1``, ``top5``), in percent and points: ``published_…``,
        ``published_…_std``, ``ours_…``, ``ours_…_std``, ``difference_…`` (NaN if the published
        number is of another dataset), ``published_…_to_baseline`` and ``ours_…_to_baseline``.
        Before them ``row``, ``title``, ``baseline``, ``seeds``, ``source``, ``published_on``
        (the dataset) and ``note``.
    """
    results = list(results)
    printed: dict[str, list[Line]] = {}
    for name, row in experiment.rows.items():
        temperature = _run_temperature([cell for cell in cells if cell.row == name])
        printed[name] = published_lines(row, data, experiment.data, temperature)
    pairs = [(row, line) for row in experiment.rows.values() for line in printed[row.name] or [{}]]
    seeds = {row: len(values) for row, values in group_accuracies(results, "top1").items()}
    table = pd.DataFrame([_describe_row(row, line, seeds.get(row.name, 0)) for row, line in pairs])
    baselines = [_baseline_line(line, printed.get(row.baseline, [])) for row, line in pairs]
    for metric in METRICS:
        groups = group_accuracies(results, metric)
        statistics = {row: mean_and_std(values) for row, values in groups.items()}
        ours = {row: mean for row, (mean, _) in statistics.items()}
        spread = {row: std for row, (_, std) in statistics.items()}
        numbers = [_number(line, metric) for _, line in pairs]
        table[f"published_{metric}"] = [value for value, _ in numbers]
        table[f"published_{metric}_std"] = [std for _, std in numbers]
        table[f"ours_{metric}"] = table["row"].map(ours).astype(float)
        table[f"ours_{metric}_std"] = table["row"].map(spread).astype(float)
        difference = table[f"ours_{metric}"] - table[f"published_{metric}"]
        table[f"difference_{metric}"] = difference.where(table["published_on"] == data)
        beside = [_number(line, metric)[0] for line in baselines]
        table[f"published_{metric}_to_baseline"] = table[f"published_{metric}"] - beside
        beside = table["baseline"].map(ours).astype(float)
        table[f"ours_{metric}_to_baseline"] = table[f"ours_{metric}"] - beside
    return table


def _describe_row(row: Row, line: Line, seeds: int) -> dict[str, Any]:
    known = {"row": row.name, "title": row.title, "baseline": row.baseline, "seeds": seeds}
    for cell in line.values():  # all metrics have the same source
        return {**known, "source": cell.source, "published_on": cell.dataset, "note": cell.note}
    return {**known, "source": "", "published_on": "", "note": ""}


def _number(line: Line, metric: str) -> tuple[float, float]:
    """Returns a published number and its standard deviation; NaN where the paper has none."""
    if metric not in line:
        return math.nan, math.nan
    std = line[metric].std
    return line[metric].value, math.nan if std is None else std


def _baseline_line(line: Line, baselines: Sequence[Line]) -> Line:
    """Returns the baseline's line in the same table, or else its only line."""
    tables = {cell.table for cell in line.values()}
    for baseline in baselines:
        if tables & {cell.table for cell in baseline.values()}:
            return baseline
    return baselines[0] if len(baselines) == 1 else {}


def _run_temperature(cells: Sequence[Cell]) -> float:
    """Returns τ of a row's runs; NaN for a method without one."""
    if not cells:
        return math.nan
    cfg = compose_config(cells[0].config, cells[0].pretrain)
    return float(cfg.method_kwargs.get("temperature") or math.nan)


def format_table(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Formats one metric of the table for readers."""
    return pd.DataFrame(
        {
            "row": table["title"],
            "published": _with_std(table, f"published_{metric}"),
            f"ours, {METRICS[metric]}": _with_std(table, f"ours_{metric}"),
            "seeds": [str(number or "") for number in table["seeds"]],
            "difference": table[f"difference_{metric}"].map(_signed),
            "published, to baseline": table[f"published_{metric}_to_baseline"].map(_signed),
            "ours, to baseline": table[f"ours_{metric}_to_baseline"].map(_signed),
        }
    )


def _with_std(table: pd.DataFrame, column: str) -> pd.Series:
    mean = table[column].map("{:.2f}".format).where(table[column].notna(), "")
    std = table[f"{column}_std"]
    return mean + std.map(" ± {:.2f}".format).where(std.notna(), "")


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}"
