"""The losses: special cases, inputs and errors. tests/test_formula.py tests the formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from loss_helpers import moco, unit

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import info_nce, mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import EmptyBandError, Pool, build, full_pool

# ---------------------------------------------------------------- MoCo


def test_moco_without_a_policy_is_cross_entropy() -> None:
    query, key, queue = moco()
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(mocov2plus_loss_func(query, key, queue, 0.2), expected)
    torch.testing.assert_close(
        mocov2plus_loss_func(query, key, queue), F.cross_entropy(logits * 2, torch.zeros(5).long())
    )  # solo-learn's default temperature is 0.1


@pytest.mark.parametrize("wrong", [0, -0.1, float("nan"), float("inf")])
def test_invalid_temperatures_are_refused(wrong: float) -> None:
    query, key, queue = moco()
    for call in (
        lambda: mocov2plus_loss_func(query, key, queue, wrong),
        lambda: simclr_loss_func(query, torch.arange(5), wrong),
    ):
        with pytest.raises(ConfigError, match=f"temperature={wrong}: must be a number above 0"):
            call()


def test_temperature_that_requires_grad_is_refused() -> None:
    temperature = torch.tensor(0.2, requires_grad=True)
    with pytest.raises(ConfigError, match=r"temperature=a tensor .*Use its item\(\)"):
        mocov2plus_loss_func(*moco(), temperature)


def test_queue_size_limits_negatives_to_the_newest_keys() -> None:
    query, key, queue = moco(m=10)
    age = torch.arange(9, -1, -1)
    newest = mocov2plus_loss_func(query, key, queue[:, 4:], 0.2)
    found = mocov2plus_loss_func(query, key, queue, 0.2, queue_age=age, queue_size=6)
    torch.testing.assert_close(found, newest)
    whole = mocov2plus_loss_func(query, key, queue, 0.2, queue_size=10)  # needs no ages
    assert whole == mocov2plus_loss_func(query, key, queue, 0.2)
    with pytest.raises(ConfigError, match="queue_size=6: .*queue_age="):
        mocov2plus_loss_func(query, key, queue, 0.2, queue_size=6)


# ---------------------------------------------------------------- SimCLR


def test_simclr_of_equal_vectors() -> None:
    z = torch.ones(8, 3)
    found = simclr_loss_func(z, torch.arange(4).repeat(2), 0.5)
    assert found.item() == pytest.approx(math.log(1 + 6), rel=1e-6)


@pytest.mark.parametrize("verb", [{"keep": {"band": [0.5, 0.51]}}, {"drop": {"band": [0, 1]}}])
def test_simclr_refuses_an_empty_band(verb: dict) -> None:
    with pytest.raises(EmptyBandError, match="M=6 "):
        simclr_loss_func(unit(8, 5), torch.arange(4).repeat(2), policy=build(verb))


def test_simclr_refuses_a_policy_that_needs_a_queue() -> None:
    policy = build({"drop": {"band": [0.5, 1.0]}, "fill": "older"})
    with pytest.raises(ConfigError, match="SimCLR's negatives are the batch"):
        simclr_loss_func(torch.ones(4, 2), torch.arange(2).repeat(2), policy=policy)


# ---------------------------------------------------------------- inputs


def test_shapes_that_do_not_match_are_refused() -> None:
    query, key, queue = moco()
    with pytest.raises(ConfigError, match=r"queue \(37, 7\): must be"):
        mocov2plus_loss_func(query, key, queue.T)
    with pytest.raises(ConfigError, match=r"query \(1, 5, 7\), key \(1, 5, 7\)"):
        mocov2plus_loss_func(query[None], key[None], torch.cat([queue, queue])[:5])
    for name, count in (("query_labels", 5), ("queue_labels", 37), ("queue_age", 37)):
        wrong = torch.zeros(count + 1).long()
        with pytest.raises(ConfigError, match=rf"^{name} \({count + 1},\): must be \({count},\)"):
            mocov2plus_loss_func(query, key, queue, **{name: wrong})
    for name in ("query_indexes", "queue_indexes"):
        with pytest.raises(ConfigError, match=name):
            mocov2plus_loss_func(query, key, queue, **{name: torch.zeros(3).long()})
    with pytest.raises(ConfigError, match=r"indexes \(4,\): must be \(5,\), one for each .*z"):
        simclr_loss_func(query, torch.arange(4))
    with pytest.raises(ConfigError, match=r"query_labels \(4,\): must be \(5,\)"):
        simclr_loss_func(query, torch.arange(5), labels=torch.arange(4))


def test_simclr_takes_labels_by_both_names() -> None:
    z, indexes = unit(8, 5), torch.arange(4).repeat(2)
    labels = torch.tensor([0, 0, 1, 1]).repeat(2)
    policy = build({"drop": {"label": "same"}})
    found = [
        simclr_loss_func(z, indexes, policy=policy, **{name: labels})
        for name in ("labels", "query_labels")
    ]
    assert found[0] == found[1]
    assert found[0] != simclr_loss_func(z, indexes)


def test_policy_must_be_built() -> None:
    query, key, queue = moco()
    for call in (
        lambda: mocov2plus_loss_func(query, key, queue, policy={"keep": {"band": [0.5, 1]}}),
        lambda: simclr_loss_func(query, torch.arange(5), policy="hardest_5"),
    ):
        with pytest.raises(ConfigError, match=r"policy=.*negatives.build\(\{...\}\)"):
            call()


def test_float64_input_gives_float64() -> None:
    query, key, queue = moco()
    expected = mocov2plus_loss_func(query.double(), key.double(), queue.double())
    found = mocov2plus_loss_func(query.double(), key, queue)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)


def test_large_losses_are_exact_in_float64() -> None:
    query = torch.eye(2, dtype=torch.float64)
    queue = torch.eye(2, dtype=torch.float64)
    for gap in (19.9, 20.1, 40.0, 60.0):
        found = mocov2plus_loss_func(query[:1], -query[:1], queue[:, :1], 2 / gap)
        assert found.item() == pytest.approx(math.log1p(math.exp(gap)), rel=1e-14)


def test_negative_of_weight_zero_is_absent() -> None:
    query, key, queue = moco(dtype=torch.float64)
    weights = torch.zeros(5, 37, dtype=torch.float64)
    weights[:, 7:] = -torch.inf
    weights[4] = -torch.inf
    positive = (query * key).sum(1)
    for knobs in ({}, {"beta": 1.0, "tau_plus": 0.1}):
        pool = replace(full_pool(query @ queue), log_weight=weights, **knobs)
        found, _ = info_nce(positive, pool, 0.5)
        fewer = replace(full_pool(query[:4] @ queue[:, :7]), **knobs)
        expected, _ = info_nce(positive[:4], fewer, 0.5)
        torch.testing.assert_close(found[:4], expected)
        assert found[4] == 0


def test_unknown_classes_are_neither_same_nor_different() -> None:
    query, key, queue = moco()
    classes = torch.tensor([0, 1, -1] * 12 + [0])
    seen: list[Pool] = []
    for label, left in (("same", 13), ("different", 12)):
        mocov2plus_loss_func(
            query, key, queue, policy=build({"keep": {"label": label}}), observe=seen.append,
            query_labels=torch.tensor([0, 0, 0, 0, -1]), queue_labels=classes,
        )  # fmt: skip
        assert seen[-1].counts.tolist() == [left] * 4 + [0]


@pytest.mark.parametrize("indexes", [[0, 1, 1, 2], [1, 1, 0, 2], [0, 1, 2, 1]])
def test_repeated_image_gives_queries_different_counts(indexes: list[int]) -> None:
    seen: list[Pool] = []
    z, twice = unit(8, 5), torch.tensor(indexes).repeat(2)
    simclr_loss_func(z, twice, observe=seen.append)
    assert seen[-1].count is None
    expected = [8 - 2 * indexes.count(index) for index in indexes] * 2
    assert seen[-1].counts.tolist() == expected
    simclr_loss_func(z, torch.arange(4).repeat(2), observe=seen.append)
    assert seen[-1].count == 6
