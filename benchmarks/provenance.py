"""The benchmarks' CSVs, and the columns for a row's provenance."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch

PACKAGES = (
    *("torch", "numpy", "numba", "triton", "lightly", "pytorch-metric-learning"),
    "solo-hardneg",
)
COMMIT = "SOLO_HARDNEG_COMMIT"  # names the commit, without git
HERE = Path(__file__).parent


def provenance() -> dict[str, str | int]:
    """The columns of every row: device, threads, versions, commit and date."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cuda": (torch.version.cuda or "") if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def package_version(package: str) -> str:
    """The installed version, or an empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def update_csv(file: Path, new: pd.DataFrame, keys: list[str]) -> None:
    """Adds rows to a CSV, replacing those with the same values in the columns ``keys``."""
    if file.exists():
        old = pd.read_csv(file)
        old_keys, new_keys = (pd.MultiIndex.from_frame(t[keys].astype(str)) for t in (old, new))
        new = pd.concat([old[~old_keys.isin(new_keys)], new])
    new.sort_values(keys, kind="stable").to_csv(file, index=False)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    """The commit, with a ``+`` if anything but CSVs has changed since."""
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    if shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!*.csv", ":/")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
