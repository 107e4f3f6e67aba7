"""Writes a reproduction's page and CSV files, and prints it to the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solo_hardneg.files import escape_markdown, markdown_table, write_atomically
from solo_hardneg.reproduce.claims import describe_evidence
from solo_hardneg.reproduce.experiment import (
    Experiment,
    Scale,
    list_configs,
    load_experiment,
    load_scale,
)
from solo_hardneg.reproduce.grid import Cell
from solo_hardneg.reproduce.overrides import drop_ignored
from solo_hardneg.reproduce.store import DONE, FAILED, Result
from solo_hardneg.reproduce.table import METRICS, format_table

_CELL_COLUMNS = (
    *("cell", "row", "seed", "state", "top1", "top5", "online", "seconds", "fingerprint"),
    *("config", "pretrain", "linear", "ran_on", "error"),
)
# Of the printed table, for 80 columns.
_HEADS = ["row", "published", "ours", "seeds", "diff.", "to base, publ.", "to base, ours"]


@dataclass(frozen=True)
class Outcome:
    """A reproduction and its results.

    Attributes:
        experiment, scale, data: What was asked for.
        cells: Cells of the grid.
        results: Results of the cells that were run, by the cell's name.
        table: See :func:`solo_hardneg.reproduce.table.make_table`.
        verdicts: See :func:`solo_hardneg.reproduce.claims.judge`.
    """

    experiment: Experiment
    scale: Scale
    data: str
    cells: Sequence[Cell]
    results: Mapping[str, Result]
    table: pd.DataFrame
    verdicts: pd.DataFrame

    @property
    def done(self) -> int:
        """Number of cells with an accuracy."""
        return sum(result.state == DONE for result in self.results.values())

    @property
    def failed(self) -> list[Result]:
        """Results of the cells that failed."""
        return [result for result in self.results.values() if result.state == FAILED]

    @property
    def other_datasets(self) -> str:
        """Datasets of published numbers that aren't of ``data``, with commas between."""
        return ", ".join(sorted({*self.table["published_on"]} - {"", self.data}))


def write_outcome(folder: Path, outcome: Outcome) -> Path:
    """Writes ``README.md``, ``table.csv``, ``claims.csv`` and ``cells.csv``; returns the first."""
    page = folder / "README.md"
    table = outcome.table.to_csv(index=False, float_format="%.4f")
    write_atomically(folder / "table.csv", table)
    verdicts = outcome.verdicts.to_csv(index=False, float_format="%.6g")
    write_atomically(folder / "claims.csv", verdicts)
    write_atomically(folder / "cells.csv", _cells_table(outcome).to_csv(index=False))
    write_atomically(page, make_page(outcome))
    return page


def make_page(outcome: Outcome) -> str:
    """Makes the page in Markdown: settings, tables, claims, and what failed."""
    experiment, scale = outcome.experiment, outcome.scale
    parts = [
        f"# {experiment.title}",
        f"{experiment.source}, on {outcome.data}, at the scale *{scale.name}* ({scale.title}): "
        f"{outcome.done} of {len(outcome.cells)} cells have a result. Accuracies of the linear "
        "evaluation after its last epoch, in percent, ± standard deviation over seeds; "
        "differences in points.",
        *_list_changes(outcome.cells),
    ]
    for metric, name in METRICS.items():
        table = format_table(outcome.table, metric)
        parts += [f"## {name.capitalize()} accuracy", markdown_table(table)]
    if outcome.other_datasets:
        parts.append(
            f"The published numbers are of {outcome.other_datasets}; only differences to a "
            "baseline can be compared with them."
        )
    noted = outcome.table[outcome.table["note"] != ""].to_dict("records")
    notes = (f"- {line['title']} ({line['source']}): {line['note']}" for line in noted)
    parts.append("\n".join(notes))
    if len(outcome.verdicts):
        parts += [
            "## The paper's claims",
            "\n".join(_list_claims(outcome.verdicts)),
            "Welch's t-tests of top-1 accuracy over seeds, with Holm's correction for the number "
            "of claims; claims of equality by two one-sided tests. *Not confirmed*: significant "
            "evidence against the claim; *undecided*: neither for nor against it.",
        ]
    missing = [f"- {r.cell.name}: {escape_markdown(r.error)}" for r in outcome.failed]
    not_run = [cell.name for cell in outcome.cells if cell.name not in outcome.results]
    if not_run:
        missing.append(f"- not run yet: {', '.join(not_run)}")
    if missing:
        parts += ["## Missing results", "\n".join(missing)]
    machines = {_join(result.ran_on, " ", ", "): None for result in outcome.results.values()}
    minutes = sum(result.seconds for result in outcome.results.values()) / 60
    if outcome.done:
        parts.append(f"Ran on: {'; '.join(filter(None, machines))}. Total: {minutes:.0f} minutes.")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _list_changes(cells: Sequence[Cell]) -> list[str]:
    """Lists what differs from the published settings, and in which rows unless in all."""
    seeds, rows = (len({getattr(cell, key) for cell in cells}) for key in ("seed", "row"))
    changed: dict[str, dict[str, None]] = {}
    for cell in cells:
        for change in cell.changed:
            changed.setdefault(change, {})[cell.row] = None
    if not changed:
        return [f"Published settings; seeds per row: {seeds}."]
    lines = [
        f"- `{change}`" + (f" ({', '.join(where)})" if len(where) < rows else "")
        for change, where in changed.items()
    ]
    return [f"Seeds per row: {seeds}. Changes to the published settings:", "\n".join(lines)]


def _list_claims(verdicts: pd.DataFrame) -> list[str]:
    lines = []
    for verdict in verdicts.to_dict("records"):
        evidence = [describe_evidence(verdict)]
        if verdict["margin"]:
            evidence.append(f"margin: {verdict['margin']:g} points")
        if verdict["source"]:
            evidence.append(f"in the paper: {verdict['source']}")
        text = f"{verdict['claim']} {verdict['verdict'].upper()}"
        lines.append(f"- {text} ({'; '.join(evidence)})")
    return lines


def _cells_table(outcome: Outcome) -> pd.DataFrame:
    """A line per result: its accuracies, and exactly what ran."""
    lines = []
    for result in (outcome.results.get(cell.name) for cell in outcome.cells):
        if result is not None:
            line = {**vars(result.cell), **vars(result), "cell": result.cell.name}
            line |= {key: f"{value:.4f}" for key, value in result.metrics.items()}
            line["seconds"] = f"{result.seconds:.1f}"
            for program in ("pretrain", "linear"):
                line[program] = " ".join(drop_ignored(line[program]))
            line["ran_on"] = _join(result.ran_on, "=", " ")
            lines.append(line)
    return pd.DataFrame(lines, columns=_CELL_COLUMNS)


def _join(items: Mapping[str, str], between: str, after: str) -> str:
    return after.join(f"{key}{between}{value}" for key, value in items.items())


def print_outcome(outcome: Outcome, page: Path, console: Console) -> None:
    """Prints the top-1 table, the claims, the failed cells and the page's path."""
    title = f"{outcome.experiment.source}, on {outcome.data}, scale {outcome.scale.name}: top-1, %"
    if outcome.other_datasets:
        title += f"; published on {outcome.other_datasets}"
    _print_table(console, format_table(outcome.table, "top1").set_axis(_HEADS, axis=1), title)
    lines = _list_claims(outcome.verdicts)
    lines += [f"{result.cell.name}: failed. {result.error}" for result in outcome.failed]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    console.print(f"The page: {escape(str(page.resolve()))}", soft_wrap=True)


def print_experiments(console: Console) -> None:
    """Prints the experiments and scales that can be chosen."""
    experiments = [load_experiment(name) for name in list_configs("paper")]
    listed = pd.DataFrame(
        [(e.name, e.title, e.source, e.data, len(e.rows)) for e in experiments],
        columns=["name", "question", "source", "data", "rows"],
    )
    _print_table(console, listed, "solo-hardneg reproduce NAME")
    scales = [load_scale(name) for name in list_configs("scale")]
    sizes = pd.DataFrame([(s.name, s.title) for s in scales], columns=["scale", "settings"])
    _print_table(console, sizes, "--scale SCALE")


def _print_table(console: Console, frame: pd.DataFrame, title: str) -> None:
    table = Table(title=escape(title))
    for number, name in enumerate(frame.columns):
        table.add_column(escape(name), no_wrap=number == 0)
    for row in frame.astype(str).itertuples(index=False):
        table.add_row(*map(escape, row))
    console.print(table)
