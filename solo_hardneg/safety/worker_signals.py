"""Keeps signals away from the data loader's worker processes during training.

Clusters and terminals send a signal to all processes of a job. If it ended a worker, the worker
would take the run with it before the run has saved.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

_trainings = 0  # trainings of this process whose workers are shielded
_blocked: Collection[signal.Signals] = ()


def shield_workers(signals: Collection[signal.Signals]) -> None:
    """Blocks signals in loader workers forked from now on, until :func:`unshield_workers`.

    Workers still end when the run closes its loader, or is gone.
    """
    global _trainings, _blocked
    if not _blocked:
        os.register_at_fork(after_in_child=_block_in_worker)
        atexit.register(_kill_shielded)  # runs before what multiprocessing has registered
    _trainings, _blocked = _trainings + 1, signals


def unshield_workers() -> None:
    """Undoes one call of :func:`shield_workers`."""
    global _trainings
    _trainings -= 1


def _block_in_worker() -> None:
    if _trainings > 0 and _forked_by_loader():
        signal.pthread_sigmask(signal.SIG_BLOCK, _blocked)


def _forked_by_loader() -> bool:
    """Whether a data loader has just forked this process.

    Other children, such as a ``multiprocessing.Pool``, are ended by SIGTERM and must receive it.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.data.dataloader":
            return True
        frame = frame.f_back
    return False


def _kill_shielded() -> None:
    """Kills workers that block SIGTERM: at exit, Python sends it to them and waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report a crash
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            blocked = next(line for line in lines if line.startswith("SigBlk:")).split()[1]
            if int(blocked, 16) >> (signal.SIGTERM - 1) & 1:
                child.kill()
