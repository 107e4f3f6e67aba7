"""All that a GPU should show, in minutes: tests, waits, loss, step, loader, accuracy.

Most important first, and each result is in a CSV as soon as it is there. Each part has a process
of its own, so that one that hangs or crashes costs itself alone.
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
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import STARTED
from benchmarks.parts import PARTS, Part, no_units
from benchmarks.worker import PRELOADED, Job, work_off

_OVERVIEW = "parts"
_PROBE_SECONDS = 120.0


@dataclass
class Run:
    """One call of the command.

    Attributes:
        job: what was asked for.
        end: when all must be over.
        total: seconds, from the start to the end.
        origin: device, versions and commit, for each row.
    """

    job: Job
    end: float
    total: float
    origin: dict[str, Any] = field(default_factory=dict)
    context: Any = None

    @property
    def grace(self) -> float:
        """Seconds that a unit has between its time being up and being killed."""
        return max(3.0, 0.03 * self.total)

    def say(self, text: str) -> None:
        """Prints a line with the time so far."""
        print(f"[{time.perf_counter() - (self.end - self.total):5.1f} s] {text}", flush=True)

    # ------------------------------------------------------------------ CSVs

    def keep(self, name: str, new: pd.DataFrame, instead_of: pd.Series | None = None) -> None:
        """Adds rows to a CSV, which is whole at all times.

        Args:
            name: of the file.
            new: the rows; where they come from is added.
            instead_of: which of the old rows go, by their columns' values.
        """
        file = self.job.out / f"{name}.csv"
        new = new.assign(**{key: value for key, value in self.origin.items() if key not in new})
        if file.exists():
            old = pd.read_csv(file, dtype=str, keep_default_na=False)  # a commit may look like 1e6
            if instead_of is not None:
                same = (old[list(instead_of.index)] == instead_of).all(axis=1)
                old = old[~same]
            new = pd.concat([old, new]) if len(old) else new
        own = [column for column in new if column not in self.origin]
        new = new[[*own, *(column for column in new if column in self.origin)]]
        beside = file.with_suffix(".part")
        new.to_csv(beside, index=False)
        beside.replace(file)

    def note(self, part: Part, unit: str, state: str, text: str, seconds: float) -> None:
        """Writes down, and says, how a unit ended."""
        row = {"part": part.name, "unit": unit}
        table = pd.DataFrame([{**row, "state": state, "seconds": round(seconds, 2), "note": text}])
        self.keep(_OVERVIEW, table, pd.Series(row))
        self.say(f"{part.name}: {unit}: {state}" + (f" ({text})" if text else ""))

    def done_before(self, part: Part) -> set[str]:
        """Units that an earlier call has finished on this device and this commit."""
        file = self.job.out / f"{_OVERVIEW}.csv"
        if part.goes_on or not file.exists():
            return set()
        known = pd.read_csv(file, dtype=str, keep_default_na=False)
        same = (known.part == part.name) & (known.state == "done")
        same &= (known.device == self.origin["device"]) & (known.commit == self.origin["commit"])
        return set(known[same].unit)


def run_gpu(job: Job, minutes: float, parts: tuple[str, ...]) -> None:
    """Runs the parts within the time, counted from the start of the program.

    Raises:
        RuntimeError: there is no GPU, and ``job`` wants one; or our configs aren't installed.
    """
    if importlib.util.find_spec("solo_hardneg.configs") is None:
        raise RuntimeError(
            "solo-hardneg isn't installed: its configs aren't importable. "
            "pip install --no-deps --no-build-isolation -e . needs no network."
        )
    job.out.mkdir(parents=True, exist_ok=True)
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    if not job.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # or to ask for a GPU would forbid to fork
    run = Run(job, STARTED + 60 * minutes, 60 * minutes)
    _look_at_the_device(run)
    run.say(json.dumps(run.origin))
    chosen = [part for part in PARTS if part.name in parts]
    for number, part in enumerate(chosen):
        start, last = time.perf_counter(), run.end - run.grace - 1
        share = part.share / sum(later.share for later in chosen[number:])
        _run_part(run, part, start + share * (last - start))
    file = job.out / f"{_OVERVIEW}.csv"
    for state, group in pd.read_csv(file).groupby("state"):
        run.say(f"{len(group)} units {state}")


def _look_at_the_device(run: Run) -> None:
    """Finds how processes can be started here, and what the device is."""
    why = ""
    for method in ("forkserver", "spawn"):  # where a library calls CUDA on import, only the second
        run.context = multiprocessing.get_context(method)
        run.context.set_forkserver_preload(PRELOADED)
        limit = min(time.perf_counter() + _PROBE_SECONDS, run.end)
        for kind, content in _messages(run, no_units, [], limit):
            if kind == "from":
                run.origin = content
            else:
                why = f" ({content}; see {run.job.out / 'output.txt'})"
        if run.origin and (run.origin["cuda"] or not run.job.gpu):
            return
    text = (
        f"there is no GPU that PyTorch can use{why}" if run.job.gpu else f"no process starts{why}"
    )
    device = "cuda" if run.job.gpu else "cpu"
    raise RuntimeError(f"device={device}: {text}. Set --device cpu, which rehearses, or --minutes.")


def _run_part(run: Run, part: Part, until: float) -> None:
    """Works off a part's units, in a new process after each one that kills its own."""
    todo = [name for name in part.units(run.job) if name not in run.done_before(part)]
    if not todo:
        run.say(f"{part.name}: done before")
        return
    least = 0.5 if run.job.tiny else part.least
    while todo:
        left = until - time.perf_counter()
        if left < least:
            text = f"{max(0.0, left):.0f} s are left for it, and it takes at least {least:g} s"
            for unit in todo:
                run.note(part, unit, "skipped", text, 0)
            return
        todo = _work_off(run, part, todo, until)


def _work_off(run: Run, part: Part, todo: list[str], until: float) -> list[str]:
    """Runs units in one process; returns those that it didn't come to."""
    unit, at, new, began = "", "", True, time.perf_counter()
    todo, started = list(todo), False

    def rows(table: pd.DataFrame) -> None:
        nonlocal new
        table.insert(0, "unit", unit)
        instead_of = pd.Series({"unit": unit}) if new and not part.goes_on else None
        run.keep(part.name, table, instead_of)
        new = False

    def ended(state: str, text: str) -> None:
        if state == "failed":
            rows(pd.DataFrame([{"error": text}]))
        run.note(part, unit, state, text, time.perf_counter() - began)
        todo.remove(unit)

    for kind, *content in _messages(run, part.units, todo, until):
        if kind == "start":
            started = True
            unit, at, new, began = content[0], "", True, time.perf_counter()
        elif kind == "at":
            at = content[0]
        elif kind == "rows":
            rows(content[0])
        elif kind == "end":
            ended(*content)
            unit = ""
        elif kind == "dead":
            if not started:
                unit = todo[0]
            if unit:
                ended("failed", content[0] + (f", in {at}" if at else ""))
    return todo


def _messages(run: Run, units: Any, names: list[str], until: float) -> Iterator[tuple[Any, ...]]:
    """What a process that works off units sends; at last ``("dead", why)`` if it didn't finish."""
    receiving, sending = run.context.Pipe(duplex=False)
    arguments = (units, run.job, list(names), until, sending)
    process = run.context.Process(target=work_off, args=arguments)
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
                yield "dead", f"took longer than its time and {run.grace:.0f} s more, so was ended"
            elif process.exitcode != 0:
                yield "dead", f"its process ended with {process.exitcode}"
            return
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # one that has no group of its own yet
        process.join(5)


def default_checkpoints(out: Path) -> Path:
    """Where trained networks lie unless the user says it."""
    return out / "checkpoints"
