"""Folders of small images, one folder per class."""

from __future__ import annotations

from pathlib import Path

import pytest
from resident_helpers import pictures, to_pil

CLASSES, PER_CLASS = 6, 4  # solo-learn's top-5 accuracy needs five classes


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 32 x 32 pixels."""
    root = tmp_path_factory.mktemp("resident") / "images"
    for number, image in enumerate(pictures(CLASSES * PER_CLASS)):
        place = root / f"class_{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(place / f"{number:02}.png")
    return root
