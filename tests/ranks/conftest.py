"""One pool of ranks for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gloo_pool import GlooPool


@pytest.fixture(scope="session", params=[2, pytest.param(4, marks=pytest.mark.full)])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GlooPool]:
    """Two ranks; with ``--all`` four, too. They take 5 s to start, of which most are imports."""
    made = GlooPool(request.param, tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()
