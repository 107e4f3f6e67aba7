"""Peak memory of one call, beyond what was in use before it.

PyTorch counts a GPU's memory. On a CPU it is the peak of the process's resident memory, which Linux
records and can reset; that includes libraries PyTorch does not track. glibc must then return freed
memory at once, which it reads from the environment when a process starts, and which slows calls
down: so memory is measured in a separate process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run_in_fresh_process(*arguments: object) -> Any:
    """Returns the JSON that ``python -m benchmarks ARGUMENTS`` prints last.

    Raises:
        RuntimeError: The command failed.
    """
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    env = {**os.environ, **RETURN_FREED}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def peak_memory(call: Callable[[], object]) -> float:
    """Returns the bytes that ``call()`` needs at its peak; NaN on a CPU without Linux."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not RESET.exists():
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = _resident_bytes("VmRSS")
    call()
    return max(0, _resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])
