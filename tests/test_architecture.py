"""The floors: a room imports only what stands below it, lazily or not, and without circles."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from integration_helpers import PROJECT

pytest.importorskip("importlinter")


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter on the package in a folder, with our contracts."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = ["--config", str(PROJECT / "pyproject.toml"), "--no-cache"]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_floors_only_look_down() -> None:
    run = lint(PROJECT)
    assert run.returncode == 0, run.stdout
    assert "2 kept, 0 broken" in run.stdout


@pytest.mark.parametrize(
    ("room", "upwards"),
    [
        ("negatives/pool.py", "from solo_hardneg import losses"),
        ("data/images.py", "from solo_hardneg.standalone import base"),
        ("recording/records.py", "from solo_hardneg.report import page"),
        ("report/captions.py", "from solo_hardneg.report import page"),  # a circle
    ],
)
def test_a_lazy_import_upwards_breaks_the_contract(room: str, upwards: str, tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "solo_hardneg", tmp_path / "solo_hardneg")
    file = tmp_path / "solo_hardneg" / room
    file.write_text(file.read_text() + f"\n\ndef _later() -> None:\n    {upwards}\n")
    run = lint(tmp_path)
    assert run.returncode == 1, run.stdout
    assert "BROKEN" in run.stdout
