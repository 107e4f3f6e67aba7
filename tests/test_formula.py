"""The losses with policies against plain loops, closed forms and invariances."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import (
    BOTH,
    DEBIAS,
    DOUBLE,
    EACH_POLICY,
    HCL,
    POLICIES,
    draws_of,
    moco,
    moco_by_loops,
    recorded_draws,
    simclr_by_loops,
    unit,
)
from torch import Tensor

from solo_hardneg.losses import info_nce, mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import Pool, build

TWICE = torch.arange(5).repeat(2)
THRICE = torch.arange(5).repeat(3)


def moco_loss(config: dict[str, Any], *tensors: Tensor, **more: Any) -> Tensor:
    return mocov2plus_loss_func(*tensors, 0.2, policy=build(config), **more)


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-7, abs=1e-12)


# ---------------------------------------------------------------- plain loops


@EACH_POLICY
def test_moco_equals_plain_loops(config: dict[str, Any]) -> None:
    for temperature in (0.07, 0.5):
        tensors = moco(n=6, dtype=DOUBLE)
        pools: list[Pool] = []
        with recorded_draws() as seen:
            found = mocov2plus_loss_func(
                *tensors, temperature, policy=build(config), observe=pools.append
            )
        expected, floored = moco_by_loops(config, *tensors, temperature, seen)
        assert found.item() == close(expected)
        assert ("floored" in pools[0].notes) == ("debias" in config)
        if "debias" in config:
            assert pools[0].notes["floored"].tolist() == floored


@EACH_POLICY
def test_simclr_equals_plain_loops(config: dict[str, Any]) -> None:
    for indexes, temperature in ((TWICE, 0.1), (THRICE, 0.5)):
        z = 3 * unit(len(indexes), 6, seed=5, dtype=DOUBLE)
        pools: list[Pool] = []
        with recorded_draws() as seen:
            found = simclr_loss_func(
                z, indexes, temperature, policy=build(config), observe=pools.append
            )
        expected, floored = simclr_by_loops(config, z, indexes.tolist(), temperature, seen)
        assert found.item() == close(expected)
        if "debias" in config:
            assert pools[0].notes["floored"].tolist() == floored


def test_floored_rows_are_noted() -> None:
    tensors = moco(n=40, m=9, d=3, dtype=DOUBLE)
    pools: list[Pool] = []
    config = {"debias": {"tau_plus": 0.95}}
    mocov2plus_loss_func(*tensors, 0.3, policy=build(config), observe=pools.append)
    _, floored = moco_by_loops(config, *tensors, 0.3, {})
    assert pools[0].notes["floored"].tolist() == floored
    assert pools[0].notes["floored"].dtype == torch.float32
    assert 5 < sum(floored) < 35


@given(
    st.integers(1, 4),
    st.sampled_from([7, 37]),
    st.integers(1, 5),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, DOUBLE]),
    st.sampled_from(list(POLICIES.values())),
    st.sampled_from([0.05, 0.2, 1.0]),
)
def test_loss_and_gradient_are_finite(
    n: int, m: int, d: int, dtype: torch.dtype, config: dict[str, Any], temperature: float
) -> None:
    query, key, queue = moco(n, m, d, dtype)
    query.requires_grad_()
    loss = mocov2plus_loss_func(query, key, queue, temperature, policy=build(config))
    loss.backward()
    assert loss.dtype == (DOUBLE if dtype == DOUBLE else torch.float32)
    assert 0 <= loss.item() < math.inf
    assert query.grad.isfinite().all()
    if "mix" not in config:
        tensors = (t.detach().double() for t in (query, key, queue))
        expected, _ = moco_by_loops(config, *tensors, temperature, {})
        assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


# ---------------------------------------------------------------- closed forms


def test_beta_and_tau_plus_of_0_give_infonce() -> None:
    zero = {"reweight": {"beta": 0}, "debias": {"tau_plus": 0}}
    tensors = moco(dtype=DOUBLE)
    assert moco_loss(zero, *tensors) == mocov2plus_loss_func(*tensors, 0.2)
    z = unit(10, 4, dtype=DOUBLE)
    logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(10).roll(5))
    found = simclr_loss_func(z, TWICE, 0.5, policy=build(zero))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(simclr_loss_func(z, TWICE, 0.5), expected)


def test_beta_of_0_gives_dcl() -> None:
    query, key, queue = moco(n=8, dtype=DOUBLE)
    top, others = ((query * key).sum(1) / 0.2).exp(), (query @ queue / 0.2).exp().sum(1)
    g = ((others - 0.1 * 37 * top) / 0.9).clamp(min=37 * math.exp(-1 / 0.2))
    expected = -(top / (top + g)).log().mean()
    for config in (DEBIAS, {"reweight": {"beta": 0.0}} | DEBIAS):
        torch.testing.assert_close(moco_loss(config, query, key, queue), expected)


def test_equal_negatives_have_equal_weights_for_any_beta() -> None:
    query, key, _ = moco(d=3, dtype=DOUBLE)
    queue = torch.tensor([0.6, 0.8, 0.0], dtype=DOUBLE)[:, None].repeat(1, 40)
    gap = (query @ queue[:, 0] - (query * key).sum(1)) / 0.2
    for beta in (0.0, 10.0):
        found = moco_loss({"reweight": {"beta": beta}}, query, key, queue)
        torch.testing.assert_close(found, torch.log1p(40 * gap.exp()).mean())


def test_large_beta_gives_the_hardest_all_weight() -> None:
    query, key, queue = moco(n=1, dtype=DOUBLE)
    hardest = (query @ queue).max() / 0.2
    expected = F.softplus(math.log(37) + hardest - (query * key).sum() / 0.2)
    found = moco_loss({"reweight": {"beta": 1e4}}, query, key, queue)
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- invariances


def test_loss_is_invariant_to_order_and_rotation() -> None:
    config = POLICIES["everything"]

    def loss(q: Tensor, k: Tensor, others: Tensor) -> Tensor:
        torch.manual_seed(1)
        return moco_loss(config, q, k, others)

    query, key, queue = moco(dtype=DOUBLE)
    shuffle = torch.randperm(37, generator=torch.Generator().manual_seed(3))
    rotation, _ = torch.linalg.qr(unit(7, 7, seed=9, dtype=DOUBLE))
    expected = loss(query, key, queue)
    torch.testing.assert_close(loss(query, key, queue[:, shuffle]), expected)
    rotated = (query @ rotation, key @ rotation, rotation.T @ queue)
    torch.testing.assert_close(loss(*rotated), expected)


@pytest.mark.parametrize("config", [{}, BOTH | HCL])
def test_band_of_all_negatives_changes_nothing(config: dict[str, Any]) -> None:
    found = []
    for more in ({}, {"keep": {"band": [0.0, 1.0]}}):
        torch.manual_seed(2)
        found.append(moco_loss(more | config, *moco(dtype=DOUBLE)))
        found.append(moco_loss(config | more, *moco(dtype=DOUBLE)))
    assert found[:2] == found[2:]


# ---------------------------------------------------------------- weights and unequal counts


def test_log_weight_multiplies_the_weights_of_beta() -> None:
    similarity = torch.tensor([[0.1, 0.5, 0.9]], dtype=DOUBLE)
    own = torch.tensor([[1.0, 3.0, 7.0]], dtype=DOUBLE)
    present = torch.tensor([[True, True, False]])
    positive = torch.tensor([0.3], dtype=DOUBLE)
    for beta in (0.0, 2.0):
        pool = Pool(similarity, present, log_weight=own.log(), beta=beta)
        losses, floored = info_nce(positive, pool, 0.2)
        w = [1 * math.exp(beta * 0.1 / 0.2), 3 * math.exp(beta * 0.5 / 0.2)]
        g = (w[0] * math.exp(0.1 / 0.2) + w[1] * math.exp(0.5 / 0.2)) / (sum(w) / 2)
        assert losses.item() == close(math.log1p(g / math.exp(0.3 / 0.2)))
        assert floored.tolist() == [False]


def test_queries_with_unequal_counts_mix_their_own_negatives() -> None:
    """Dropping the query's class leaves 8, 6 and 2 of 8 negatives."""
    query, key, queue = moco(n=3, m=8, dtype=DOUBLE)
    classes = [1, 1, 1, 2, 2, 2, 2, 2]
    classes[0] = 2
    own = [0, 1, 2]
    pools: list[Pool] = []
    config = {"drop": {"label": "same"}} | BOTH | HCL
    with recorded_draws() as seen:
        found = moco_loss(
            config,
            query,
            key,
            queue,
            query_labels=torch.tensor(own),
            queue_labels=torch.tensor(classes),
            observe=pools.append,
        )
    losses = []
    for i in range(3):
        same = [j for j in range(8) if classes[j] == own[i]]
        q = query[i].tolist()
        left = oracles.leave(config, q, queue.T.tolist(), range(8), draws_of(seen, i), same)
        losses.append(oracles.loss([oracles.dot(q, key[i].tolist())], left[0], 0.2, 0.7, 0.1))
    assert found.item() == close(sum(losses) / 3)
    assert pools[0].notes["mix_short"].tolist() == [0.0, 0.0, 1.0]
    assert pools[0].notes["synthetic"].tolist() == [6.0] * 3
    assert pools[0].counts.tolist() == [14, 12, 8]
