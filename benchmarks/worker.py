"""The process that works off the units of a part, and reports to the one that started it."""

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

# Imported once, by the server that the processes are forked from: seconds each.
PRELOADED = [
    *("torch", "pandas", "lightning.pytorch", "torchvision", "solo_hardneg.methods"),
    *("solo_hardneg.standalone.run", "solo_hardneg.plugin", "pytest"),
    *("benchmarks.accuracy", "benchmarks.limits", "benchmarks.load", "benchmarks.loader"),
    *("benchmarks.loss", "benchmarks.step", "benchmarks.waits"),
]


class OutOfTime(Exception):
    """A unit has ended before all its work was done; its message says how far it came."""


class NotPossible(Exception):
    """A unit lacks something that the user may give; its message says what."""


@dataclass(frozen=True)
class Job:
    """What the command was asked for.

    Attributes:
        out: folder of the CSVs.
        checkpoints: folder of the trained networks.
        data: folder of ``cifar-100-python``, if there is one.
        tiny: whether sizes are those of a rehearsal.
        gpu: whether there must be a GPU.
    """

    out: Path
    checkpoints: Path
    data: Path | None
    tiny: bool
    gpu: bool


class Report:
    """What a unit tells while it works.

    Attributes:
        until: when the unit should stop by itself, on the clock of ``time.perf_counter``.
        errors: of the unit, so far, each with a row of its own.
    """

    def __init__(self, connection: Connection, until: float) -> None:
        self.connection, self.until, self.errors = connection, until, 0

    def left(self) -> float:
        """Seconds until the unit should stop."""
        return self.until - time.perf_counter()

    def rows(self, table: pd.DataFrame) -> None:
        """Adds rows to the part's CSV."""
        if len(table):
            self.connection.send(("rows", table))

    def row(self, **values: Any) -> None:
        """Adds one row."""
        self.rows(pd.DataFrame([values]))

    def at(self, text: str) -> None:
        """Notes what begins, for the message if it never ends."""
        self.connection.send(("at", text))

    @contextmanager
    def trying(self, **values: Any) -> Iterator[None]:
        """Turns an error inside into a row with ``values`` and the error."""
        self.at(", ".join(map(str, values.values())))
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.errors += 1
            self.row(**values, error=said(error))


def said(error: BaseException) -> str:
    """An error in one line of a table."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:500]


def work_off(
    units: Callable[[Job], dict[str, Callable[[Report], None]]],
    job: Job,
    names: Sequence[str],
    until: float,
    connection: Connection,
) -> None:
    """Runs units in their order, up to one that fails, and sends what happens.

    Messages are ``("from", provenance)``, ``("start", unit)``, ``("at", text)``, ``("rows",
    table)`` and ``("end", state, text)``, where the state is done, failed, stopped or skipped.

    Args:
        units: of a part.
        job: what was asked for.
        names: the units to run.
        until: when to stop.
        connection: where to send to.
    """
    os.setpgid(0, 0)  # so that its own processes, of loaders, can be ended with it
    _write_to(job.out / "output.txt")
    report, longest = Report(connection, until), 0.0
    connection.send(("from", provenance()))
    works = units(job)
    for name in names:
        connection.send(("start", name))
        start = time.perf_counter()
        if report.left() < longest / 2:
            text = f"{report.left():.0f} s are left, and the longest unit took {longest:.0f} s"
            connection.send(("end", "skipped", text))
            continue
        print(f"--- {name}", flush=True)
        state, text = _outcome(works[name], report)
        connection.send(("end", state, text))
        if state == "failed":
            return  # a fault of the device spoils the process; the others get a new one
        longest = max(longest, time.perf_counter() - start)


def _outcome(work: Callable[[Report], None], report: Report) -> tuple[str, str]:
    report.errors = 0
    try:
        work(report)
    except OutOfTime as error:
        return "stopped", str(error)
    except NotPossible as error:
        return "skipped", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", said(error)
    if report.errors:
        return "failed", f"{report.errors} rows have an error"
    return "done", ""


def _write_to(file: Path) -> None:
    """Sends what this process and its own print to a file."""
    sys.stdout.flush()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
