"""Pools of gloo ranks, started once per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gloo_pool import GlooPool


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, GlooPool]]:
    """The pools started so far, by number of ranks."""
    pools: dict[int, GlooPool] = {}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.full)])
def pool(
    request: pytest.FixtureRequest,
    pools: dict[int, GlooPool],
    tmp_path_factory: pytest.TempPathFactory,
) -> GlooPool:
    """Two ranks, with ``--all`` also four. Starting takes 5 s, mostly imports."""
    if request.param not in pools:
        pools[request.param] = GlooPool(request.param, tmp_path_factory.mktemp("ranks"))
    return pools[request.param]
