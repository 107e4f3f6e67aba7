"""Chunked and numba against the dense reference, with SimCLR's loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_helpers import BACKENDS, BANDS, Outcome, named
from loss_helpers import BY_SIMILARITY, POLICIES, SIX_KINDS, unit
from torch import Tensor

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import simclr_loss_func
from solo_hardneg.negatives import build
from solo_hardneg.negatives.stats import LossStats


def simclr_loss(
    backend: str, config: dict[str, Any], z: Tensor, indexes: Tensor, tau: float = 0.5, **more: Any
) -> Outcome:
    z = z.clone().requires_grad_()
    reports: list[LossStats] = []
    torch.manual_seed(0)
    loss = simclr_loss_func(
        z, indexes, tau, policy=build(config), backend=backend, report=reports.append, **more
    )
    return Outcome(loss, [z], reports, 1.0, tau)


SIMCLR = {**BANDS, **POLICIES, **BY_SIMILARITY}
del SIMCLR["kept after the mixing"]  # for dense only


@named(SIMCLR)
def test_policies(config: dict[str, Any]) -> None:
    pairs, three_views = torch.arange(12).repeat(2), torch.arange(12).repeat(3)
    duplicate = pairs.where(pairs != 3, 4)
    for indexes in (pairs, three_views, duplicate):
        z = 2 * unit(len(indexes), 6)
        simclr_loss("chunked", config, z, indexes).assert_equal(
            simclr_loss("dense", config, z, indexes)
        )


def test_learned_thresholds() -> None:
    z, indexes = 2 * unit(24, 6), torch.arange(12).repeat(2)
    known = {"query_thresholds": torch.linspace(-0.3, 1, 24)}
    for config in (
        {"drop": {"above": "learned", "share": 0.1}},
        {"keep": {"above": "learned", "share": 0.1, "band": [0.2, 1.0]}},
    ):
        expected = simclr_loss("dense", config, z, indexes, **known)
        simclr_loss("chunked", config, z, indexes, **known).assert_equal(expected)
        assert expected.stats.counts.unique().numel() > 3


NARROW: dict[str, dict[str, Any]] = {
    **{name: BANDS[name] for name in ("hardest", "middle", "weighed", "debiased")},
    "mixed": {"keep": {"band": [0.9, 1.0]}, "mix": {"hardest": 2, "pairs": 5, "queries": 4}},
    "six kinds": {"keep": {"band": [0.5, 1.0]}, "mix": SIX_KINDS, "reweight": 0.5},
    "everything": {
        **{"keep": {"band": [0.5, 1.0]}, "drop": {"band": [0.9, 1.0]}, "debias": 0.05},
        **{"mix": {"hardest": 2, "pairs": 5, "detach": False}, "reweight": {"beta": 0.3}},
    },
}


@pytest.mark.skipif("numba" not in BACKENDS, reason="needs numba")
@named(NARROW)
def test_narrow_bands(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.numba.kernel._TILE", 50)
    monkeypatch.setattr("solo_hardneg.kernels.numba.kernel._MIN_ROWS", 20)
    for kind in ("three views", "shuffled", "ties"):
        indexes = torch.arange(40).repeat(3 if kind == "three views" else 2)
        if kind == "shuffled":
            indexes = indexes[torch.randperm(80, generator=torch.Generator().manual_seed(0))]
        z = 2 * unit(len(indexes), 6)
        if kind == "ties":
            z[40:60] = z[10:30]
        expected = simclr_loss("dense", config, z, indexes)
        for width in (0, 10_000):  # with a sample and without
            monkeypatch.setattr("solo_hardneg.kernels.numba.candidate_lists._MAX_WIDTH", width)
            found = simclr_loss("numba", config, z, indexes)
            found.assert_equal(expected)
            assert found.stats.backend == "numba"


@pytest.mark.skipif("numba" not in BACKENDS, reason="needs numba")
def test_numba_refuses_other_conditions() -> None:
    labels = {"query_labels": torch.zeros(24).long()}
    config = {"keep": {"band": [0.9, 1.0], "label": "same"}}
    with pytest.raises(ConfigError, match="supports bands of difficulty only"):
        simclr_loss("numba", config, unit(24, 6), torch.arange(12).repeat(2), **labels)


def test_gradient_through_synthetic_negatives() -> None:
    mix = {"hardest": 5, "pairs": 4, "queries": 3, "detach": False}
    args = {"mix": mix, "debias": {"tau_plus": 0.1}}, unit(24, 6), torch.arange(12).repeat(2)
    simclr_loss("chunked", *args).assert_equal(simclr_loss("dense", *args))


def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.chunked._MIN_ROWS", 5)
    monkeypatch.setattr("solo_hardneg.kernels.chunked._BLOCK_SIZE", {"cpu": 1})
    for config in (BANDS["weighed"], POLICIES["sscl"], {"drop": {"label": "same"}}):
        labels = torch.arange(24) % 3
        args = config, unit(24, 6), torch.arange(12).repeat(2)
        expected = simclr_loss("dense", *args, query_labels=labels)
        simclr_loss("chunked", *args, query_labels=labels).assert_equal(expected)


@pytest.mark.skipif("numba" not in BACKENDS, reason="needs numba")
@pytest.mark.parametrize("band", [[0.0, 1.0], [0.0, 0.95], [0.9, 1.0]])
def test_numba_falls_back_to_chunked(band: list[float]) -> None:
    """A band that no list can hold, or a batch with an image twice, must not end a run."""
    z, indexes = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32)
    policy = build({"keep": {"band": band}} if band != [0.0, 1.0] else {})
    if band == [0.9, 1.0]:  # narrow, but an image comes twice
        indexes[5] = 4
    found = [
        simclr_loss_func(z, indexes.repeat(2), 0.2, policy=policy, backend=backend)
        for backend in ("numba", "dense")
    ]
    torch.testing.assert_close(*found)
