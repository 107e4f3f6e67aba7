"""A reproduction on the terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solo_hardneg.reproduce.claims import evidence
from solo_hardneg.reproduce.experiment import load_experiment, load_scale, names
from solo_hardneg.reproduce.page import Outcome, published_elsewhere
from solo_hardneg.reproduce.table import readable

# Narrower than the page's, for 80 columns.
_HEADS = {
    "ours, top-1": "ours",
    "difference": "diff.",
    "published, to baseline": "to base, publ.",
    "ours, to baseline": "to base, ours",
}


def show(outcome: Outcome, page: Path, console: Console) -> None:
    """Prints the table, the claims and what failed."""
    experiment = outcome.experiment
    title = f"{experiment.source}, on {outcome.data}, scale {outcome.scale.name}: top-1 in percent"
    if elsewhere := published_elsewhere(outcome):
        title += f"; published on {', '.join(elsewhere)}"
    console.print(_table(readable(outcome.table, "top1").rename(columns=_HEADS), title))
    if outcome.verdicts:
        console.print("The paper's claims:")
    for verdict in outcome.verdicts:
        text = f"- {verdict.claim.text} {verdict.verdict.upper()} ({evidence(verdict)})"
        console.print(text, markup=False, highlight=False)
    for result in outcome.failed:
        console.print(f"{result.cell}: failed. {result.error}", markup=False, highlight=False)
    console.print(f"The page: {escape(str(page.resolve()))}", soft_wrap=True)


def show_experiments(console: Console) -> None:
    """Prints what there is to reproduce."""
    experiments = [load_experiment(name) for name in names("paper")]
    found = pd.DataFrame(
        [(e.name, e.title, e.source, e.data, str(len(e.rows))) for e in experiments],
        columns=["name", "what it asks", "source", "data", "rows"],
    )
    console.print(_table(found, "solo-hardneg reproduce NAME"))
    scales = [load_scale(name) for name in names("scale")]
    sizes = pd.DataFrame([(s.name, s.title) for s in scales], columns=["scale", "what it means"])
    console.print(_table(sizes, "--scale SCALE"))


def _table(frame: pd.DataFrame, title: str) -> Table:
    table = Table(title=escape(title))
    for number, name in enumerate(frame.columns):
        table.add_column(escape(str(name)), no_wrap=number == 0)
    for row in frame.astype(str).to_numpy().tolist():
        table.add_row(*map(escape, row))
    return table
