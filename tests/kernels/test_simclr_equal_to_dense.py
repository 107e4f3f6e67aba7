"""SimCLR by the backends that know it against the dense, readable one: gradient to both sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_helpers import BACKENDS, BANDS, Outcome, named
from loss_helpers import POLICIES, unit
from torch import Tensor

from solo_hardneg.errors import ConfigError
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
def test_simclr(config: dict[str, Any]) -> None:
    pairs, three_views = torch.arange(12).repeat(2), torch.arange(12).repeat(3)
    one_twice = pairs.where(pairs != 3, 4)
    for indexes in (pairs, three_views, one_twice):
        z = 2 * unit(len(indexes), 6)
        simclr_loss("chunked", config, z, indexes).same_as(simclr_loss("dense", config, z, indexes))


NARROW: dict[str, dict[str, Any]] = {
    **{name: BANDS[name] for name in ("hardest", "middle", "weighed", "debiased")},
    "mixed": {"keep": {"band": [0.9, 1.0]}, "mix": {"hardest": 2, "pairs": 5, "queries": 4}},
    "everything": {
        **{"keep": {"band": [0.5, 1.0]}, "drop": {"band": [0.9, 1.0]}, "debias": 0.05},
        **{"mix": {"hardest": 2, "pairs": 5, "detach": False}, "reweight": {"beta": 0.3}},
    },
}


@pytest.mark.skipif("numba" not in BACKENDS, reason="needs numba")
@named(NARROW)
def test_narrow_bands_by_lists(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.numba_cpu._TILE", 50)
    monkeypatch.setattr("solo_hardneg.kernels.numba_cpu._LEAST_ROWS", 20)
    for kind in ("three views", "in any order", "some are equal"):
        indexes = torch.arange(40).repeat(3 if kind == "three views" else 2)
        if kind == "in any order":
            indexes = indexes[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
        z = 2 * unit(len(indexes), 6)
        if kind == "some are equal":
            z[40:60] = z[10:30]
        expected = simclr_loss("dense", config, z, indexes)
        for whole in (0, 10_000):  # with a sample and without
            monkeypatch.setattr("solo_hardneg.kernels.numba_lists._WHOLE", whole)
            found = simclr_loss("numba", config, z, indexes)
            found.same_as(expected)
            assert found.kept.backend == "numba"


@pytest.mark.skipif("numba" not in BACKENDS, reason="needs numba")
def test_numba_refuses_conditions_beside_a_band() -> None:
    labels = {"query_labels": torch.zeros(24).long()}
    config = {"keep": {"band": [0.9, 1.0], "label": "same"}}
    with pytest.raises(ConfigError, match="follows bands of difficulty only"):
        simclr_loss("numba", config, unit(24, 6), torch.arange(12).repeat(2), **labels)


def test_simclr_through_synthetic_ends() -> None:
    mix = {"hardest": 5, "pairs": 4, "queries": 3, "detach": False}
    args = {"mix": mix, "debias": {"tau_plus": 0.1}}, unit(24, 6), torch.arange(12).repeat(2)
    simclr_loss("chunked", *args).same_as(simclr_loss("dense", *args))


def test_simclr_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.chunked._LEAST_ROWS", 5)
    monkeypatch.setattr("solo_hardneg.kernels.chunked._NUMBERS", {"cpu": 1})
    for config in (BANDS["weighed"], POLICIES["sscl"], {"drop": {"label": "same"}}):
        labels = torch.arange(24) % 3
        args = config, unit(24, 6), torch.arange(12).repeat(2)
        expected = simclr_loss("dense", *args, query_labels=labels)
        simclr_loss("chunked", *args, query_labels=labels).same_as(expected)


@pytest.mark.skipif("numba" not in BACKENDS, reason="needs numba")
@pytest.mark.parametrize("band", [[0.0, 1.0], [0.0, 0.95], [0.9, 1.0]])
def test_numba_leaves_what_it_has_no_lists_for_to_chunked(band: list[float]) -> None:
    """What depends on the epoch, or on one rank's batch, must not end a run."""
    z, indexes = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32)
    policy = build({"keep": {"band": band}} if band != [0.0, 1.0] else {})
    if band == [0.9, 1.0]:  # narrow, but an image came twice
        indexes[5] = 4
    found = [
        simclr_loss_func(z, indexes.repeat(2), 0.2, policy=policy, backend=backend)
        for backend in ("numba", "dense")
    ]
    torch.testing.assert_close(*found)
