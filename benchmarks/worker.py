"""The process that runs the units of a part and reports to its parent."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.provenance import provenance

# Imported once, by the fork server: they take seconds.
PRELOADED = [
    *("torch", "pandas", "lightning.pytorch", "torchvision", "solo_hardneg.methods"),
    *("solo_hardneg.standalone.run", "solo_hardneg.plugin", "pytest"),
    *("benchmarks.loader", "benchmarks.loss", "benchmarks.roofline", "benchmarks.step"),
    *("benchmarks.waits", "benchmarks.accuracy"),
]


class OutOfTime(Exception):
    """A unit stopped early; the message tells how far it came."""


class NotPossible(Exception):
    """A unit needs something from the user; the message names it."""


@dataclass(frozen=True)
class Job:
    """What the command was asked for.

    Attributes:
        out: Folder of the CSVs.
        checkpoints: Folder of trained networks.
        data: Folder of ``cifar-100-python``, if given.
        tiny: Whether to use a rehearsal's sizes.
        gpu: Whether to run on a GPU.
    """

    out: Path
    checkpoints: Path
    data: Path | None
    tiny: bool
    gpu: bool


class Report:
    """Sends the rows and errors of a unit.

    Attributes:
        until: When the unit should stop, on the clock of ``time.perf_counter``.
        errors: Number of rows with an error.
    """

    def __init__(self, connection: Connection, until: float) -> None:
        self.connection, self.until, self.errors = connection, until, 0

    def seconds_left(self) -> float:
        """Seconds until the unit should stop."""
        return self.until - time.perf_counter()

    def add_rows(self, table: pd.DataFrame) -> None:
        """Adds rows to the part's CSV."""
        if len(table):
            self.connection.send(("rows", table))

    def add_row(self, **values: Any) -> None:
        """Adds one row."""
        self.add_rows(pd.DataFrame([values]))

    def start(self, item: str) -> None:
        """Names the item that starts, for the message if the process dies in it."""
        self.connection.send(("item", item))

    @contextmanager
    def catch(self, **values: Any) -> Iterator[None]:
        """Turns an error inside into a row of ``values`` and the error."""
        self.start(", ".join(map(str, values.values())))
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.errors += 1
            self.add_row(**values, error=one_line(error))


Units = dict[str, Callable[[Report], None]]


def one_line(error: BaseException) -> str:
    """Formats an error for a cell of a table."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:500]


def run_units(
    make_units: Callable[[Job], Units],
    job: Job,
    names: Sequence[str],
    until: float,
    connection: Connection,
) -> None:
    """Runs units in order, up to the first that fails.

    It sends ``("provenance", columns)``, then for each unit ``("start", name)``, ``("item",
    text)``, ``("rows", table)`` and ``("end", state, text)``, where the state is done, failed,
    stopped or skipped.

    Args:
        make_units: Returns a part's units.
        job: What the command was asked for.
        names: Units to run.
        until: When to stop.
        connection: Where to send messages.
    """
    os.setpgid(0, 0)  # so that the parent can kill its loaders, too
    _redirect_output(job.out / "output.txt")
    report, longest = Report(connection, until), 0.0
    connection.send(("provenance", provenance()))
    units = make_units(job)
    for name in names:
        connection.send(("start", name))
        start = time.perf_counter()
        if report.seconds_left() < longest / 2:
            left = report.seconds_left()
            text = f"{left:.0f} s are left, and the longest unit took {longest:.0f} s"
            connection.send(("end", "skipped", text))
            continue
        print(f"--- {name}", flush=True)
        state, text = _run_unit(units[name], report)
        connection.send(("end", state, text))
        if state == "failed":
            return  # a device fault spoils the process; the other units get a new one
        longest = max(longest, time.perf_counter() - start)


def _run_unit(unit: Callable[[Report], None], report: Report) -> tuple[str, str]:
    report.errors = 0
    try:
        unit(report)
    except OutOfTime as error:
        return "stopped", str(error)
    except NotPossible as error:
        return "skipped", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", one_line(error)
    if report.errors:
        return "failed", f"{report.errors} rows have an error"
    return "done", ""


def _redirect_output(file: Path) -> None:
    """Appends the output of this process and its children to a file."""
    sys.stdout.flush()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
