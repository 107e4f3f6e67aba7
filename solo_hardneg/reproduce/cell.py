"""The process that makes one cell's number: ``python -m solo_hardneg.reproduce.cell FOLDER CELL``.

A process of its own, so that whatever happens in it (a crash, no memory) ends this cell and no
other. It goes on where an earlier one was killed: pretraining from its last checkpoint.
"""

from __future__ import annotations

import json
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

from solo_hardneg.errors import DataError, HardnegError
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.reproduce.programs import is_finished, quoted, train
from solo_hardneg.reproduce.results import (
    DONE,
    FAILED,
    read_plan,
    result_of,
    run_folder,
    write_json,
    write_result,
)

BUSY = 75  # the exit status where another process is at this cell (EX_TEMPFAIL)


def run(folder: Path, name: str) -> None:
    """Runs a cell of the folder's plan and writes its result.

    Raises:
        DataError: there is no plan, or no such cell in it.
        Timeout: another process is at it.
    """
    cells, settings = read_plan(folder)
    if name not in cells:
        raise DataError(f"{folder / 'plan.json'}: there is no cell {name} in it.")
    cell = cells[name]
    home = run_folder(folder, cell)
    home.mkdir(parents=True, exist_ok=True)
    began = time.time()
    scripts = settings.get("scripts")
    if not _is_first():  # started by Lightning for another device; the first one has the lock
        _accuracies(cell, home, Path(scripts) if scripts else None)
        return
    with FileLock(home / "lock", timeout=0):
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
    place = (f"checkpoint.dir={quoted(home)}", "wandb.enabled=False", f"name={cell.name}")
    pretrained = _pretrain(cell, home, place, scripts)
    checkpoint = quoted(Path(pretrained["checkpoint"]))
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
    if marker.is_file():
        known: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        return known
    resuming = ("auto_resume.enabled=True", "++auto_resume.max_hours=1e6")
    overrides = (*cell.pretrain, *place, *resuming)
    files = [file for file in home.glob("*/*/*.ckpt") if file.parts[-3] != "linear"]
    written = sorted(files, key=lambda file: file.stat().st_mtime)
    if written and is_finished(written[-1], cell.config, overrides):
        # killed after the last checkpoint, and before it was marked
        known = {"checkpoint": str(written[-1]), "metrics": {}}
    else:
        trained = train("pretrain", cell.config, overrides, scripts)
        known = {"checkpoint": str(trained.checkpoint), "metrics": trained.metrics}
    if _is_first():
        write_json(marker, known)
    return known


def _is_first() -> bool:
    """Whether this is the first process of the run on this machine, or its only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


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
    """Ends this process soon after the one that started it, so that no killed sweep trains on."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    try:
        run(Path(sys.argv[1]), sys.argv[2])
    except Timeout:
        sys.exit(BUSY)
