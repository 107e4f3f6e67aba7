"""Which gradient the losses give to what, and that it stays finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_helpers import (
    BOTH,
    DEBIAS,
    DOUBLE,
    EACH,
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
CONSTANT = {"mix": {"hardest": 4, "pairs": 3, "detach": True}}
SMOOTH = pytest.mark.parametrize(
    "config", [REWEIGHT, DEBIAS, HCL, THROUGH, THROUGH | HCL, KEEP | THROUGH | HCL]
)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors]


def moco_loss(config: dict[str, Any], *tensors: Tensor, **more: Any) -> Tensor:
    torch.manual_seed(6)
    return mocov2plus_loss_func(*tensors, 0.4, policy=build(config), **more)


def simclr_loss(config: dict[str, Any], z: Tensor, indexes: Tensor = TWICE, **more: Any) -> Tensor:
    torch.manual_seed(6)
    return simclr_loss_func(z, indexes, 0.5, policy=build(config), **more)


# ---------------------------------------------------------------- finite differences


@SMOOTH
def test_moco_gradient_is_that_of_finite_differences(config: dict[str, Any]) -> None:
    tensors = leaves(*moco(n=3, m=12, d=4, dtype=DOUBLE))
    assert torch.autograd.gradcheck(lambda *t: moco_loss(config, *t), tensors)


@pytest.mark.parametrize("config", [CONSTANT, CONSTANT | HCL])
def test_gradient_to_the_query_by_constant_mixtures(config: dict[str, Any]) -> None:
    query, key, queue = moco(n=3, m=12, d=4, dtype=DOUBLE)
    assert torch.autograd.gradcheck(
        lambda q: moco_loss(config, q, key, queue), (query.requires_grad_(),)
    )


@SMOOTH
def test_simclr_gradient_is_that_of_finite_differences(config: dict[str, Any]) -> None:
    (z,) = leaves(unit(8, 4, seed=4, dtype=DOUBLE))
    assert torch.autograd.gradcheck(lambda x: simclr_loss(config, x), (z,))


# ---------------------------------------------------------------- mixtures


def mixtures(
    query: Tensor, vectors: Tensor, hardest: Tensor, seen: dict[str, tuple[Tensor, ...]]
) -> Tensor:
    """(N, k, D) from recorded draws, written out once more."""
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
def test_gradient_of_moco_by_mixtures(detach: bool) -> None:
    """Detached, the queue's gradient is that of the real negatives, the query's by q·h alone."""
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


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_simclr_by_mixtures(detach: bool) -> None:
    config = {"mix": BOTH["mix"] | {"detach": detach}}
    (x,) = leaves(2 * unit(8, 5, seed=7, dtype=DOUBLE))
    with recorded_draws() as seen:
        loss = simclr_loss(config, x)
    z = F.normalize(x, dim=1)
    same = TWICE[:, None] == TWICE
    similarity = z @ z.T
    hardest = similarity.masked_fill(same, -9).argsort(dim=1, descending=True)[:, :3]
    made = mixtures(z, z, hardest, seen)
    made = made.detach() if detach else made
    logits = similarity.masked_fill(torch.eye(8).bool(), -torch.inf)
    logits = torch.cat([logits, torch.einsum("nd,nkd->nk", z, made)], dim=1) / 0.5
    expected = F.cross_entropy(logits, torch.arange(8).roll(4))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


def test_mixtures_are_detached_unless_one_says_otherwise() -> None:
    gradients = []
    for more in ({}, {"detach": True}, {"detach": False}):
        query, key, queue = leaves(*moco(n=4, m=12, d=5))
        moco_loss({"mix": BOTH["mix"] | more}, query, key, queue).backward()
        gradients.append(queue.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2])


@pytest.mark.parametrize("kind", ["pairs", "queries"])
def test_mixtures_reach_only_what_they_are_made_of(kind: str) -> None:
    query, key, queue = leaves(*moco(n=1, m=37, dtype=DOUBLE))
    pools: list[Pool] = []
    config = {"mix": {"hardest": 6, kind: 2, "detach": False}}
    with recorded_draws() as seen:
        moco_loss(config, query, key, queue, observe=pools.append)
    (grad,) = torch.autograd.grad(pools[0].similarity[:, 37:].sum(), queue)
    hardest = (query @ queue)[0].argsort(descending=True)[:6]
    places = torch.cat(seen["draw_pairs"][:2] if kind == "pairs" else seen["draw_partners"][:1])
    touched = grad.abs().sum(0).nonzero().flatten()
    assert set(touched.tolist()) == set(hardest[places.flatten()].tolist())


# ---------------------------------------------------------------- weights, floor, absence


def test_weights_carry_gradient() -> None:
    """∂log G/∂sⱼ = ((1+β)·pⱼ - β·rⱼ)/τ with p, r the softmax of (1+β)·s/τ and of β·s/τ."""
    query, key, queue = moco(n=1, m=9, dtype=DOUBLE)
    pools: list[Pool] = []
    query.requires_grad_()
    loss = moco_loss({"reweight": {"beta": 0.7}}, query, key, queue, observe=pools.append)
    (found,) = torch.autograd.grad(loss, pools[0].similarity)
    s = (query @ queue).detach() / 0.4
    p, r = (1.7 * s).softmax(1), (0.7 * s).softmax(1)
    g = 9 * (1.7 * s).exp().sum() / (0.7 * s).exp().sum()
    share = g / (g + ((query * key).sum().detach() / 0.4).exp())
    torch.testing.assert_close(found, share * (1.7 * p - 0.7 * r) / 0.4)
    assert (found < 0).any()  # the easiest are pulled nearer


@pytest.mark.parametrize("more", [{}, REWEIGHT, PAIRS | REWEIGHT])
def test_no_gradient_through_the_negatives_where_the_floor_binds(more: dict[str, Any]) -> None:
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


def test_each_row_has_its_own_floor() -> None:
    """The first row is at its floor; its neighbour's gradient is not touched by that."""
    query, key, queue = moco(n=2, m=11, d=4, dtype=DOUBLE)
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


@pytest.mark.parametrize("more", [REWEIGHT, DEBIAS, HCL, CONSTANT | HCL])
def test_absent_negatives_get_no_gradient(more: dict[str, Any]) -> None:
    query, key, queue = leaves(*moco(n=1, dtype=DOUBLE))
    moco_loss({"keep": {"band": [0.75, 1.0]}} | more, query, key, queue).backward()
    kept = (query @ queue)[0].argsort()[27:]
    touched = queue.grad.abs().sum(0).nonzero().flatten()
    assert set(touched.tolist()) == set(kept.tolist())


COMBINATIONS = [{}, BOTH, THROUGH, REWEIGHT, DEBIAS, HCL, BOTH | HCL, THROUGH | HCL]


@pytest.mark.parametrize("more", COMBINATIONS)
def test_a_row_without_negatives_gives_zero_and_no_nan(more: dict[str, Any]) -> None:
    config = {"drop": {"label": "same"}} | more
    query, key, queue = leaves(*moco(n=2, m=6))
    pools: list[Pool] = []
    loss = moco_loss(
        config,
        query,
        key,
        queue,
        query_labels=torch.tensor([0, 1]),
        queue_labels=torch.zeros(6, dtype=torch.long),
        observe=pools.append,
    )
    loss.backward()
    assert torch.equal(query.grad[0], torch.zeros(7))
    assert torch.equal(key.grad[0], torch.zeros(7))
    assert query.grad[1].abs().min() > 0
    assert queue.grad.isfinite().all()
    assert pools[0].counts[0] == 0
    if "mix" in more:
        assert pools[0].notes["synthetic"].tolist() == [0, 6 if more["mix"] == BOTH["mix"] else 5]
        assert pools[0].notes["mix_short"].tolist() == [1.0, 0.0]
    if "debias" in more:
        assert pools[0].notes["floored"][0] == 0
    torch.manual_seed(6)
    labels = {"query_labels": torch.zeros(1).long(), "queue_labels": torch.zeros(6).long()}
    alone = moco_loss(config, query[:1], key[:1], queue, **labels)
    assert alone == 0


@pytest.mark.parametrize("more", COMBINATIONS)
def test_a_batch_of_one_image_has_no_negatives(more: dict[str, Any]) -> None:
    (z,) = leaves(unit(2, 5))
    pools: list[Pool] = []
    loss = simclr_loss(more, z, torch.zeros(2).long(), observe=pools.append)
    loss.backward()
    assert loss == 0
    assert torch.equal(z.grad, torch.zeros(2, 5))
    assert pools[0].count == 0


@pytest.mark.parametrize("more", COMBINATIONS)
def test_an_empty_queue_gives_zero_and_no_gradient(more: dict[str, Any]) -> None:
    query, key, queue = leaves(*moco(m=0))
    loss = moco_loss(more, query, key, queue)
    loss.backward()
    assert loss == 0
    assert torch.equal(query.grad, torch.zeros(5, 7))


# ---------------------------------------------------------------- extremes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("more", [{}, BOTH, THROUGH])
def test_finite_at_the_ends_of_the_scale(
    dtype: torch.dtype, tau_plus: float, side: int, more: dict[str, Any]
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    config = {"keep": {"band": [0.5, 1.0]}} | BOTH | HCL
    tensors = moco()
    outside = moco_loss(config, *tensors), simclr_loss(config, unit(8, 5))
    with autocast(dtype):
        inside = moco_loss(config, *tensors), simclr_loss(config, unit(8, 5))
    assert inside == outside


@EACH
def test_gradient_reaches_every_query(config: dict[str, Any]) -> None:
    query, key, queue = leaves(*moco(n=4))
    moco_loss(config, query, key, queue).backward()
    assert query.grad.abs().amax(dim=1).min() > 0
