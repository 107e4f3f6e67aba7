"""Runs everything that a GPU must show, within minutes: tests, waits, loss, step, loader, accuracy.

Results are written to CSVs as they come. Each part runs in a separate process, so that a part that
hangs or crashes takes no other with it.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from benchmarks import STARTED
from benchmarks.parts import PARTS, Part, no_units
from benchmarks.worker import PRELOADED, Job, run_units

_OVERVIEW = "parts"
_PROBE_SECONDS = 120.0


@dataclass
class Run:
    """One call of the command.

    Attributes:
        job: What was asked for.
        end: When everything must be over.
        total: Seconds from start to end.
        origin: Provenance, the last columns of each CSV.
        context: How processes are started.
    """

    job: Job
    end: float
    total: float
    origin: dict[str, Any] = field(default_factory=dict)
    context: Any = None

    @property
    def grace(self) -> float:
        """Seconds between a unit's end of time and its being killed."""
        return max(3.0, 0.03 * self.total)

    def log(self, text: str) -> None:
        """Prints a line with the elapsed time."""
        print(f"[{time.perf_counter() - (self.end - self.total):5.1f} s] {text}", flush=True)

    # ------------------------------------------------------------------ CSVs

    def add_rows(self, name: str, new: pd.DataFrame, replaced: pd.Series | None = None) -> None:
        """Adds rows to a CSV, which is whole at all times.

        Args:
            name: Name of the file.
            new: Rows without their provenance.
            replaced: Values of columns; old rows that have them are removed.
        """
        file = self.job.out / f"{name}.csv"
        new = new.assign(**{key: value for key, value in self.origin.items() if key not in new})
        if file.exists():
            old = pd.read_csv(file, dtype=str, keep_default_na=False)  # a commit may look like 1e6
            if replaced is not None:
                old = old[~(old[list(replaced.index)] == replaced).all(axis=1)]
            new = pd.concat([old, new]) if len(old) else new
        own = [column for column in new if column not in self.origin]
        new = new[[*own, *(column for column in new if column in self.origin)]]
        partial = file.with_suffix(".part")
        new.to_csv(partial, index=False)
        partial.replace(file)

    def record(self, part: Part, unit: str, state: str, text: str, seconds: float) -> None:
        """Writes and prints how a unit ended."""
        row = {"part": part.name, "unit": unit}
        table = pd.DataFrame([{**row, "state": state, "seconds": round(seconds, 2), "note": text}])
        self.add_rows(_OVERVIEW, table, pd.Series(row))
        self.log(f"{part.name}: {unit}: {state}" + (f" ({text})" if text else ""))

    def finished_units(self, part: Part) -> set[str]:
        """The units that an earlier call finished on this device and commit."""
        file = self.job.out / f"{_OVERVIEW}.csv"
        if part.resumes or not file.exists():
            return set()
        known = pd.read_csv(file, dtype=str, keep_default_na=False)
        same = (known.part == part.name) & (known.state == "done")
        same &= (known.device == self.origin["device"]) & (known.commit == self.origin["commit"])
        return set(known[same].unit)


def run_gpu(job: Job, minutes: float, parts: tuple[str, ...]) -> None:
    """Runs parts within the time, counted from the start of the program.

    Raises:
        RuntimeError: ``job`` needs a GPU and none is usable, or our configs aren't installed.
    """
    if importlib.util.find_spec("solo_hardneg.configs") is None:
        raise RuntimeError(
            "solo-hardneg isn't installed: its configs can't be imported. "
            "pip install --no-deps --no-build-isolation -e . needs no network."
        )
    for folder in (job.out, job.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    if not job.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else looking for a GPU forbids forking
    run = Run(job, STARTED + 60 * minutes, 60 * minutes)
    _probe_device(run)
    run.log(json.dumps(run.origin))
    chosen = [part for part in PARTS if part.name in parts]
    for number, part in enumerate(chosen):
        start, last = time.perf_counter(), run.end - run.grace - 1
        share = part.share / sum(later.share for later in chosen[number:])
        _run_part(run, part, start + share * (last - start))
    states = pd.read_csv(job.out / f"{_OVERVIEW}.csv").groupby("state").size()
    for state, number in states.items():
        run.log(f"{number} units {state}")


def _probe_device(run: Run) -> None:
    """Finds a way to start processes, and the device's provenance."""
    why = ""
    for method in ("forkserver", "spawn"):  # the second, if a library calls CUDA on import
        run.context = multiprocessing.get_context(method)
        run.context.set_forkserver_preload(PRELOADED)
        limit = min(time.perf_counter() + _PROBE_SECONDS, run.end)
        for kind, content in _messages(run, no_units, [], limit):
            if kind == "provenance":
                run.origin = content
            else:
                why = f" ({content}; see {run.job.out / 'output.txt'})"
        if run.origin and (run.origin["cuda"] or not run.job.gpu):
            return
    if run.job.gpu:
        device, text = "cuda", f"PyTorch can use no GPU{why}"
    else:
        device, text = "cpu", f"no process starts{why}"
    raise RuntimeError(f"device={device}: {text}. Set --device cpu, which rehearses, or --minutes.")


def _run_part(run: Run, part: Part, until: float) -> None:
    """Runs a part's units, with a new process after each one that dies or fails."""
    finished = run.finished_units(part)
    remaining = [name for name in part.make_units(run.job) if name not in finished]
    if not remaining:
        run.log(f"{part.name}: done before")
    least = 0.5 if run.job.tiny else part.least
    while remaining:
        left = until - time.perf_counter()
        if left < least:
            text = f"{max(0.0, left):.0f} s are left, and the part needs at least {least:g} s"
            for unit in remaining:
                run.record(part, unit, "skipped", text, 0)
            return
        remaining = _run_in_one_process(run, part, remaining, until)


def _run_in_one_process(run: Run, part: Part, names: list[str], until: float) -> list[str]:
    """Runs units up to one that fails or kills the process; returns the others."""
    remaining, unit, item, is_new, began = list(names), names[0], "", True, time.perf_counter()

    def add_rows(table: pd.DataFrame) -> None:
        nonlocal is_new
        table.insert(0, "unit", unit)
        replaced = is_new and not part.resumes
        run.add_rows(part.name, table, pd.Series({"unit": unit}) if replaced else None)
        is_new = False

    def end(state: str, text: str) -> None:
        if state == "failed":
            add_rows(pd.DataFrame([{"error": text}]))
        run.record(part, unit, state, text, time.perf_counter() - began)
        remaining.remove(unit)

    for kind, *content in _messages(run, part.make_units, names, until):
        if kind == "start":
            unit, item, is_new, began = content[0], "", True, time.perf_counter()
        elif kind == "item":
            item = content[0]
        elif kind == "rows":
            add_rows(content[0])
        elif kind == "end":
            end(*content)
        elif kind == "dead" and unit in remaining:
            end("failed", content[0] + (f", in {item}" if item else ""))
    return remaining


def _messages(
    run: Run, make_units: Any, names: list[str], until: float
) -> Iterator[tuple[Any, ...]]:
    """Yields the messages of a new process, and ``("dead", why)`` if it didn't end well."""
    receiving, sending = run.context.Pipe(duplex=False)
    arguments = (make_units, run.job, names, until, sending)
    process = run.context.Process(target=run_units, args=arguments)
    process.start()
    sending.close()
    try:
        while True:
            left = until + run.grace - time.perf_counter()
            ready = multiprocessing.connection.wait([receiving, process.sentinel], max(0, left))
            if receiving in ready:
                try:
                    yield receiving.recv()
                    continue
                except EOFError:
                    process.join(5)
            if not ready:
                yield "dead", f"killed {run.grace:.0f} s after its time was up"
            elif process.exitcode != 0:
                yield "dead", f"its process ended with {process.exitcode}"
            return
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # if it has no group yet
        process.join(5)
