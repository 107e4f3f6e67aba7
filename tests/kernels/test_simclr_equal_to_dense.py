"""SimCLR by the chunked backend against the dense, readable one: gradient to both sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_helpers import POLICIES, unit
from test_equal_to_dense import BANDS, Outcome, named
from torch import Tensor

from solo_hardneg.losses import simclr_loss_func
from solo_hardneg.negatives import build
from solo_hardneg.negatives.kept import Kept


def simclr_loss(
    backend: str, config: dict[str, Any], z: Tensor, indexes: Tensor, tau: float = 0.5, **more: Any
) -> Outcome:
    z = z.clone().requires_grad_()
    kept: list[Kept] = []
    torch.manual_seed(0)
    loss = simclr_loss_func(
        z, indexes, tau, policy=build(config), backend=backend, report=kept.append, **more
    )
    return Outcome(loss, [z], kept, 1.0, tau)


SIMCLR = {**BANDS, **{k: v for k, v in POLICIES.items() if k != "kept after the mixing"}}


@named(SIMCLR)
@pytest.mark.parametrize("images", ["pairs", "three views", "one image twice"])
def test_simclr(config: dict[str, Any], images: str) -> None:
    indexes = torch.arange(12).repeat(3 if images == "three views" else 2)
    if images == "one image twice":
        indexes[indexes == 3] = 4
    z = 2 * unit(len(indexes), 6)
    simclr_loss("chunked", config, z, indexes).same_as(simclr_loss("dense", config, z, indexes))


@pytest.mark.parametrize("kind", ["pairs", "queries"])
def test_simclr_through_synthetic_ends(kind: str) -> None:
    config = {"mix": {"hardest": 5, kind: 7, "detach": False}, "debias": {"tau_plus": 0.1}}
    args = config, unit(24, 6), torch.arange(12).repeat(2)
    simclr_loss("chunked", *args).same_as(simclr_loss("dense", *args))


def test_simclr_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.chunked._LEAST_ROWS", 5)
    monkeypatch.setattr("solo_hardneg.kernels.chunked._NUMBERS", {"cpu": 1})
    for config in (BANDS["weighed"], POLICIES["sscl"], {"drop": {"label": "same"}}):
        labels = torch.arange(24) % 3
        args = config, unit(24, 6), torch.arange(12).repeat(2)
        expected = simclr_loss("dense", *args, query_labels=labels)
        simclr_loss("chunked", *args, query_labels=labels).same_as(expected)
