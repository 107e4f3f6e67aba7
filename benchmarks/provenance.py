"""Where a row comes from: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    *("torch", "numpy", "numba", "triton", "lightly", "pytorch-metric-learning"),
    "solo-hardneg",
)
COMMIT = "SOLO_HARDNEG_COMMIT"  # the commit's name where git can't tell
HERE = Path(__file__).parent


def provenance() -> dict[str, str | int]:
    """The columns that every row has."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu(),
        "cuda": (torch.version.cuda or "") if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit; ``+`` behind it where something beside figures has changed since."""
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(HERE)]
    found = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changes = [*git, "status", "--porcelain", "--untracked-files=no", "--", ":!*.csv", ":/"]
    changed = subprocess.run(changes, capture_output=True, text=True).stdout.strip()
    return found + ("+" if changed else "")
