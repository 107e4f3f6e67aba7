"""Hydra's multirun over cells: one after another, several at a time, or on a cluster.

A program of Hydra's (``configs/reproduce.yaml``), so that any of its launchers can be put in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from solo_hardneg.errors import DataError
from solo_hardneg.nested_hydra import nested_hydra
from solo_hardneg.reproduce.cell import BUSY
from solo_hardneg.reproduce.overrides import quoted
from solo_hardneg.reproduce.results import (
    FAILED,
    read_plan,
    read_result,
    result_file,
    result_of,
    run_folder,
    write_result,
)

_LAST_LINES = 5


def sweep(plan: Path, cells: Sequence[str], arguments: Sequence[str]) -> None:
    """Runs cells of a plan through Hydra's multirun.

    Args:
        plan: the file.
        cells: their names.
        arguments: further overrides, such as ``hydra/launcher=joblib``.
    """
    typed = sys.argv
    sys.argv = [
        "solo-hardneg-reproduce",
        "--multirun",
        f"plan={quoted(plan.resolve())}",
        f"folder={quoted(plan.resolve().parent.parent)}",
        f"cell={','.join(cells)}",
        *arguments,
    ]
    try:
        with nested_hydra():
            job()
    finally:
        sys.argv = typed


@hydra.main(version_base="1.2", config_path="pkg://solo_hardneg.configs", config_name="reproduce")
def job(cfg: DictConfig) -> None:
    """Runs one cell in a process of its own. Whatever happens to it ends in its result."""
    run_cell(Path(cfg.plan), cfg.cell)


def run_cell(plan: Path, name: str) -> None:
    """Starts the process of a cell, waits for it, and says in a line how it ended."""
    cell, folder = read_plan(plan)[0][name], plan.parent.parent
    home = run_folder(folder, cell)
    home.mkdir(parents=True, exist_ok=True)
    log, began = home / "log.txt", time.time()
    print(f"{name} …", flush=True)
    # Both hosts give the same losses; ours knows every dataset and backbone, unless told otherwise.
    environment = {"SOLO_HARDNEG_HOST": "standalone", **os.environ}
    command = [sys.executable, "-m", "solo_hardneg.reproduce.cell", str(plan), name]
    file = result_file(folder, cell)
    before = file.stat().st_mtime_ns if file.is_file() else None
    code = _run(command, log, environment)
    if code == BUSY:
        print(f"{name}: another process is at it; left to that one.", flush=True)
        return
    written = file.is_file() and file.stat().st_mtime_ns != before
    if code and not written:  # it didn't come so far as to say why itself
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        lines = [
            line
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ]
        why = f"its process {how}. The last lines of {log}: " + " | ".join(lines[-_LAST_LINES:])
        write_result(folder, result_of(cell, FAILED, error=why, seconds=time.time() - began))
    try:
        result = read_result(file)
    except DataError as error:
        print(error, flush=True)
        return
    if result.state == FAILED:
        print(f"{name}: failed. {result.error}", flush=True)
    else:
        print(f"{name}: top-1 {result.metrics['top1']:.2f} % ({result.seconds:.0f} s)", flush=True)


def _run(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Runs a process to its end, in a group of its own with all that it starts; their status."""
    with (
        log.open("a", encoding="utf-8") as out,
        subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise


if __name__ == "__main__":
    job()
