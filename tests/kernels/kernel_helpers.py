"""Bands and losses for the tests of the kernels."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import build
from solo_hardneg.negatives.stats import LossStats

BACKENDS = ["chunked", *(["numba"] if importlib.util.find_spec("numba") else [])]
BANDS = {
    "all": {},
    "hardest": {"keep": {"band": [0.95, 1.0]}},
    "hardest tenth": {"keep": {"band": [0.9, 1.0]}},
    "easiest": {"keep": {"band": [0.0, 0.95]}},
    "middle": {"keep": {"band": [0.9, 0.95]}},
    "wide": {"keep": {"band": [0.2, 0.8]}},
    "without the hardest": {"drop": {"band": [0.97, 1.0]}},
    "without the easiest": {"drop": {"band": [0.0, 0.5]}},
    "without the middle": {"drop": {"band": [0.4, 0.6]}},
    "holes": {"drop": {"band": [0.4, 0.6]}, "keep": {"band": [0.1, 0.9]}},
    "one": {"keep": {"band": [0.9, 1.0]}, "drop": {"band": [0.0, 0.5]}},
    "weighed": {"keep": {"band": [0.8, 1.0]}, "reweight": {"beta": 1.0}},
    "debiased": {"keep": {"band": [0.8, 1.0]}, "debias": {"tau_plus": 0.05}},
}


class Outcome:
    """One loss, its gradients, and statistics of what the policy left.

    Args:
        loss: Scalar.
        leaves: Its inputs, the query first.
        reports: What the loss reported, once.
        scale: Factor of the loss before the backward pass.
        tau: Temperature.
    """

    def __init__(
        self, loss: Tensor, leaves: list[Tensor], reports: list[LossStats], scale: float, tau: float
    ) -> None:
        self.loss = loss.detach()
        if loss.requires_grad:
            (loss * scale).backward()
        self.grads = [leaf.grad for leaf in leaves if leaf.requires_grad]
        (self.stats,) = reports
        self.rounding = 3e-6 * abs(scale) / (tau * len(leaves[0]))  # where terms cancel

    def assert_equal(self, other: Outcome, rtol: float = 1e-5) -> None:
        """Asserts equality up to rounding."""
        torch.testing.assert_close(self.loss, other.loss, rtol=rtol, atol=1e-7)
        for found, expected in zip(self.grads, other.grads, strict=True):
            assert (found is None) == (expected is None)
            if expected is not None:
                # Relative to the largest, whose rounding errors the small elements share.
                atol = rtol * float(expected.abs().max()) + self.rounding
                torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
        assert torch.equal(self.stats.counts, other.stats.counts)
        assert self.stats.candidates == other.stats.candidates
        assert sorted(self.stats.notes) == sorted(other.stats.notes)
        for name, values in other.stats.notes.items():
            assert torch.equal(self.stats.notes[name], values), name
        if other.stats.hard_share is not None:
            torch.testing.assert_close(self.stats.hard_share, other.stats.hard_share)


def moco_loss(
    backend: str,
    config: dict[str, Any],
    tensors: tuple[Tensor, Tensor, Tensor],
    tau: float = 0.2,
    scale: float = 1.0,
    queue_grad: bool = False,
    epoch: float | None = None,
    **more: Any,
) -> Outcome:
    """Computes MoCo's loss of copies of query, key and queue."""
    query, key, queue = (tensor.clone(memory_format=torch.preserve_format) for tensor in tensors)
    query.requires_grad_(), key.requires_grad_(), queue.requires_grad_(queue_grad)
    reports: list[LossStats] = []
    policy = build(config)
    policy = policy if epoch is None else policy.at(epoch)
    torch.manual_seed(0)
    loss = mocov2plus_loss_func(
        query, key, queue, tau, policy=policy, backend=backend, report=reports.append, **more
    )
    return Outcome(loss, [query, key, queue], reports, scale, tau)


EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def named(configs: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())
