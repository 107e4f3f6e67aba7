"""Fixtures for tests of policies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from solo_hardneg.negatives import registry


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the registry after the test."""
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()
