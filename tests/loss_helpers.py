"""What the tests of the losses share: vectors, and the losses by plain loops."""

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
EACH = pytest.mark.parametrize("config", POLICIES.values(), ids=POLICIES.keys())


def unit(*shape: int, dim: int = -1, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=dim).to(
        dtype
    )


def moco(
    n: int = 5, m: int = 37, d: int = 7, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        unit(n, d, seed=3 * seed + 1, dtype=dtype),
        unit(n, d, seed=3 * seed + 2, dtype=dtype),
        unit(d, m, dim=0, seed=3 * seed + 3, dtype=dtype),
    )


@contextmanager
def recorded_draws() -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Keeps what ``mix`` draws inside the block."""
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
    """The mean loss, and which rows are at the floor."""
    losses, floored = [], []
    for i, (q, k) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
        candidates = queue.T.tolist()
        left = oracles.leave(config, q, candidates, range(len(candidates)), draws_of(seen, i))
        row = ([oracles.dot(q, k)], left.negatives, temperature, left.beta, left.tau_plus)
        losses.append(oracles.loss(*row))
        floored.append(oracles.at_the_floor(*row))
    return sum(losses) / len(losses), floored


def simclr_by_loops(
    config: dict[str, Any],
    z: Tensor,
    indexes: list[int],
    temperature: float,
    seen: dict[str, tuple[Tensor, ...]],
) -> tuple[float, list[bool]]:
    """The mean loss, and which rows are at the floor."""
    rows = F.normalize(z, dim=1).tolist()
    losses, floored = [], []
    for i, q in enumerate(rows):
        positives = [
            oracles.dot(q, rows[j]) for j in range(len(rows)) if j != i and indexes[j] == indexes[i]
        ]
        others = [j for j in range(len(rows)) if indexes[j] != indexes[i]]
        left = oracles.leave(config, q, rows, others, draws_of(seen, i))
        row = (positives, left.negatives, temperature, left.beta, left.tau_plus)
        losses.append(oracles.loss(*row))
        floored.append(oracles.at_the_floor(*row))
    return sum(losses) / len(losses), floored


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Autocast on the CPU; to bfloat16 where torch (2.1) knows nothing else there."""
    try:
        with torch.autocast("cpu", dtype=dtype):
            pass
    except RuntimeError:
        dtype = torch.bfloat16
    return torch.autocast("cpu", dtype=dtype)
