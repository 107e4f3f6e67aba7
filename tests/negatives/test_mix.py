"""``mix``: the pool it leaves, and its arguments."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import draws_of, moco, recorded_draws, unit
from mix_helpers import mixing, pool_of

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import Pool, TooFewNegativesError, build, full_pool
from solo_hardneg.negatives.ranks import hardest_columns

# ---------------------------------------------------------------- synthetic negatives


@given(st.integers(1, 5), st.integers(2, 20), st.integers(0, 5), st.integers(0, 5), st.data())
def test_synthetic_negatives_equal_plain_loops(
    n: int, m: int, pairs: int, queries: int, data: st.DataObject
) -> None:
    if pairs + queries == 0:
        return
    hardest = data.draw(st.integers(2, m))
    query, vectors = unit(n, 6, seed=m, dtype=torch.float64), unit(m, 6, dtype=torch.float64)
    pool = full_pool(query @ vectors.T, query=query, vectors=vectors)
    with recorded_draws() as seen:
        mixed = build(mixing(hardest=hardest, pairs=pairs, queries=queries))(pool)
    for i in range(n):
        left = oracles.leave(
            mixing(hardest=hardest),
            query[i].tolist(),
            vectors.tolist(),
            range(m),
            draws_of(seen, i),
        )
        assert mixed.similarity[i].tolist() == pytest.approx(left.negatives, abs=1e-12)
    assert mixed.present.all()
    assert mixed.count == m + pairs + queries
    assert mixed.notes["synthetic"].tolist() == [pairs + queries] * n
    assert mixed.notes["mix_short"].tolist() == [0.0] * n


def test_synthetic_negatives_lie_between_their_sources() -> None:
    """In the plane: the query at 0°, negatives at 40°, 100° and 170°, of which two are mixed."""
    angles = torch.tensor([40.0, 100.0, 170.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1).double()
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    pool = full_pool(query @ vectors.T, query=query, vectors=vectors)
    made = build(mixing(hardest=2, pairs=500))(pool).similarity[:, 3:].acos().rad2deg()
    assert 40 <= made.min() < 42
    assert 98 < made.max() <= 100
    second = build(mixing(hardest=1, queries=500))(pool).similarity[:, 3:].acos().rad2deg()
    assert 20 <= second.min() < 21  # halfway to the query
    assert 39 < second.max() <= 40


def test_ties_among_the_hardest_break_as_in_bands() -> None:
    pool = full_pool(torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]]))
    assert hardest_columns(pool, 3).tolist() == [[1, 3, 2]]
    assert hardest_columns(pool, 5).tolist() == [[1, 3, 2, 0, 4]]
    some = pool.only(torch.tensor([[True, False, True, False, True]]))
    assert hardest_columns(some, 3).tolist() == [[2, 0, 4]]


def test_attributes_of_synthetic_negatives() -> None:
    pool = pool_of(
        n=2,
        m=4,
        labels=torch.tensor([0, 1, 0, 1]),
        query_labels=torch.tensor([0, 1]),
        indexes=torch.arange(4),
        query_indexes=torch.tensor([0, 1]),
        age=torch.tensor([3, 2, 1, 0]),
        reserve=torch.ones(2, 4, dtype=torch.bool),
        log_weight=torch.ones(2, 4),
        dropped=torch.tensor([5, 6]),
    ).note(earlier=torch.ones(2))
    mixed = build(mixing(hardest=2, pairs=1, queries=2))(pool)
    assert mixed.labels.tolist() == [0, 1, 0, 1, -1, -1, -1]
    assert mixed.indexes.tolist() == [0, 1, 2, 3, -1, -1, -1]
    assert mixed.age.tolist() == [3, 2, 1, 0, 0, 0, 0]
    assert mixed.reserve.tolist() == [[True] * 4 + [False] * 3] * 2
    assert mixed.log_weight.tolist() == [[1.0] * 4 + [0.0] * 3] * 2
    assert mixed.dropped.tolist() == [5, 6]
    assert set(mixed.notes) == {"earlier", "synthetic", "mix_short"}
    assert torch.equal(mixed.similarity[:, :4], pool.similarity)
    assert mixed.vectors is pool.vectors
    assert not mixed.same_class()[:, 4:].any()
    assert not mixed.same_image()[:, 4:].any()
    bare = build(mixing(hardest=2, pairs=1))(pool_of())
    for name in ("labels", "indexes", "age", "reserve", "log_weight", "dropped"):
        assert getattr(bare, name) is None


def test_fill_below_mix() -> None:
    query, key, queue = moco(n=3, m=12)
    config = {"drop": {"band": [0.5, 1.0]}, "mix": {"hardest": 2, "pairs": 3}, "fill": "older"}
    pools: list[Pool] = []
    mocov2plus_loss_func(
        query,
        key,
        queue,
        policy=build(config),
        queue_age=torch.arange(12),
        queue_size=4,
        observe=pools.append,
    )
    assert pools[0].present[:, :4].sum(dim=1).tolist() == [2] * 3
    assert pools[0].notes["filled"].tolist() == pools[0].present[:, 4:12].sum(1).tolist()
    assert pools[0].present[:, 12:].all()


def test_queries_with_fewer_negatives_than_hardest() -> None:
    """Rows with 0, 1, 2 and 5 negatives; ``hardest`` is 3."""
    left = torch.tensor([[j < c for j in range(9)] for c in (0, 1, 2, 5)])
    config = mixing(hardest=3, pairs=2, queries=1)
    mixed = build(config)(pool_of().only(left))
    assert mixed.count is None
    assert mixed.notes["mix_short"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert mixed.notes["synthetic"].tolist() == [0.0, 1.0, 3.0, 3.0]
    assert mixed.notes["synthetic"].dtype == mixed.notes["mix_short"].dtype == torch.float32
    none, one, all_three = [False] * 3, [False, False, True], [True] * 3
    assert mixed.present[:, 9:].tolist() == [none, one, all_three, all_three]
    nothing = build(config)(pool_of().only(torch.zeros(4, 9).bool()))
    assert nothing.counts.tolist() == [0] * 4


def test_check_refuses_too_few_negatives() -> None:
    policy = build(mixing(hardest=10, pairs=4))
    state = torch.get_rng_state()
    policy.check(10)
    assert policy.fits(10)
    assert torch.equal(torch.get_rng_state(), state)  # a dry run draws nothing
    assert not policy.fits(9)
    text = r"negatives.mix.hardest=10: there are only M=9 negatives.*Lower it.*a longer queue"
    with pytest.raises(TooFewNegativesError, match=text):
        policy.check(9)
    single = build(mixing(hardest=1, queries=2))(pool_of(m=1))
    assert single.present.tolist() == [[True] * 3] * 4


def test_pool_without_vectors_is_refused() -> None:
    pool = full_pool(torch.zeros(1, 4))
    for known in ({}, {"query": torch.zeros(1, 2)}, {"vectors": torch.zeros(4, 2)}):
        with pytest.raises(ConfigError, match=r"^negatives.mix: needs the vectors.*query= and vec"):
            build(mixing(hardest=2, pairs=1))(full_pool(pool.similarity, **known))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": 1}, "negatives.mix: missing a required argument: 'hardest'"),
        ({"hardest": 4}, r"^negatives.mix makes nothing: .* are 0.*negatives.mix.pairs=8"),
        ({"hardest": 1, "pairs": 1}, "mix.hardest=1: .* at least 2. A pair is made of two differ"),
        ({"hardest": 0, "queries": 1}, "mix.hardest=0: must be a whole number of at least 1.$"),
        ({"hardest": 4, "pairs": -1, "queries": 2}, "mix.pairs=-1: .* of at least 0"),
        ({"hardest": 4, "pairs": 2, "queries": -1}, "mix.queries=-1: .* of at least 0"),
        ({"hardest": 4, "pairs": 2**20 + 1}, "mix.pairs=.* at most 1048576"),
        ({"hardest": 4, "pairs": 1, "detach": 1}, "mix.detach=1: must be true or false"),
        ({"hardest": 4, "noise": {"count": 1, "sigma": -0.1}}, "mix.noise.sigma=-0.1: must be a"),
        ({"hardest": 4, "noise": {"count": 1, "step": 0.1}}, "mix.noise: unknown argument 'step'"),
        ({"hardest": 4, "toward": {"count": 0.5}}, "mix.toward.count=0.5: must be a whole number"),
        ({"hardest": 4, "adversarial": -1}, "mix.adversarial.count=-1: .* of at least 0"),
        ({"beyond": 1}, "negatives.mix: missing a required argument: 'hardest'"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"mix": arguments})


def test_arguments_of_kinds_are_left_out_by_default() -> None:
    """So policies of before these kinds keep their identity."""
    assert set(build(mixing(hardest=4, pairs=1)).config["mix"]) == {
        *("hardest", "pairs", "queries", "detach")
    }


def test_counts_and_numbers_of_kinds_may_be_schedules() -> None:
    moving = {"from": 0, "to": 3, "epochs": [0, 9]}
    policy = build(mixing(hardest=4, beyond=moving, noise={"count": moving, "sigma": moving}))
    verb = policy.at(4.6).verbs["mix"]
    assert (verb.beyond, verb.noise, verb.sigma) == (2, 2, pytest.approx(4.6 / 3))
