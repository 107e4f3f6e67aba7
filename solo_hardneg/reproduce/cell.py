"""The process that makes one cell's number: ``python -m solo_hardneg.reproduce.cell FOLDER CELL``.

A process of its own, so that whatever happens in it (a crash, no memory) ends this cell and no
other. It goes on where an earlier one was killed: pretraining from its last checkpoint.
"""

from __future__ import annotations

import math
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

from solo_hardneg.errors import ConfigError, DataError, HardnegError
from solo_hardneg.reproduce.cells import Cell, composed
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
_PRETRAINED = "pretrained.json"


def run(folder: Path, name: str) -> None:
    """Runs a cell of the folder's plan and writes its result.

    Raises:
        DataError: there is no plan, or no such cell in it.
        Timeout: another process is at it.
    """
    cells, _ = read_plan(folder)
    if name not in cells:
        raise DataError(f"{folder / 'plan.json'}: there is no cell {name} in it.")
    cell = cells[name]
    home = run_folder(folder, cell)
    home.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with FileLock(home / "lock", timeout=0):
        try:
            metrics = _accuracies(cell, home)
        except HardnegError as error:  # anything else leaves its traceback in the log
            failed = result_of(cell, FAILED, error=f"{type(error).__name__}: {error}")
            write_result(folder, failed)
            sys.exit(failed.error)
        more = {"metrics": metrics, "seconds": time.time() - began, "ran_on": provenance()}
        write_result(folder, result_of(cell, DONE, **more))


def _accuracies(cell: Cell, home: Path) -> dict[str, float]:
    """Pretrains, unless that is done, and evaluates."""
    from solo_hardneg.standalone import run
    from solo_hardneg.standalone.checkpoints import newest_checkpoint, read_checkpoint

    place = (f"checkpoint.dir={_quoted(home)}", "checkpoint.enabled=True", "wandb.enabled=False")
    resuming = ("auto_resume.enabled=True", "++auto_resume.max_hours=1e9", f"name={cell.name}")
    cfg = composed(cell.config, (*cell.pretrain, *place, *resuming))
    marker = home / _PRETRAINED
    runs = home / str(cfg.method)
    if not marker.is_file():
        finished = None
        for one in runs.glob("*"):  # killed after its last checkpoint, and before it was marked
            if (file := newest_checkpoint(one)) is not None:
                _, checkpoint = read_checkpoint("checkpoint", file)
                finished = file if checkpoint["epoch"] + 1 >= cfg.max_epochs else finished
        if finished is None:
            result = run.pretrain(cfg)
            write_json(marker, {"folder": str(result.folder), "metrics": result.metrics})
        else:
            write_json(marker, {"folder": str(finished.parent), "metrics": {}})
    pretrained = _read_marker(marker)
    source = f"pretrained_feature_extractor={_quoted(Path(pretrained['folder']))}"
    method = f"pretrain_method={cfg.method}"
    evaluation = composed("linear", (*cell.linear, *place, source, method, f"name={cell.name}"))
    evaluation.checkpoint.enabled = False  # the classifier is of no use afterwards
    evaluated = run.linear(evaluation).metrics
    metrics = {"top1": evaluated.get("val_acc1"), "top5": evaluated.get("val_acc5")}
    metrics["online"] = pretrained["metrics"].get("val_acc1")
    if metrics["top1"] is None or not math.isfinite(metrics["top1"]):
        raise ConfigError(f"{cell.name}: the linear evaluation left no accuracy behind.")
    return {key: float(value) for key, value in metrics.items() if value is not None}


def _read_marker(marker: Path) -> dict[str, Any]:
    import json

    content: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
    return content


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's command line, whatever is in it."""
    text = str(path.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def provenance() -> dict[str, str]:
    """What a cell ran on: processor or GPU, threads, versions."""
    import torch

    from solo_hardneg.host import NAME

    cuda = torch.cuda.is_available()
    found = {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "host": NAME,
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
