"""The losses against plain loops, closed forms and invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import moco, simclr_by_loops, unit

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import info_nce, mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import EmptyBandError, Pool, build, full_pool

HARDEST = {"keep": {"band": [0.75, 1.0]}}


# ---------------------------------------------------------------- MoCo


@given(
    st.integers(1, 6),
    st.integers(1, 41),
    st.integers(1, 9),
    st.sampled_from([0.05, 0.07, 0.2, 1.0]),
    st.sampled_from([None, (0.0, 0.5), (0.5, 1.0), (0.95, 1.0)]),
)
def test_moco_against_plain_loops(
    n: int, m: int, d: int, temperature: float, band: tuple[float, float] | None
) -> None:
    query, key, queue = moco(n, m, d, torch.float64)
    policy = None if band is None else build({"keep": {"band": list(band)}})
    if band is not None and not oracles.ranks(*band, m):
        return
    losses = []
    for q, k in zip(query.tolist(), key.tolist(), strict=True):
        sims = [oracles.dot(q, column) for column in queue.T.tolist()]
        kept = range(m) if band is None else oracles.band(sims, *band)
        losses.append(oracles.info_nce(oracles.dot(q, k), [sims[j] for j in kept], temperature))
    found = mocov2plus_loss_func(query, key, queue, temperature, policy=policy)
    assert found.item() == pytest.approx(sum(losses) / n, rel=1e-9)


def test_moco_without_a_policy_is_cross_entropy_on_the_positive() -> None:
    query, key, queue = moco()
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(mocov2plus_loss_func(query, key, queue, 0.2), expected)
    torch.testing.assert_close(
        mocov2plus_loss_func(query, key, queue), F.cross_entropy(logits * 2, torch.zeros(5).long())
    )  # the host's default temperature, 0.1


def test_all_negatives_equal_has_a_closed_form() -> None:
    query, key, _ = moco(d=3)
    queue = torch.tensor([0.6, 0.8, 0.0])[:, None].repeat(1, 40)
    gap = (query @ queue[:, 0] - (query * key).sum(1)) / 0.2
    for policy, count in ((None, 40), (build({"keep": {"band": [0.9, 1.0]}}), 4)):
        expected = torch.log1p(count * gap.exp()).mean()
        torch.testing.assert_close(
            mocov2plus_loss_func(query, key, queue, 0.2, policy=policy), expected
        )


def test_the_band_of_all_is_no_policy() -> None:
    query, key, queue = moco()
    plain = mocov2plus_loss_func(query, key, queue, 0.2)
    for config in ({}, {"keep": {"band": [0.0, 1.0]}}):
        assert mocov2plus_loss_func(query, key, queue, 0.2, policy=build(config)) == plain


def test_order_and_rotation_do_not_matter() -> None:
    query, key, queue = moco(dtype=torch.float64)
    policy = build(HARDEST)
    expected = mocov2plus_loss_func(query, key, queue, 0.1, policy=policy)
    shuffled = queue[:, torch.randperm(queue.shape[1])]
    rotation, _ = torch.linalg.qr(unit(7, 7, seed=9, dtype=torch.float64))
    for q, k, others in (
        (query, key, shuffled),
        (query @ rotation, key @ rotation, rotation.T @ queue),
        (query.flip(0), key.flip(0), queue),
    ):
        torch.testing.assert_close(mocov2plus_loss_func(q, k, others, 0.1, policy=policy), expected)


def test_temperature_divides_the_similarities() -> None:
    query, key, queue = moco()
    found = [mocov2plus_loss_func(query, key, queue, t, policy=build(HARDEST)) for t in (0.1, 0.2)]
    assert found[0] != found[1]
    for wrong in (0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="temperature=.*above 0"):
            mocov2plus_loss_func(query, key, queue, wrong)


def test_gradient_reaches_the_query_by_the_kept_negatives_only() -> None:
    query, key, queue = moco()
    query.requires_grad_()
    queue.requires_grad_()
    mocov2plus_loss_func(query, key, queue, 0.2, policy=build(HARDEST)).backward()
    assert query.grad.abs().min() > 0
    kept = {j for q in (query @ queue).tolist() for j in oracles.band(q, 0.75, 1.0)}
    touched = set(queue.grad.abs().sum(0).nonzero().flatten().tolist())
    assert touched == kept
    assert len(kept) < 37


def test_gradient_is_that_of_finite_differences() -> None:
    query, key, queue = moco(n=3, m=11, d=4, dtype=torch.float64)
    query.requires_grad_()
    for policy in (None, build(HARDEST)):
        assert torch.autograd.gradcheck(
            lambda q, p=policy: mocov2plus_loss_func(q, key, queue, 0.3, policy=p), (query,)
        )


def test_an_empty_queue_gives_zero_and_no_gradient() -> None:
    query, key, queue = moco(m=0)
    query.requires_grad_()
    loss = mocov2plus_loss_func(query, key, queue, 0.2, policy=build(HARDEST))
    loss.backward()
    assert loss == 0
    assert torch.equal(query.grad, torch.zeros_like(query))


def test_a_query_without_negatives_gives_zero_and_no_nan() -> None:
    query, key, queue = moco(n=2, m=6)
    query.requires_grad_()
    loss = mocov2plus_loss_func(
        query,
        key,
        queue,
        0.2,
        policy=build({"drop": {"label": "same"}}),
        query_labels=torch.tensor([0, 1]),
        queue_labels=torch.zeros(6, dtype=torch.long),
    )
    loss.backward()
    assert torch.equal(query.grad[0], torch.zeros(7))
    assert query.grad[1].abs().min() > 0
    sims = (query[1] @ queue).tolist()
    expected = oracles.info_nce((query[1] @ key[1]).item(), sims, 0.2) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_in_float32_inside_autocast(dtype: torch.dtype) -> None:
    query = torch.eye(4)
    queue = torch.cat([torch.eye(4), -torch.eye(4)], dim=1)  # similarities of exactly 1 and -1
    for temperature in (0.05, 0.01):
        expected = mocov2plus_loss_func(query, -query, queue, temperature, policy=build(HARDEST))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = mocov2plus_loss_func(
                query.to(dtype), -query.to(dtype), queue.to(dtype), temperature,
                policy=build(HARDEST),
            )  # fmt: skip
        assert found.dtype == torch.float32
        assert math.isfinite(found.item())
        torch.testing.assert_close(found, expected)
    assert expected.item() == pytest.approx(2 / 0.01, rel=1e-5)


def test_the_newest_of_the_queue_are_negatives_and_the_older_its_reserve() -> None:
    query, key, queue = moco(m=10)
    age = torch.arange(9, -1, -1)
    newest = mocov2plus_loss_func(query, key, queue[:, 4:], 0.2)
    found = mocov2plus_loss_func(query, key, queue, 0.2, queue_age=age, queue_size=6)
    torch.testing.assert_close(found, newest)
    with pytest.raises(ConfigError, match="queue_size=6: .*queue_age="):
        mocov2plus_loss_func(query, key, queue, 0.2, queue_size=6)


def test_an_observer_sees_what_the_policy_left() -> None:
    seen: list[Pool] = []
    query, key, queue = moco()
    mocov2plus_loss_func(query, key, queue, policy=build(HARDEST), observe=seen.append)
    assert seen[0].counts.tolist() == [10] * 5


def test_shapes_that_do_not_go_together() -> None:
    query, key, queue = moco()
    with pytest.raises(ConfigError, match=r"queue \(37, 7\): must be"):
        mocov2plus_loss_func(query, key, queue.T)


# ---------------------------------------------------------------- SimCLR


@given(
    st.integers(2, 7),
    st.sampled_from([2, 3]),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([None, (0.0, 0.5), (0.5, 1.0)]),
)
def test_simclr_against_plain_loops(
    images: int, views: int, temperature: float, band: tuple[float, float] | None
) -> None:
    z = 3 * unit(images * views, 5, seed=images, dtype=torch.float64)
    indexes = torch.arange(images).repeat(views)
    config = {} if band is None else {"keep": {"band": list(band)}}
    expected, _ = simclr_by_loops(config, z, indexes.tolist(), temperature, {})
    found = simclr_loss_func(z, indexes, temperature, policy=build(config))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_simclr_of_equal_vectors_has_a_closed_form() -> None:
    z = torch.ones(8, 3)
    found = simclr_loss_func(z, torch.arange(4).repeat(2), 0.5)
    assert found.item() == pytest.approx(math.log(1 + 6), rel=1e-6)


def test_simclr_stays_finite_where_exponentials_overflow() -> None:
    z = torch.cat([torch.eye(4), -torch.eye(4)])
    found = simclr_loss_func(z, torch.arange(4).repeat(2), 0.01)
    assert math.isfinite(found.item())


@pytest.mark.parametrize("verb", [{"keep": {"band": [0.5, 0.51]}}, {"drop": {"band": [0, 1]}}])
def test_simclr_refuses_a_band_that_leaves_nothing(verb: dict) -> None:
    with pytest.raises(EmptyBandError, match="M=6 "):
        simclr_loss_func(unit(8, 5), torch.arange(4).repeat(2), policy=build(verb))


def test_simclr_has_no_queue_to_fill_from() -> None:
    policy = build({"drop": {"band": [0.5, 1.0]}, "fill": "older"})
    with pytest.raises(ConfigError, match="SimCLR's negatives are the batch"):
        simclr_loss_func(torch.ones(4, 2), torch.arange(2).repeat(2), policy=policy)


def test_simclr_gradient_reaches_both_sides() -> None:
    z = unit(6, 4, seed=4, dtype=torch.float64).requires_grad_()
    indexes = torch.arange(3).repeat(2)
    assert torch.autograd.gradcheck(
        lambda x: simclr_loss_func(x, indexes, 0.5, policy=build({"keep": {"band": [0.5, 1]}})),
        (z,),
    )


# ---------------------------------------------------------------- what goes in


def test_lengths_that_do_not_go_together() -> None:
    query, key, queue = moco()
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


def test_simclr_takes_labels_by_the_name_that_moco_has() -> None:
    z, indexes = unit(8, 5), torch.arange(4).repeat(2)
    labels = torch.tensor([0, 0, 1, 1]).repeat(2)
    policy = build({"drop": {"label": "same"}})
    found = [
        simclr_loss_func(z, indexes, policy=policy, **{name: labels})
        for name in ("labels", "query_labels")
    ]
    assert found[0] == found[1]
    assert found[0] != simclr_loss_func(z, indexes)


@pytest.mark.parametrize("wrong", [{"keep": {"band": [0.5, 1]}}, "hardest_5", HARDEST.items()])
def test_a_policy_is_built_first(wrong: object) -> None:
    query, key, queue = moco()
    for call in (
        lambda: mocov2plus_loss_func(query, key, queue, policy=wrong),
        lambda: simclr_loss_func(query, torch.arange(5), policy=wrong),
    ):
        with pytest.raises(ConfigError, match=r"policy=.*negatives.build\(\{...\}\)"):
            call()


def test_an_infinite_temperature_is_none() -> None:
    query, key, queue = moco()
    with pytest.raises(ConfigError, match="temperature=inf"):
        mocov2plus_loss_func(query, key, queue, float("inf"))


def test_mixed_precision_is_the_widest() -> None:
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


def test_a_weight_of_nothing_is_an_absent_negative() -> None:
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


def test_unknown_classes_are_neither_the_same_nor_another() -> None:
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
def test_where_an_image_came_twice_the_numbers_of_negatives_differ(indexes: list[int]) -> None:
    seen: list[Pool] = []
    z, twice = unit(8, 5), torch.tensor(indexes).repeat(2)
    simclr_loss_func(z, twice, observe=seen.append)
    assert seen[-1].count is None
    expected = [8 - 2 * indexes.count(index) for index in indexes] * 2
    assert seen[-1].counts.tolist() == expected
    simclr_loss_func(z, torch.arange(4).repeat(2), observe=seen.append)
    assert seen[-1].count == 6
