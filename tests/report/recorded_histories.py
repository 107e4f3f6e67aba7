"""Epoch histories of made-up and of given records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from made_up_runs import MOCO, changed, write_args, write_records

from solo_hardneg.recording.records import Rows
from solo_hardneg.report.history import EpochHistory, epoch_history
from solo_hardneg.runs.find import find_runs


def read_history(folder: Path) -> EpochHistory:
    return epoch_history(find_runs([folder]).runs[0])


def made_up_history(folder: Path, seed: int = 0, **settings: Any) -> EpochHistory:
    """The history of ``write_records``, which takes the settings."""
    args = changed(MOCO, seed=seed)
    write_records(write_args(folder, args), args, **settings)
    return read_history(folder)


def recorded_history(folder: Path, *rows: tuple[Any, ...]) -> EpochHistory:
    """The history of rows of (epoch, kind, quantity, bin, value, weight)."""
    write_args(folder, MOCO)
    for epoch in {row[0] for row in rows}:
        parts = Rows()
        for _, kind, quantity, place, value, weight in (r for r in rows if r[0] == epoch):
            parts.add(epoch, 0, 0, kind, quantity, [place], [value], [weight])
        parts.write(folder / "hardness", epoch, 0, json.dumps(MOCO))
    return read_history(folder)
