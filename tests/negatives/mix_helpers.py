"""Pools and configs for the tests of ``mix``."""

from __future__ import annotations

from typing import Any

from loss_helpers import unit

from solo_hardneg.negatives import Pool, full_pool


def pool_of(n: int = 4, m: int = 9, d: int = 5, **more: Any) -> Pool:
    query, vectors = unit(n, d, seed=1), unit(m, d, seed=2)
    return full_pool(query @ vectors.T, query=query, vectors=vectors, **more)


def mixing(**arguments: Any) -> dict[str, Any]:
    return {"mix": arguments}
