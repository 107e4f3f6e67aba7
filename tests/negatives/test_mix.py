"""mix: which negatives are mixed, how they are drawn, and what comes out."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import BOTH, draws_of, moco, recorded_draws, unit
from torch import Tensor

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import Pool, TooFewNegativesError, build, full_pool, mix
from solo_hardneg.negatives import band as bands


def pool_of(n: int = 4, m: int = 9, d: int = 5, **more: Any) -> Pool:
    query, vectors = unit(n, d, seed=1), unit(m, d, seed=2)
    return full_pool(query @ vectors.T, query=query, vectors=vectors, **more)


def mixing(**arguments: Any) -> dict[str, Any]:
    return {"mix": arguments}


# ---------------------------------------------------------------- what comes out


@given(st.integers(1, 5), st.integers(2, 20), st.integers(0, 5), st.integers(0, 5), st.data())
def test_synthetic_negatives_by_plain_loops(
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


def test_synthetic_negatives_are_unit_vectors_between_the_two() -> None:
    """In the plane, at angles 0 (the query), 40° and 100°; half of the third is not among them."""
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
    assert bands.hardest(pool, 3).tolist() == [[1, 3, 2]]
    assert bands.hardest(pool, 5).tolist() == [[1, 3, 2, 0, 4]]
    some = pool.only(torch.tensor([[True, False, True, False, True]]))
    assert bands.hardest(some, 3).tolist() == [[2, 0, 4]]


def test_what_is_known_of_synthetic_negatives() -> None:
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


def test_older_keys_take_the_place_of_dropped_ones_beside_the_synthetic() -> None:
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


def test_queries_that_have_fewer_than_the_hardest() -> None:
    """The rows have 0, 1, 2 and 5 negatives left; 3 are to be mixed."""
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


def test_too_few_negatives_are_found_before_the_run() -> None:
    policy = build(mixing(hardest=10, pairs=4))
    state = torch.get_rng_state()
    policy.check(10)
    assert policy.fits(10)
    assert torch.equal(torch.get_rng_state(), state)  # trying it draws nothing
    assert not policy.fits(9)
    text = r"negatives.mix.hardest=10: there are only M=9 negatives.*Lower it.*a longer queue"
    with pytest.raises(TooFewNegativesError, match=text):
        policy.check(9)
    single = build(mixing(hardest=1, queries=2))(pool_of(m=1))
    assert single.present.tolist() == [[True] * 3] * 4


def test_a_pool_without_vectors_can_not_be_mixed() -> None:
    pool = full_pool(torch.zeros(1, 4))
    for known in ({}, {"query": torch.zeros(1, 2)}, {"vectors": torch.zeros(4, 2)}):
        with pytest.raises(ConfigError, match=r"^negatives.mix: needs the vectors.*query= and vec"):
            build(mixing(hardest=2, pairs=1))(full_pool(pool.similarity, **known))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": 1}, "negatives.mix: missing a required argument: 'hardest'"),
        ({"hardest": 4}, r"^negatives.mix makes nothing: .*both 0.*negatives.mix.pairs=8"),
        ({"hardest": 1, "pairs": 1}, "mix.hardest=1: .* at least 2. A pair is made of two differ"),
        ({"hardest": 0, "queries": 1}, "mix.hardest=0: must be a whole number of at least 1.$"),
        ({"hardest": 4, "pairs": -1, "queries": 2}, "mix.pairs=-1: .* of at least 0"),
        ({"hardest": 4, "pairs": 2, "queries": -1}, "mix.queries=-1: .* of at least 0"),
        ({"hardest": 4, "pairs": 2**20 + 1}, "mix.pairs=.* at most 1048576"),
        ({"hardest": 4, "pairs": 1, "detach": 1}, "mix.detach=1: must be true or false"),
    ],
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"mix": arguments})


# ---------------------------------------------------------------- drawing


def uniform(number: int, queries: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, queries, width, generator=generator)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 99))
def test_pairs_are_of_two_and_in_range(available: list[int], pairs: int, seed: int) -> None:
    first, second, alpha = mix.draw_pairs(
        torch.tensor(available), uniform(3, len(available), pairs, seed)
    )
    assert first.shape == second.shape == alpha.shape == (len(available), pairs)
    for count, a, b in zip(available, first, second, strict=True):
        assert 0 <= a.min() <= a.max() < max(count, 1)
        assert 0 <= b.min() <= b.max() < max(count, 1)
        if count > 1:
            assert (a != b).all()
    assert 0 <= alpha.min() <= alpha.max() < 1


def test_all_ordered_pairs_are_equally_likely() -> None:
    counts = [2, 3, 5]
    first, second, _ = mix.draw_pairs(torch.tensor(counts), uniform(3, 3, 20_000))
    for count, a, b in zip(counts, first.tolist(), second.tolist(), strict=True):
        seen = Counter(zip(a, b, strict=True))
        assert set(seen) == set(itertools.permutations(range(count), 2))
        expected = 20_000 / (count * (count - 1))
        assert all(abs(number - expected) < 5 * math.sqrt(expected) for number in seen.values())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def test_shares_are_uniform_and_independent() -> None:
    available = torch.full((4,), 50)
    first, second, alpha = mix.draw_pairs(available, uniform(3, 4, 5000, seed=1))
    partner, gamma = mix.draw_partners(available, uniform(2, 4, 5000, seed=2))
    for share, end in ((alpha, 1.0), (gamma, 0.5)):
        assert share.histc(10, 0, end).sub(2000).abs().max() < 250
        assert 0 <= share.min() < 0.001 * end
        assert 0.999 * end < share.max() < end
    for one, other in itertools.combinations((first, second, alpha), 2):
        assert abs(correlation(one, other)) < 0.04
    assert abs(correlation(partner, gamma)) < 0.03
    assert abs(correlation(alpha[0], alpha[1])) < 0.06  # each query draws for itself


def test_partners_are_in_range_and_equally_likely() -> None:
    first, gamma = mix.draw_partners(torch.tensor([0, 1, 4]), uniform(2, 3, 8000))
    assert first.shape == gamma.shape == (3, 8000)
    assert first[0].unique().tolist() == first[1].unique().tolist() == [0]
    assert (first[2].bincount() - 2000).abs().max() < 250


# ---------------------------------------------------------------- the source of randomness


def loss_and_state(seed: int) -> tuple[float, Tensor]:
    torch.manual_seed(seed)
    loss = mocov2plus_loss_func(*moco(), 0.2, policy=build(BOTH))
    return loss.item(), torch.get_rng_state()


def test_the_global_seed_decides() -> None:
    one, same, other = loss_and_state(1), loss_and_state(1), loss_and_state(2)
    assert one[0] == same[0] != other[0]
    torch.manual_seed(1)
    policy = build(BOTH)
    first, second = (mocov2plus_loss_func(*moco(), 0.2, policy=policy) for _ in range(2))
    assert first.item() == one[0] != second.item()


def test_each_step_has_a_source_of_its_own() -> None:
    seeds = {mix._generator(torch.device("cpu")).initial_seed() for _ in range(300)}
    assert len(seeds) == 300


def test_ranks_draw_differently_from_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rank in range(3):
        monkeypatch.setattr(mix, "get_rank", lambda rank=rank: rank)
        results.append(loss_and_state(1))
    assert len({loss for loss, _ in results}) == 3
    assert all(torch.equal(state, results[0][1]) for _, state in results)


def test_the_global_state_advances_alike_whatever_is_mixed() -> None:
    states = []
    for config in (BOTH, mixing(hardest=9, pairs=7), mixing(hardest=1, queries=1)):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        build(config)(pool_of())
        states.append(torch.get_rng_state())
        assert not torch.equal(states[-1], before)
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
