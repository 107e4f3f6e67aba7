"""A run's records and metrics per epoch, and their means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from solo_hardneg.recording.records import Records, first_late
from solo_hardneg.runs.find import LATE, Note, Run
from solo_hardneg.study.plots import Line
from solo_hardneg.study.significance import mean_and_std

EDGES = np.linspace(-1, 1, 201)  # of the bins of the recorded histograms
_KEY = ["epoch", "kind", "quantity", "bin"]


@dataclass(frozen=True)
class EpochHistory:
    """A run, epoch by epoch.

    Attributes:
        means: Columns ``epoch``, ``kind`` (scalar, percentile, metric), ``quantity``, ``bin``,
            ``value``: means over the recorded steps and ranks.
        counts: The same columns for the kinds histogram and image: sums. Images are counted late
            in training only.
        late_from: The first epoch that is late in training.
    """

    means: pd.DataFrame
    counts: pd.DataFrame
    late_from: int

    def scalar(self, quantity: str) -> pd.Series:
        """A quantity by epoch; empty if unknown."""
        rows = self.means[self.means["kind"].isin(["scalar", "metric"])]
        return rows[rows["quantity"] == quantity].set_index("epoch")["value"]

    def late(self, kind: str, quantity: str) -> pd.Series:
        """A quantity by bin, late in training: the mean over epochs, or the sum of counts."""
        counted = kind in ("histogram", "image")
        table = self.counts if counted else self.means
        rows = table[(table["kind"] == kind) & (table["quantity"] == quantity)]
        if not len(rows):
            return pd.Series(dtype=float)
        by_bin = rows[rows["epoch"] >= self.late_from].groupby("bin")["value"]
        return by_bin.sum() if counted else by_bin.mean()

    def histogram(self, quantity: str) -> pd.DataFrame:
        """(epochs, 200) counts of similarities."""
        rows = self.counts[self.counts["kind"] == "histogram"]
        rows = rows[rows["quantity"] == quantity]
        table = rows.pivot_table(index="epoch", columns="bin", values="value", aggfunc="sum")
        return table.reindex(columns=range(len(EDGES) - 1)).fillna(0.0)


Groups = Mapping[str, Sequence[EpochHistory]]


def epoch_history(run: Run) -> EpochHistory:
    """Collects the records and metrics of a run by epoch."""
    metrics = run.history.rename(columns={"metric": "quantity"}).assign(kind="metric", bin=-1)
    if not run.labelled:
        metrics = metrics[~metrics["quantity"].str.contains("_acc")]
    metrics = metrics[[*_KEY, "value"]]
    tables = [metrics] if run.records is None else [_weighted_means(run.records), metrics]
    means = pd.concat([t for t in tables if len(t)] or [metrics], ignore_index=True)
    if run.records is None:
        return EpochHistory(means, means.iloc[:0], 0)
    late_from = first_late(run.records.table["epoch"].unique(), LATE)
    return EpochHistory(means, _sums(run.records), late_from)


def _weighted_means(records: Records) -> pd.DataFrame:
    """Weighted means over steps and ranks; NaN is left out."""
    table = records.table
    rows = table[table["kind"].isin(["scalar", "percentile"]) & (table["weight"] > 0)]
    rows = rows.dropna(subset=["value"])
    rows = rows.assign(value=rows["value"] * rows["weight"])[[*_KEY, "value", "weight"]]
    sums = rows.groupby(_KEY, observed=True, as_index=False).sum()
    means = sums.assign(value=sums["value"] / sums["weight"]).drop(columns=["weight"])
    return _without_categories(means)


def _sums(records: Records) -> pd.DataFrame:
    table = records.table
    rows = table[table["kind"].isin(["histogram", "image"])]
    return _without_categories(rows.groupby(_KEY, observed=True, as_index=False)["value"].sum())


def _without_categories(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype({"kind": str, "quantity": str})


def over_epochs(
    histories: Sequence[EpochHistory], quantity: str, factor: float = 1.0
) -> Line | None:
    """A scalar over epochs, counted from 1; None if no seed has it."""
    seeds = [series for history in histories if len(series := history.scalar(quantity))]
    if not seeds:
        return None
    table = pd.concat(seeds, axis=1).sort_index() * factor
    mean, std = mean_and_std(table.to_numpy(dtype=float).T)
    return Line(table.index.to_numpy() + 1, mean, std)


def lines_over_epochs(groups: Groups, quantity: str, factor: float = 1.0) -> dict[str, Line]:
    """The curves of the groups that have a quantity."""
    lines = {label: over_epochs(histories, quantity, factor) for label, histories in groups.items()}
    return {label: line for label, line in lines.items() if line is not None}


def differing_percentiles(groups: Groups) -> list[Note]:
    """Notes on groups whose seeds were recorded with different numbers of percentiles."""
    notes = []
    for label, histories in groups.items():
        tables = [h.means[h.means["kind"] == "percentile"] for h in histories]
        numbers = sorted({int(table["bin"].max()) + 1 for table in tables if len(table)})
        if len(numbers) > 1:
            text = (
                f"its seeds were recorded with {' and '.join(map(str, numbers))} percentiles "
                "(hardness.percentiles), so it is left out of the figures by percentile."
            )
            notes.append(Note(label, text))
    return notes
