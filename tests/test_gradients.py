"""Gradients of the losses: their values, where they are zero, and that they are finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_helpers import (
    BOTH,
    DOUBLE,
    HCL,
    KEEP,
    PAIRS,
    REWEIGHT,
    autocast,
    moco,
    recorded_draws,
    unit,
)
from torch import Tensor

from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import Pool, build

TWICE = torch.arange(4).repeat(2)
THROUGH = {"mix": {"hardest": 4, "pairs": 3, "queries": 2, "detach": False}}


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors]


def moco_loss(config: dict[str, Any], *tensors: Tensor, **more: Any) -> Tensor:
    torch.manual_seed(6)
    return mocov2plus_loss_func(*tensors, 0.4, policy=build(config), **more)


def simclr_loss(config: dict[str, Any], z: Tensor, indexes: Tensor = TWICE, **more: Any) -> Tensor:
    torch.manual_seed(6)
    return simclr_loss_func(z, indexes, 0.5, policy=build(config), **more)


# ---------------------------------------------------------------- finite differences


@pytest.mark.parametrize("config", [HCL, KEEP | THROUGH | HCL])
def test_gradients_equal_finite_differences(config: dict[str, Any]) -> None:
    tensors = leaves(*moco(n=2, m=9, d=3, dtype=DOUBLE))
    assert torch.autograd.gradcheck(lambda *t: moco_loss(config, *t), tensors)
    (z,) = leaves(unit(8, 3, seed=4, dtype=DOUBLE))
    assert torch.autograd.gradcheck(lambda x: simclr_loss(config, x), (z,))


# ---------------------------------------------------------------- synthetic negatives


def mixtures(
    query: Tensor, vectors: Tensor, hardest: Tensor, seen: dict[str, tuple[Tensor, ...]]
) -> Tensor:
    """(N, k, D) synthetic negatives from recorded draws."""
    made = []
    if "draw_pairs" in seen:
        a, b, alpha = seen["draw_pairs"]
        one, other = vectors[hardest.gather(1, a)], vectors[hardest.gather(1, b)]
        made.append(alpha[..., None].to(one) * one + (1 - alpha[..., None].to(one)) * other)
    if "draw_partners" in seen:
        a, gamma = seen["draw_partners"]
        one, gamma = vectors[hardest.gather(1, a)], gamma[..., None].to(vectors)
        made.append(gamma * query[:, None] + (1 - gamma) * one)
    return F.normalize(torch.cat(made, dim=1), dim=-1)


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_through_synthetic_negatives(detach: bool) -> None:
    """Detached, they give gradient to the query only, through q·h."""
    config = {"mix": BOTH["mix"] | {"detach": detach}}
    query, key, queue = leaves(*moco(n=4, m=12, d=5, dtype=DOUBLE))
    with recorded_draws() as seen:
        loss = moco_loss(config, query, key, queue)
    found = torch.autograd.grad(loss, (query, key, queue))
    real = query @ queue
    hardest = real.argsort(dim=1, descending=True)[:, :3]
    made = mixtures(query, queue.T, hardest, seen)
    made = made.detach() if detach else made
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, real, torch.einsum("nd,nkd->nk", query, made)], dim=1) / 0.4
    expected = F.cross_entropy(logits, torch.zeros(4).long())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (query, key, queue)))


# ---------------------------------------------------------------- floor and missing negatives


@pytest.mark.parametrize("more", [{}, PAIRS | REWEIGHT])
def test_floor_stops_the_gradient_of_negatives(more: dict[str, Any]) -> None:
    query, _, queue = leaves(*moco(n=3, m=11, d=4, dtype=DOUBLE))
    pools: list[Pool] = []
    config = more | {"debias": {"tau_plus": 0.99}}
    loss = moco_loss(config, query, query.detach(), queue, observe=pools.append)
    assert pools[0].notes["floored"].tolist() == [1.0] * 3
    loss.backward()
    assert torch.equal(queue.grad, torch.zeros_like(queue))
    count = 11 + (3 if "mix" in more else 0)
    top = math.exp(1 / 0.4)
    pull = top / (top + count * math.exp(-1 / 0.4)) - 1
    torch.testing.assert_close(query.grad, pull / 0.4 / 3 * query.detach())


def test_floor_of_one_row_leaves_the_gradient_of_others() -> None:
    query, _, queue = moco(n=2, m=11, d=4, dtype=DOUBLE)
    key = torch.stack([query[0], -query[1]])
    gradients = []
    for rows in (slice(0, 2), slice(1, 2)):
        (q,) = leaves(query[rows].clone())
        pools: list[Pool] = []
        config = {"debias": {"tau_plus": 0.5}}
        loss = moco_loss(config, q, key[rows], queue, observe=pools.append)
        (loss * len(q)).backward()
        gradients.append(q.grad[-1])
        assert pools[0].notes["floored"].tolist() == [1.0, 0.0][rows]
    torch.testing.assert_close(*gradients)


WITH_AND_WITHOUT = pytest.mark.parametrize("more", [{}, BOTH | HCL, THROUGH | HCL])


@WITH_AND_WITHOUT
def test_row_without_negatives_gives_zero_gradient(more: dict[str, Any]) -> None:
    config = {"drop": {"label": "same"}} | more
    query, key, queue = leaves(*moco(n=2, m=6))
    pools: list[Pool] = []
    known = {"query_labels": torch.tensor([0, 1]), "queue_labels": torch.zeros(6).long()}
    loss = moco_loss(config, query, key, queue, **known, observe=pools.append)
    loss.backward()
    assert torch.equal(query.grad[0], torch.zeros(7))
    assert torch.equal(key.grad[0], torch.zeros(7))
    assert query.grad[1].abs().min() > 0
    assert queue.grad.isfinite().all()
    assert pools[0].counts[0] == 0
    if more:
        made = more["mix"].get("pairs", 0) + more["mix"]["queries"]
        assert pools[0].notes["synthetic"].tolist() == [0, made]
        assert pools[0].notes["mix_short"].tolist() == [1.0, 0.0]
        assert pools[0].notes["floored"][0] == 0
    known["query_labels"] = known["query_labels"][:1]
    assert moco_loss(config, query[:1], key[:1], queue, **known) == 0


@WITH_AND_WITHOUT
def test_no_negatives_give_zero_loss_and_gradient(more: dict[str, Any]) -> None:
    """With an empty queue, and with a batch of one image."""
    query, key, queue, z = leaves(*moco(m=0), unit(2, 5))
    pools: list[Pool] = []
    one_image = simclr_loss(more, z, torch.zeros(2).long(), observe=pools.append)
    assert pools[0].count == 0
    for loss, leaf in ((moco_loss(more, query, key, queue), query), (one_image, z)):
        loss.backward()
        assert loss == 0
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


# ---------------------------------------------------------------- extremes


@pytest.mark.parametrize(
    ("more", "tau_plus", "side", "dtype"),
    [
        ({}, 0.0, 1, torch.float16),
        ({}, 0.99, -1, torch.bfloat16),
        (BOTH, 0.1, -1, torch.float16),
        (THROUGH, 0.1, 1, torch.bfloat16),
        (THROUGH, 0.99, 1, torch.float16),
    ],
)
def test_loss_and_gradient_are_finite_at_extreme_similarities(
    more: dict[str, Any], tau_plus: float, side: int, dtype: torch.dtype
) -> None:
    config = more | {"reweight": {"beta": 10.0}, "debias": {"tau_plus": tau_plus}}
    plus_minus = torch.cat([torch.eye(4), -torch.eye(4)])  # similarities of exactly 1 and -1
    query, queue = leaves(torch.eye(4).to(dtype), plus_minus.T.to(dtype))
    (z,) = leaves(torch.cat([torch.eye(4), side * torch.eye(4)]).to(dtype))
    with autocast(dtype):
        first = mocov2plus_loss_func(
            query, side * query.detach(), queue, 0.05, policy=build(config)
        )
        second = simclr_loss_func(z, TWICE, 0.05, policy=build(config))
    for loss in (first, second):
        assert loss.dtype == torch.float32
        assert 0 <= loss.item() < math.inf
        loss.backward()
    for leaf in (query, queue, z):
        assert leaf.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    config = {"keep": {"band": [0.5, 1.0]}} | BOTH | HCL
    tensors = moco()
    outside = moco_loss(config, *tensors), simclr_loss(config, unit(8, 5))
    with autocast(torch.float16):
        inside = moco_loss(config, *tensors), simclr_loss(config, unit(8, 5))
    assert inside == outside
