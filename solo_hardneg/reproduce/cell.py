"""The process that makes one cell's number: ``python -m solo_hardneg.reproduce.cell PLAN CELL``.

A process of its own, so that whatever happens in it (a crash, no memory) ends this cell and no
other. It goes on where an earlier one was killed: pretraining from its last checkpoint.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from solo_hardneg.analysis.untrusted import read_json
from solo_hardneg.environment import print_any_text
from solo_hardneg.errors import DataError, HardnegError
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.overrides import quoted
from solo_hardneg.reproduce.programs import is_finished, train
from solo_hardneg.reproduce.results import (
    DONE,
    FAILED,
    is_done,
    read_plan,
    result_file,
    result_of,
    run_folder,
    write_json,
    write_result,
)

BUSY = 75  # the exit status where another process is at this cell (EX_TEMPFAIL)


def run(plan: Path, name: str) -> None:
    """Runs a cell of a plan and writes its result, unless it has one.

    Raises:
        DataError: there is no plan, or no such cell in it.
        Timeout: another process is at it.
    """
    cells, settings = read_plan(plan)
    if name not in cells:
        raise DataError(f"{plan}: there is no cell {name} in it.")
    cell, folder = cells[name], plan.parent.parent
    home = run_folder(folder, cell)
    home.mkdir(parents=True, exist_ok=True)
    began = time.time()
    scripts = settings.get("scripts")
    if not _is_first():  # started by Lightning for another device; the first one has the lock
        _accuracies(cell, home, Path(scripts) if scripts else None)
        return
    with FileLock(home / "lock", timeout=0):
        if is_done(result_file(folder, cell)):  # another sweep was faster
            return
        try:
            metrics = _accuracies(cell, home, Path(scripts) if scripts else None)
        except HardnegError as error:  # anything else leaves its traceback in the log
            failed = result_of(cell, FAILED, error=f"{type(error).__name__}: {error}")
            write_result(folder, failed)
            sys.exit(failed.error)
        ran_on = provenance("solo-learn's programs" if scripts else None)
        more = {"metrics": metrics, "seconds": time.time() - began, "ran_on": ran_on}
        write_result(folder, result_of(cell, DONE, **more))


def _accuracies(cell: Cell, home: Path, scripts: Path | None) -> dict[str, float]:
    """Pretrains, unless that is done, and evaluates."""
    place = (
        *(f"checkpoint.dir={quoted(home.resolve())}", "checkpoint.enabled=True"),
        *("wandb.enabled=False", f"name={cell.name}"),
    )
    pretrained = _pretrain(cell, home, place, scripts)
    checkpoint = quoted((home / pretrained["checkpoint"]).resolve())
    evaluated = train(
        "linear",
        "linear",
        (*cell.linear, *place, f"pretrained_feature_extractor={checkpoint}"),
        scripts,
    )
    metrics = {"top1": evaluated.metrics.get("val_acc1"), "top5": evaluated.metrics.get("val_acc5")}
    metrics["online"] = pretrained["metrics"].get("val_acc1")
    if metrics["top1"] is None:
        raise DataError(f"{cell.name}: the linear evaluation left no accuracy behind.")
    return {key: value for key, value in metrics.items() if value is not None}


def _pretrain(
    cell: Cell, home: Path, place: tuple[str, ...], scripts: Path | None
) -> dict[str, Any]:
    """What is known of the finished pretraining; a marker in the cell's folder keeps it."""
    marker = home / "pretrained.json"
    if not marker.is_file():
        resuming = ("auto_resume.enabled=True", "++auto_resume.max_hours=1e6")
        overrides = (*cell.pretrain, *place, *resuming)
        files = [file for file in home.glob("*/*/*.ckpt") if file.parts[-3] != "linear"]
        newest, metrics = max(files, key=lambda f: f.stat().st_mtime, default=None), {}
        # It may have been killed after its last checkpoint, and before it was marked.
        if newest is None or not is_finished(newest, cell.config, overrides):
            trained = train("pretrain", cell.config, overrides, scripts)
            newest, metrics = trained.checkpoint or home, trained.metrics
        if _is_first():
            if not is_finished(newest, cell.config, overrides):
                do = "Start again to go on with it."
                raise DataError(f"{cell.name}: pretraining was stopped. {do}")
            path = newest.resolve().relative_to(home.resolve())  # the folder may be moved
            write_json(marker, {"checkpoint": str(path), "metrics": metrics})
    try:
        known: dict[str, Any] = read_json(_when_there(marker))
    except ValueError as error:
        text = f"{marker}: what pretraining wrote down is damaged ({error})"
        raise DataError(f"{text}. Remove the file to find the run again.") from error
    return known


def _when_there(file: Path, seconds: float = 60) -> Path:
    """The file, once the first process of the run has written it."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() > end:
            raise DataError(f"{file}: the first process of the run has not written it.")
        time.sleep(0.1)
    return file


def _is_first() -> bool:
    """Whether this is the run's first process, which has the lock and writes; of all machines."""
    rank = getattr(rank_zero_only, "rank", None)  # from the environment of whatever started it
    return not rank and os.environ.get("NODE_RANK", "0") == "0"


def provenance(host: str | None = None) -> dict[str, str]:
    """What a cell ran on: processor or GPU, threads, host, versions."""
    import torch

    from solo_hardneg.host import NAME

    cuda = torch.cuda.is_available()
    found = {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "host": host or NAME,
    }
    for package in ("solo-hardneg", "torch", "lightning", "torchvision", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _end_with_parent() -> None:
    """Ends this process, and what it has started, soon after the one that started it.

    So no killed sweep trains on.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    print_any_text()
    try:
        run(Path(sys.argv[1]), sys.argv[2])
    except Timeout:
        sys.exit(BUSY)
