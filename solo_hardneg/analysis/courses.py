"""What a run's records say of each epoch, and the mean of that over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solo_hardneg.analysis import plots
from solo_hardneg.analysis.records import Records, first_late
from solo_hardneg.analysis.runs import LATE, Note, Run

EDGES = np.linspace(-1, 1, 201)  # of the bins of the recorded histograms


@dataclass(frozen=True)
class Course:
    """A run, epoch by epoch.

    Attributes:
        means: columns ``epoch``, ``kind`` (scalar, percentile, metric), ``quantity``, ``bin``,
            ``value``: means over the recorded steps and processes.
        counts: the same columns for the kinds histogram and image: sums. Of images there are only
            those late in training.
        late_from: the epoch from which on it is late.
    """

    means: pd.DataFrame
    counts: pd.DataFrame
    late_from: int

    def scalar(self, quantity: str) -> pd.Series:
        """A quantity by epoch; empty where it is not known."""
        rows = self.means[self.means["kind"].isin(["scalar", "metric"])]
        return rows[rows["quantity"] == quantity].set_index("epoch")["value"]

    def late(self, kind: str, quantity: str) -> pd.Series:
        """By bin, late in training: the mean over the epochs or, of counts, the sum."""
        counted = kind in ("histogram", "image")
        table = self.counts if counted else self.means
        rows = table[(table["kind"] == kind) & (table["quantity"] == quantity)]
        if not len(rows):
            return pd.Series(dtype=float)
        rows = rows[rows["epoch"] >= self.late_from]
        by_bin = rows.groupby("bin")["value"]
        return by_bin.sum() if counted else by_bin.mean()

    def histogram(self, quantity: str) -> pd.DataFrame:
        """(epochs, 200) counts of similarities."""
        rows = self.counts[self.counts["kind"] == "histogram"]
        rows = rows[rows["quantity"] == quantity]
        table = rows.pivot_table(index="epoch", columns="bin", values="value", aggfunc="sum")
        return table.reindex(columns=range(len(EDGES) - 1)).fillna(0.0)


class Line(NamedTuple):
    """A curve over seeds: where, how high, and how far apart the seeds are (NaN for one seed)."""

    x: NDArray[Any]
    mean: NDArray[Any]
    std: NDArray[Any]


Groups = Mapping[str, Sequence[Course]]


def course(run: Run) -> Course:
    """What a run's records and its metrics say of each epoch."""
    tables = [] if run.records is None else [_averaged(run.records)]
    history = run.history.rename(columns={"metric": "quantity"}).assign(kind="metric", bin=-1)
    if not run.labelled:
        history = history[~history["quantity"].str.contains("_acc")]
    columns = ["epoch", "kind", "quantity", "bin", "value"]
    tables.append(history[columns])
    means = pd.concat([t for t in tables if len(t)] or [history[columns]], ignore_index=True)
    if run.records is None:
        return Course(means, means.iloc[:0], 0)
    late_from = first_late(run.records.table["epoch"].unique(), LATE)
    return Course(means, _summed(run.records), late_from)


def _averaged(records: Records) -> pd.DataFrame:
    """Means by weight over steps and processes; what is unknown counts nowhere."""
    table = records.table
    rows = table[table["kind"].isin(["scalar", "percentile"]) & (table["weight"] > 0)]
    rows = rows.dropna(subset=["value"])
    place = ["epoch", "kind", "quantity", "bin"]
    sums = (
        rows[place]
        .assign(total=rows["value"] * rows["weight"], weight=rows["weight"])
        .groupby(place, observed=True, as_index=False)
        .sum()
    )
    return _plain(sums.assign(value=sums["total"] / sums["weight"]).drop(columns=["total"]))


def _summed(records: Records) -> pd.DataFrame:
    table = records.table
    rows = table[table["kind"].isin(["histogram", "image"])]
    place = ["epoch", "kind", "quantity", "bin"]
    return _plain(rows.groupby(place, observed=True, as_index=False)["value"].sum())


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype({"kind": str, "quantity": str})


def over_epochs(courses: Sequence[Course], quantity: str, factor: float = 1.0) -> Line | None:
    """A scalar over epochs, counted from 1; ``None`` where no seed has it."""
    seeds = [series for c in courses if len(series := c.scalar(quantity))]
    if not seeds:
        return None
    table = pd.concat(seeds, axis=1).sort_index() * factor
    mean, std = plots.mean_and_std(table.to_numpy(dtype=float).T)
    return Line(table.index.to_numpy() + 1, mean, std)


def unlike(groups: Groups) -> list[Note]:
    """The groups whose seeds were recorded with different numbers of percentiles."""
    notes = []
    for label, courses in groups.items():
        tables = [c.means[c.means["kind"] == "percentile"] for c in courses]
        numbers = sorted({int(table["bin"].max()) + 1 for table in tables if len(table)})
        if len(numbers) > 1:
            several = " and ".join(map(str, numbers))
            text = (
                f"its seeds were recorded with {several} percentiles (hardness.percentiles), so it "
                "is left out of the figures by percentile."
            )
            notes.append(Note(label, text))
    return notes
