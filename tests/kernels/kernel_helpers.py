"""What the tests of the kernels share: bands, and the outcome of a loss to be compared."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import build
from solo_hardneg.negatives.kept import Kept

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
    """One loss, its gradients, and what the policy left."""

    def __init__(
        self, loss: Tensor, leaves: list[Tensor], kept: list[Kept], scale: float, tau: float
    ) -> None:
        self.loss = loss.detach()
        if loss.requires_grad:
            (loss * scale).backward()
        self.grads = [leaf.grad for leaf in leaves if leaf.requires_grad]
        (self.kept,) = kept
        self.rounding = 3e-6 * abs(scale) / (tau * len(leaves[0]))  # of parts that cancel

    def same_as(self, other: Outcome, rtol: float = 1e-5) -> None:
        torch.testing.assert_close(self.loss, other.loss, rtol=rtol, atol=1e-7)
        for mine, theirs in zip(self.grads, other.grads, strict=True):
            assert (mine is None) == (theirs is None)
            if theirs is not None:
                # Relative to the largest: a sum's small parts have the rounding of its large ones.
                largest = float(theirs.abs().max())
                torch.testing.assert_close(
                    mine, theirs, rtol=rtol, atol=rtol * largest + self.rounding
                )
        assert torch.equal(self.kept.counts, other.kept.counts)
        assert self.kept.candidates == other.kept.candidates
        assert sorted(self.kept.notes) == sorted(other.kept.notes)
        for name, values in other.kept.notes.items():
            assert torch.equal(self.kept.notes[name], values), name
        if other.kept.hard_share is not None:
            torch.testing.assert_close(self.kept.hard_share, other.kept.hard_share)


def moco_loss(
    backend: str,
    config: dict[str, Any],
    tensors: tuple[Tensor, Tensor, Tensor],
    tau: float = 0.2,
    scale: float = 1.0,
    queue_grad: bool = False,
    **more: Any,
) -> Outcome:
    query, key, queue = (tensor.clone(memory_format=torch.preserve_format) for tensor in tensors)
    query.requires_grad_(), key.requires_grad_(), queue.requires_grad_(queue_grad)
    kept: list[Kept] = []
    torch.manual_seed(0)
    loss = mocov2plus_loss_func(
        query, key, queue, tau, policy=build(config), backend=backend, report=kept.append, **more
    )
    return Outcome(loss, [query, key, queue], kept, scale, tau)


EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def named(configs: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())
