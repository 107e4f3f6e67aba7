"""Trains and evaluates a cell: ``python -m solo_hardneg.reproduce.worker PLAN CELL``.

A process per cell, so that a crash ends one cell only. A killed pretraining
resumes from its last checkpoint.
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

from solo_hardneg.environment import print_any_text
from solo_hardneg.errors import DataError, HardnegError
from solo_hardneg.files import read_json
from solo_hardneg.reproduce.grid import Cell
from solo_hardneg.reproduce.overrides import quote
from solo_hardneg.reproduce.store import (
    DONE,
    FAILED,
    Result,
    cell_folder,
    is_done,
    read_plan,
    result_file,
    write_json,
    write_result,
)
from solo_hardneg.reproduce.train import is_finished, train

BUSY = 75  # exit status if another process runs the cell (EX_TEMPFAIL)


def run_cell(plan: Path, name: str) -> None:
    """Runs a cell of a plan and writes its result, unless it is done.

    Raises:
        DataError: The plan can't be read, or lacks the cell.
        Timeout: Another process runs the cell.
    """
    cells, settings = read_plan(plan)
    if name not in cells:
        raise DataError(f"{plan}: there is no cell {name} in it.")
    cell, folder = cells[name], plan.parent.parent
    scripts = Path(settings["scripts"]) if settings.get("scripts") else None
    home = cell_folder(folder, cell)
    home.mkdir(parents=True, exist_ok=True)
    if not _is_rank_zero():  # started by Lightning; rank 0 holds the lock and writes
        _train_and_evaluate(cell, home, scripts)
        return
    began = time.time()
    with FileLock(home / "lock", timeout=0):
        if is_done(result_file(folder, cell)):
            return
        try:
            metrics = _train_and_evaluate(cell, home, scripts)
        except HardnegError as error:  # other exceptions leave a traceback in the log
            text = f"{type(error).__name__}: {error}"
            write_result(folder, Result(cell, FAILED, error=text))
            sys.exit(text)
        ran_on = describe_machine("solo-learn's programs" if scripts else None)
        write_result(folder, Result(cell, DONE, metrics, time.time() - began, ran_on=ran_on))


def _train_and_evaluate(cell: Cell, home: Path, scripts: Path | None) -> dict[str, float]:
    """Pretrains, unless that is done, and evaluates; returns the accuracies."""
    place = (
        *(f"checkpoint.dir={quote(home.resolve())}", "checkpoint.enabled=True"),
        *("wandb.enabled=False", f"name={cell.name}"),
    )
    pretrained = _pretrain(cell, home, place, scripts)
    checkpoint = quote((home / pretrained["checkpoint"]).resolve())
    overrides = (*cell.linear, *place, f"pretrained_feature_extractor={checkpoint}")
    evaluated = train("linear", "linear", overrides, scripts).metrics
    if "val_acc1" not in evaluated:
        raise DataError(f"{cell.name}: the linear evaluation logged no accuracy.")
    metrics = {
        "top1": evaluated["val_acc1"],
        "top5": evaluated.get("val_acc5"),
        "online": pretrained["metrics"].get("val_acc1"),
    }
    return {key: value for key, value in metrics.items() if value is not None}


def _pretrain(
    cell: Cell, home: Path, place: tuple[str, ...], scripts: Path | None
) -> dict[str, Any]:
    """Pretrains, unless ``pretrained.json`` marks it as done; returns what that file holds."""
    marker = home / "pretrained.json"
    if not marker.is_file():
        resume = ("auto_resume.enabled=True", "++auto_resume.max_hours=1e6")
        overrides = (*cell.pretrain, *place, *resume)
        files = [file for file in home.glob("*/*/*.ckpt") if file.parts[-3] != "linear"]
        newest, metrics = max(files, key=lambda f: f.stat().st_mtime, default=None), {}
        # The process may have been killed between the last checkpoint and the marker.
        if newest is None or not is_finished(newest, cell.config, overrides):
            trained = train("pretrain", cell.config, overrides, scripts)
            newest, metrics = trained.checkpoint or home, trained.metrics
        if _is_rank_zero():
            if not is_finished(newest, cell.config, overrides):
                raise DataError(f"{cell.name}: pretraining was stopped. Start again to resume it.")
            path = newest.resolve().relative_to(home.resolve())  # the folder may be moved
            write_json(marker, {"checkpoint": str(path), "metrics": metrics})
    _wait_for_file(marker)
    try:
        content: dict[str, Any] = read_json(marker)
    except ValueError as error:
        text = f"{marker}: it is damaged ({error}). Remove it to look for the checkpoint again."
        raise DataError(text) from error
    return content


def _wait_for_file(file: Path, seconds: float = 60) -> None:
    """Waits until rank 0 has written a file."""
    end = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() > end:
            raise DataError(f"{file}: rank 0 has not written it.")
        time.sleep(0.1)


def _is_rank_zero() -> bool:
    """Whether this is rank 0 of all nodes, by the environment that the launcher has set."""
    rank = getattr(rank_zero_only, "rank", None)
    return not rank and os.environ.get("NODE_RANK", "0") == "0"


def describe_machine(host: str | None = None) -> dict[str, str]:
    """Returns device, host and versions."""
    import torch

    from solo_hardneg.host import NAME

    cpu = f"CPU, {torch.get_num_threads()} threads"
    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
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
    """Ends this process group once the parent has died, so that no killed launch trains on."""
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
        run_cell(Path(sys.argv[1]), sys.argv[2])
    except Timeout:
        sys.exit(BUSY)
