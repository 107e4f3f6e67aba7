"""Marked images, and DALI where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from marked_images import write_marked


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 45 images of 5 classes, of one colour each."""
    return write_marked(tmp_path_factory.mktemp("marked"))
