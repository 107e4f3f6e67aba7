"""Launches cells by Hydra's multirun (``configs/reproduce.yaml``), so that any launcher works."""

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

from solo_hardneg.environment import nested_hydra
from solo_hardneg.errors import DataError
from solo_hardneg.reproduce.overrides import quote
from solo_hardneg.reproduce.store import (
    FAILED,
    Result,
    cell_folder,
    read_plan,
    read_result,
    result_file,
    write_result,
)
from solo_hardneg.reproduce.worker import BUSY

_LAST_LINES = 5


def launch_cells(plan: Path, cells: Sequence[str], overrides: Sequence[str]) -> None:
    """Launches cells by Hydra's multirun.

    Args:
        plan: File of the plan.
        cells: Names of cells in it.
        overrides: Overrides of the multirun, such as ``hydra/launcher=joblib``.
    """
    argv = sys.argv
    sys.argv = [
        "solo-hardneg-reproduce",
        "--multirun",
        f"plan={quote(plan.resolve())}",
        f"folder={quote(plan.resolve().parent.parent)}",
        f"cell={','.join(cells)}",
        *overrides,
    ]
    try:
        with nested_hydra():
            job()
    finally:
        sys.argv = argv


@hydra.main(version_base="1.2", config_path="pkg://solo_hardneg.configs", config_name="reproduce")
def job(cfg: DictConfig) -> None:
    """Runs one job of the multirun."""
    launch_cell(Path(cfg.plan), cfg.cell)


def launch_cell(plan: Path, name: str) -> None:
    """Runs a cell's worker and prints how it ended; a worker that dies is a failed cell."""
    cell, folder = read_plan(plan)[0][name], plan.parent.parent
    home, file = cell_folder(folder, cell), result_file(folder, cell)
    home.mkdir(parents=True, exist_ok=True)
    log, began = home / "log.txt", time.time()
    print(f"{name} …", flush=True)
    # The standalone host has all datasets and backbones, and computes the same losses.
    environment = {"SOLO_HARDNEG_HOST": "standalone", **os.environ}
    command = [sys.executable, "-m", "solo_hardneg.reproduce.worker", str(plan), name]
    before = file.stat().st_mtime_ns if file.is_file() else None
    code = _wait_for_process(command, log, environment)
    if code == BUSY:
        print(f"{name}: another process runs this cell; skipped.", flush=True)
        return
    written = file.is_file() and file.stat().st_mtime_ns != before
    if code and not written:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = " | ".join([line for line in lines if line.strip()][-_LAST_LINES:])
        error = f"its process {how}. The last lines of {log}: {last}"
        write_result(folder, Result(cell, FAILED, seconds=time.time() - began, error=error))
    try:
        result = read_result(file)
    except DataError as error:
        print(error, flush=True)
        return
    if result.state == FAILED:
        print(f"{name}: failed. {result.error}", flush=True)
    else:
        print(f"{name}: top-1 {result.metrics['top1']:.2f} % ({result.seconds:.0f} s)", flush=True)


def _wait_for_process(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Runs a command in its own process group, which ends with it; returns its exit status."""
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
