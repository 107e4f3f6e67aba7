"""What a reproduction leaves for people and programs: CSV files and a page in Markdown."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from solo_hardneg.analysis.untrusted import for_spreadsheets, no_formula, no_links, write_text
from solo_hardneg.reproduce import claims as claimed
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.claims import Verdict
from solo_hardneg.reproduce.experiment import Experiment, Scale
from solo_hardneg.reproduce.overrides import what_counts
from solo_hardneg.reproduce.results import DONE, FAILED, Result
from solo_hardneg.reproduce.table import METRICS, readable


@dataclass(frozen=True)
class Outcome:
    """All that is known of a reproduction.

    Attributes:
        experiment, scale, data: what was asked for.
        cells: of the grid.
        results: of those that have been run, by the cell's name.
        table: see :func:`solo_hardneg.reproduce.table.build`.
        verdicts: on the paper's claims.
    """

    experiment: Experiment
    scale: Scale
    data: str
    cells: Sequence[Cell]
    results: Mapping[str, Result]
    table: pd.DataFrame
    verdicts: Sequence[Verdict]

    @property
    def done(self) -> int:
        """How many cells have a number."""
        return sum(result.state == DONE for result in self.results.values())

    @property
    def failed(self) -> list[Result]:
        """The cells that were run and have none."""
        return [result for result in self.results.values() if result.state == FAILED]


def write(folder: Path, outcome: Outcome) -> Path:
    """Writes ``README.md``, ``table.csv``, ``claims.csv`` and ``cells.csv``; returns the first."""
    files = {
        "table.csv": for_spreadsheets(outcome.table).to_csv(index=False, float_format="%.4f"),
        "claims.csv": _claims_csv(outcome.verdicts),
        "cells.csv": _cells_csv(outcome),
        "README.md": page(outcome),
    }
    for name, text in files.items():
        partial = folder / f"{name}.{os.getpid()}.part"
        write_text(partial, text)
        partial.replace(folder / name)
    return folder / "README.md"


def page(outcome: Outcome) -> str:
    """The page in Markdown: what was run, the table, the claims, and what is missing."""
    experiment = outcome.experiment
    parts = [
        f"# {_plain(experiment.title)}",
        f"{_plain(experiment.source)}, run on {_plain(outcome.data)} at the scale "
        f"*{_plain(outcome.scale.name)}* ({_plain(outcome.scale.title)}). "
        f"{outcome.done} of {len(outcome.cells)} cells have a result. "
        "Accuracies in percent, of the linear evaluation after its last epoch; ± is the standard "
        "deviation over seeds; differences in points.",
        *_changes(outcome),
    ]
    for metric, name in METRICS.items():
        parts += [f"## {name.capitalize()} accuracy", as_markdown(readable(outcome.table, metric))]
    parts += _notes(outcome)
    if outcome.verdicts:
        parts += [
            "## The paper's claims",
            as_markdown(claims_table(outcome.verdicts)),
            "Welch's t-tests on top-1 over seeds, corrected by Holm's method for the number of "
            "claims, each way; claims of equality by two one-sided tests. *Not confirmed* needs "
            "evidence against a claim; where there is evidence for neither, it is *undecided*.",
        ]
    parts += _failures(outcome) + _ran_on(outcome)
    return "\n\n".join(parts) + "\n"


def claims_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The claims, verdicts and evidence as text."""
    return pd.DataFrame(
        {
            "claim": [v.claim.text + _margin(v) for v in verdicts],
            "verdict": [v.verdict for v in verdicts],
            "evidence": [claimed.evidence(v) for v in verdicts],
            "in the paper": [v.claim.source for v in verdicts],
        }
    )


def _margin(verdict: Verdict) -> str:
    margin = verdict.claim.margin
    return f" (margin: {margin:g} points)" if margin else ""


def _changes(outcome: Outcome) -> list[str]:
    """What differs from the published settings, in one list for all rows."""
    rows: dict[str, set[str]] = {}
    for cell in outcome.cells:
        for change in cell.changed:
            rows.setdefault(change, set()).add(cell.row)
    if not rows:
        return [f"The settings are the published ones, {_seeds(outcome)}."]
    everywhere = len({cell.row for cell in outcome.cells})
    lines = [
        f"- `{_code(change)}`"
        + ("" if len(which) == everywhere else f" ({_plain(', '.join(sorted(which)))})")
        for change, which in rows.items()
    ]
    head = f"Changed against the published settings, {_seeds(outcome)}:"
    return [head, "\n".join(lines)]


def _seeds(outcome: Outcome) -> str:
    number = len({cell.seed for cell in outcome.cells})
    return f"with {number} seed{'s' * (number > 1)} for each row"


def published_elsewhere(outcome: Outcome) -> list[str]:
    """Other datasets that published numbers of the table are of."""
    return sorted({d for d in outcome.table["published_on"] if d and d != outcome.data})


def _notes(outcome: Outcome) -> list[str]:
    table = outcome.table
    notes = []
    if elsewhere := published_elsewhere(outcome):
        notes.append(
            f"- The published numbers are of {', '.join(elsewhere)}; only differences to a "
            "baseline can be compared with them."
        )
    for line in table.to_dict("records"):
        if line["note"]:
            notes.append("- " + _plain(f"{line['title']} ({line['source']}): {line['note']}."))
    return ["\n".join(dict.fromkeys(notes))] if notes else []


def _failures(outcome: Outcome) -> list[str]:
    missing = [cell.name for cell in outcome.cells if cell.name not in outcome.results]
    lines = [f"- {_plain(result.cell)}: {_plain(result.error)}" for result in outcome.failed]
    if missing:
        lines.append(f"- not run yet: {_plain(', '.join(missing))}")
    return ["## What is missing", "\n".join(lines)] if lines else []


def _ran_on(outcome: Outcome) -> list[str]:
    machines = {
        _plain(", ".join(f"{key} {value}" for key, value in result.ran_on.items())): None
        for result in outcome.results.values()
        if result.ran_on
    }
    seconds = sum(result.seconds for result in outcome.results.values())
    if not machines:
        return []
    where = "; ".join(machines)
    return ["## What it ran on", f"{where}. {seconds / 60:.0f} minutes for all cells together."]


def _plain(text: str) -> str:
    """A text on one line of Markdown, without HTML, links and pictures."""
    return no_links(" ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;"))


def _code(text: str) -> str:
    """A text on one line, to stand between backquotes."""
    return " ".join(text.split()).replace("`", "'")


def as_markdown(table: pd.DataFrame) -> str:
    """A table of text in Markdown."""

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(_plain(v).replace("|", "\\|") for v in values) + " |"

    heads = list(map(str, table.columns))
    rows = [line(row) for row in table.astype(str).to_numpy().tolist()]
    return "\n".join([line(heads), line(["---"] * len(heads)), *rows])


def _claims_csv(verdicts: Sequence[Verdict]) -> str:
    rows = [
        {
            "claim": v.claim.text,
            "kind": v.claim.kind,
            "first": v.claim.first,
            "second": v.claim.second,
            "margin": v.claim.margin,
            "difference": v.difference,
            "low": v.low,
            "high": v.high,
            "seeds_first": v.seeds[0],
            "seeds_second": v.seeds[1],
            "p_for": v.p_for,
            "p_against": v.p_against,
            "holm_for": v.holm_for,
            "holm_against": v.holm_against,
            "verdict": v.verdict,
            "why": v.why,
            "source": v.claim.source,
        }
        for v in verdicts
    ]
    return for_spreadsheets(pd.DataFrame(rows)).to_csv(index=False, float_format="%.6g")


def _cells_csv(outcome: Outcome) -> str:
    """A line for each result: its number and exactly what ran."""
    out = io.StringIO()
    heads = ["cell", "row", "seed", "state", "top1", "top5", "online", "seconds", "fingerprint"]
    heads += ["config", "pretrain", "linear", "ran_on", "error"]
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    for cell in outcome.cells:
        result = outcome.results.get(cell.name)
        if result is None:
            continue
        line = {
            key: getattr(result, key) for key in ("cell", "row", "seed", "state", "fingerprint")
        }
        numbers = {key: f"{value:.4f}" for key, value in result.metrics.items() if key in heads}
        line |= {"seconds": f"{result.seconds:.1f}", "config": result.config, "error": result.error}
        for program in ("pretrain", "linear"):
            line[program] = " ".join(what_counts(getattr(result, program)))
        ran_on = " ".join(f"{key}={value}" for key, value in result.ran_on.items())
        line |= {**numbers, "ran_on": ran_on}
        writer.writerow({key: no_formula(value) for key, value in line.items()})
    return out.getvalue()
