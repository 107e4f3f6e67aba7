"""Helpers for tests of the losses: random vectors, policies, and the losses as plain loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_hardneg.negatives import mix

DOUBLE = torch.float64
KEEP = {"keep": {"band": [0.25, 1.0]}}
DROP = {"drop": {"band": [0.9, 1.0]}}
PAIRS = {"mix": {"hardest": 4, "pairs": 3}}
QUERIES = {"mix": {"hardest": 3, "queries": 2}}
BOTH = {"mix": {"hardest": 3, "pairs": 2, "queries": 4}}
REWEIGHT = {"reweight": {"beta": 0.7}}
DEBIAS = {"debias": {"tau_plus": 0.1}}
HCL = REWEIGHT | DEBIAS
SIX_KINDS = {
    **{"hardest": 5, "pairs": 2, "queries": 3, "beyond": 2, "toward": {"count": 2, "step": 0.3}},
    **{"noise": {"count": 3, "sigma": 0.2}, "adversarial": {"count": 1, "step": 0.1}},
}
POLICIES: dict[str, dict[str, Any]] = {
    "all": {},
    "keep": KEEP,
    "drop": DROP,
    "mix pairs": PAIRS,
    "mix queries": QUERIES,
    "mix both": BOTH,
    "reweight": REWEIGHT,
    "dcl": DEBIAS,
    "hcl": HCL,
    "hcl the other way round": DEBIAS | REWEIGHT,
    "mochi": KEEP | BOTH,
    "sscl": PAIRS | REWEIGHT | DEBIAS,
    "sscl, mixed last": REWEIGHT | DEBIAS | PAIRS,
    "everything": DROP | KEEP | BOTH | REWEIGHT | DEBIAS,
    "kept after the mixing": BOTH | KEEP | REWEIGHT | DEBIAS,
}
# Policies that numba and triton don't follow.
BY_SIMILARITY: dict[str, dict[str, Any]] = {
    "without the similar": {"drop": {"similarity": [0.4, 1.0]}},
    "near the positive": {"keep": {"margin": [-0.9, 0.1]}} | REWEIGHT,
    "a band's similar": {
        "drop": {"band": [0.5, 1.0], "similarity": [-0.1, 0.3], "margin": [-0.5, 2.0]},
        "keep": {"similarity": [-1.0, 0.7]},
        **DEBIAS,
    },
}
EACH_POLICY = pytest.mark.parametrize(
    "config", [*POLICIES.values(), *BY_SIMILARITY.values()], ids=[*POLICIES, *BY_SIMILARITY]
)


def unit(*shape: int, dim: int = -1, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random vectors, normalized along ``dim``."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=dim).to(
        dtype
    )


def moco(
    n: int = 5, m: int = 37, d: int = 7, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query (n, d), key (n, d) and queue (d, m)."""
    return (
        unit(n, d, seed=3 * seed + 1, dtype=dtype),
        unit(n, d, seed=3 * seed + 2, dtype=dtype),
        unit(d, m, dim=0, seed=3 * seed + 3, dtype=dtype),
    )


@contextmanager
def recorded_draws() -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Records the draws of ``mix`` in the block, by function."""
    seen: dict[str, tuple[Tensor, ...]] = {}

    def recording(name: str, draw: Callable[..., Any]) -> Callable[..., Any]:
        def drawn(*args: Any) -> Any:
            seen[name] = draw(*args)
            return seen[name]

        return drawn

    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_pairs", "draw_partners"):
            patch.setattr(mix, name, recording(name, getattr(mix, name)))
        yield seen


def draws_of(seen: dict[str, tuple[Tensor, ...]], row: int) -> oracles.Draws:
    """The recorded draws of one query."""

    def listed(name: str) -> list[Any]:
        return list(zip(*(t[row].tolist() for t in seen.get(name, ())), strict=True))

    return oracles.Draws(listed("draw_pairs"), listed("draw_partners"))


def moco_by_loops(
    config: dict[str, Any],
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float,
    seen: dict[str, tuple[Tensor, ...]],
) -> tuple[float, list[bool]]:
    """The mean loss, and which rows are floored."""
    losses, floored = [], []
    for i, (q, k) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
        candidates, positive = queue.T.tolist(), oracles.dot(q, k)
        left = oracles.leave(
            config, q, candidates, range(len(candidates)), draws_of(seen, i), positive=positive
        )
        row = ([positive], left.negatives, temperature, left.beta, left.tau_plus)
        losses.append(oracles.loss(*row))
        floored.append(oracles.is_floored(*row))
    return sum(losses) / len(losses), floored


def simclr_by_loops(
    config: dict[str, Any],
    z: Tensor,
    indexes: list[int],
    temperature: float,
    seen: dict[str, tuple[Tensor, ...]],
) -> tuple[float, list[bool]]:
    """The mean loss, and which rows are floored."""
    rows = F.normalize(z, dim=1).tolist()
    losses, floored = [], []
    for i, q in enumerate(rows):
        positives = [
            oracles.dot(q, rows[j]) for j in range(len(rows)) if j != i and indexes[j] == indexes[i]
        ]
        others = [j for j in range(len(rows)) if indexes[j] != indexes[i]]
        mean = sum(positives) / len(positives)
        left = oracles.leave(config, q, rows, others, draws_of(seen, i), positive=mean)
        row = (positives, left.negatives, temperature, left.beta, left.tau_plus)
        losses.append(oracles.loss(*row))
        floored.append(oracles.is_floored(*row))
    return sum(losses) / len(losses), floored


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Autocast on the CPU; to bfloat16 if torch (2.1) supports nothing else there."""
    try:
        with torch.autocast("cpu", dtype=dtype):
            pass
    except RuntimeError:
        dtype = torch.bfloat16
    return torch.autocast("cpu", dtype=dtype)
