"""The losses on a GPU, where there is one: equal to those on the CPU, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_helpers import moco, unit
from on_device import DEVICE, needs_device

from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import build

pytestmark = needs_device
LABELS = torch.tensor([0, 1] * 20)
POLICIES: list[dict[str, Any]] = [
    {},
    {"keep": {"band": [0.5, 1.0]}},
    {"drop": {"band": [0.5, 1.0], "label": "same"}, "reweight": 1.0},
    {"reweight": 1.0, "debias": 0.1},
    {"retain": 1.0, "debias": 0.1},
]


def both(device: str, config: dict[str, Any], autocast: bool) -> list[torch.Tensor]:
    """Losses and gradients of MoCo and, where there is no need of a queue, of SimCLR."""
    query, key, queue = (t.to(device).requires_grad_() for t in moco())
    z = unit(8, 5).to(device).requires_grad_()
    labels, policy = LABELS.to(device), build(config)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        known = {"query_labels": labels[:5], "queue_labels": labels[:37]}
        losses = [mocov2plus_loss_func(query, key, queue, policy=policy, **known)]
        if "queue" not in policy.needs:
            indexes = torch.arange(4, device=device).repeat(2)
            known = {"query_labels": labels[:8]}
            losses.append(simclr_loss_func(z, indexes, policy=policy, **known))
    torch.stack(losses).sum().backward()
    grads = [leaf.grad for leaf in (query, queue, z) if leaf.grad is not None]
    return [tensor.detach().cpu() for tensor in (*losses, *grads)]


@pytest.mark.parametrize("config", POLICIES)
def test_a_gpu_gives_what_the_cpu_gives(config: dict[str, Any]) -> None:
    expected = both("cpu", config, False)
    for autocast in (False, True):
        for one, other in zip(both(DEVICE, config, autocast), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_mixing_draws_on_the_gpu() -> None:
    policy = build({"mix": {"hardest": 8, "pairs": 4, "queries": 2}, "reweight": 1.0})
    tensors = [t.to(DEVICE) for t in moco()]
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(mocov2plus_loss_func(*tensors, policy=policy))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
