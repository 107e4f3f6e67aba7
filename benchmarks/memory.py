"""Peak memory of one call, beyond what there was before it.

On a GPU PyTorch counts it. On a CPU it is the peak of the process' resident memory, which Linux
keeps and can be told to start anew; so the memory of libraries that PyTorch knows nothing of counts
too. For that, freed memory must go back to the system at once, which glibc is told before a process
starts. Times are taken elsewhere, because it makes them longer.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_TOLD = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def elsewhere(arguments: list[str]) -> dict[str, float]:
    """What ``python -m benchmarks ARGUMENTS`` prints last, in a process that returns memory."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    run = subprocess.run(command, env={**os.environ, **_TOLD}, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def peak(work: Callable[[], object]) -> float:
    """Bytes at the peak of ``work()`` beyond those before; NaN where it can't be known."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _CLEAR.exists():
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {name}")
