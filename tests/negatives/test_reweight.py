"""``reweight`` and ``debias`` set β and τ⁺; tests/test_formula.py tests the losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import build, full_pool


def test_they_set_beta_and_tau_plus_only() -> None:
    pool = full_pool(torch.tensor([[0.1, 0.5, -0.3]]))
    policy = build({"reweight": 2, "debias": 0.1})  # a single value is the first argument
    assert policy.config == {"reweight": {"beta": 2.0}, "debias": {"tau_plus": 0.1}}
    assert policy.needs == frozenset()
    left = policy(pool)
    assert left == replace(pool, beta=2.0, tau_plus=0.1)
    above = replace(pool, beta=0.5, tau_plus=0.3)
    assert build({"reweight": 1.0})(above) == replace(above, beta=1.5)
    assert build({"debias": 0.1})(above) == replace(above, tau_plus=0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reweight": -0.1}, "reweight.beta=-0.1: must be a number from 0 up. .*0 weighs all"),
        ({"reweight": [1.0]}, r"reweight.beta=\[1.0\]: must be a number from 0 up"),
        ({"reweight": {}}, "reweight: missing a required argument: 'beta'"),
        ({"debias": 1.0}, r"debias.tau_plus=1.0: must lie in \[0, 1\)\. It is the probability"),
        ({"debias": -0.1}, r"debias.tau_plus=-0.1: must lie in \[0, 1\)"),
        ({"debias": {"tau_plus": None}}, "debias: missing a required argument: 'tau_plus'"),
    ],
)
def test_invalid_arguments_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^negatives.{message}"):
        build(config)
