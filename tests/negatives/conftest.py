"""What the tests of policies share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from solo_hardneg.negatives import registry


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that forgets what the test enters."""
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()
