"""Policies compiled for the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from solo_hardneg.kernels.compile import compile_policy
from solo_hardneg.negatives import build, full_pool


@pytest.mark.parametrize(
    ("config", "obstacle"),
    [
        ({"mix": {"hardest": 4, "pairs": 1}, "keep": {"band": [0, 0.5]}}, "negatives.keep stands"),
        ({"keep": {"band": [0, 0.5]}, "mix": {"hardest": 4, "pairs": 1}, "debias": 0.1}, None),
        ({"reweight": 1.0, "drop": {"label": "same"}, "fill": "older"}, None),
    ],
)
def test_obstacle(config: dict[str, Any], obstacle: str | None) -> None:
    found = compile_policy(build(config)).obstacle
    assert (found is None) if obstacle is None else found.startswith(obstacle)


def test_compiled_ranks_equal_those_the_policy_leaves() -> None:
    similarity = torch.linspace(-1, 1, 200)[None, :]
    for config in (
        {"keep": {"band": [0.3, 0.9]}, "drop": {"band": [0.5, 1.0]}},
        {"drop": {"band": [0.3, 0.9]}, "keep": {"band": [0.2, 0.7]}},
        {"drop": {"band": [0.0, 0.4]}, "keep": {"band": [0.25, 1.0]}, "reweight": 1.0},
    ):
        policy = build(config)
        present = policy(full_pool(similarity)).present[0].nonzero()[:, 0].tolist()
        ranks = compile_policy(policy).ranks(200)
        assert [rank for first, past in ranks for rank in range(first, past)] == present
