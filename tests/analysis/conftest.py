"""WordNet where this machine has it, and a cache of depths that is the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solo_hardneg.analysis import wordnet as ours
from solo_hardneg.errors import DataError

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "nltk_data"


@pytest.fixture(scope="session")
def wordnet() -> Iterator[Any]:
    """nltk's reader of WordNet: from $NLTK_DATA, nltk's own places, or beside the project."""
    import nltk

    with pytest.MonkeyPatch.context() as patch:
        if BESIDE.is_dir():
            patch.setattr(nltk.data, "path", [*nltk.data.path, str(BESIDE)])
        try:
            reader = ours._reader()
        except DataError as error:
            pytest.skip(str(error))
        yield reader


@pytest.fixture
def depth_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the user's cache; nothing is known from earlier tests."""
    folder = tmp_path / "cache" / "solo-hardneg"
    monkeypatch.setattr(ours, "cache_folder", lambda: folder)
    monkeypatch.setattr(ours, "_known", {})
    return folder
