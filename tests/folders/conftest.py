"""The same small dataset in both layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
from folder_helpers import tiny


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tiny(tmp_path / "data")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return tiny(tmp_path / "flat", inner="")
