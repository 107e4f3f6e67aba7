"""The formulas of ``mix`` against plain loops and closed forms, and its random numbers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import BOTH, SIX_KINDS, moco, unit
from mix_helpers import mixing, pool_of
from torch import Tensor

from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import build, full_pool, mix, synthesis
from solo_hardneg.negatives.ranks import hardest_columns


@contextmanager
def recorded_numbers() -> Iterator[list[synthesis.RandomNumbers]]:
    """Collects the random numbers drawn in the block."""
    seen: list[synthesis.RandomNumbers] = []
    draw = mix.Mix.draw_numbers

    def recording(self: mix.Mix, query: Tensor) -> synthesis.RandomNumbers:
        seen.append(draw(self, query))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix.Mix, "draw_numbers", recording)
        yield seen


# ---------------------------------------------------------------- formulas


@given(st.integers(1, 4), st.integers(2, 9), st.data())
def test_six_kinds_equal_plain_loops(n: int, m: int, data: st.DataObject) -> None:
    count = st.integers(0, 3)
    beyond, noise, toward, adversarial = (data.draw(count) for _ in range(4))
    if beyond + noise + toward + adversarial == 0:
        return
    hardest, sigma, delta, eta = data.draw(st.integers(1, m)), 0.3, 0.2, 0.1
    policy = build(
        mixing(
            hardest=hardest,
            beyond=beyond,
            noise={"count": noise, "sigma": sigma},
            toward={"count": toward, "step": delta},
            adversarial={"count": adversarial, "step": eta},
        )
    )
    query, vectors = unit(n, 6, seed=m, dtype=torch.float64), unit(m, 6, dtype=torch.float64)
    with recorded_numbers() as drawn:
        mixed = policy(full_pool(query @ vectors.T, query=query, vectors=vectors))
    (numbers,) = drawn
    for i, q in enumerate(query.tolist()):
        order = sorted(range(m), key=lambda j, q=q: (oracles.dot(q, vectors[j].tolist()), j))
        sources = [vectors[j].tolist() for j in order[::-1][:hardest]]

        def source(kind: str, k: int, i: int = i, own: list[Any] = sources) -> list[float]:
            return own[int(float(numbers.uniform[kind][0, i, k]) * len(own))]

        made = []
        for k in range(beyond):
            beta = 1 + float(numbers.uniform["beyond"][1, i, k]) / 2
            made.append([x + beta * (y - x) for x, y in zip(q, source("beyond", k), strict=True)])
        for k in range(noise):
            errors = [sigma * float(x) for x in numbers.normal[i, k]]
            made.append([y + e for y, e in zip(source("noise", k), errors, strict=True)])
        for k in range(toward):
            made.append([y + delta * x for x, y in zip(q, source("toward", k), strict=True)])
        for k in range(adversarial):
            signs = [math.copysign(1, x) for x in q]
            pairs = zip(signs, source("adversarial", k), strict=True)
            made.append([y + eta * x for x, y in pairs])
        expected = [oracles.dot(q, h) / math.sqrt(oracles.dot(h, h)) for h in made]
        assert mixed.similarity[i, m:].tolist() == pytest.approx(expected, abs=1e-6)


def test_difficulty_of_the_kinds() -> None:
    """Closed forms for sources of similarity 0.6 in 128 dimensions."""
    query = torch.zeros(1, 128, dtype=torch.float64)
    query[0] = 1 / math.sqrt(128)
    other = torch.ones(128, dtype=torch.float64)
    other[64:] = -1
    source = 0.6 * query + 0.8 * other / math.sqrt(128)
    pool = full_pool(query @ source.T, query=query, vectors=source)

    def mean(**arguments: Any) -> float:
        return float(build(mixing(hardest=1, **arguments))(pool).similarity[0, 1:].mean())

    many = {"count": 3000}
    assert mean(queries=3000) == pytest.approx(0.75, abs=0.01)
    assert mean(beyond=3000) == pytest.approx(0.45, abs=0.01)
    assert mean(noise=many) == pytest.approx(0.596, abs=0.003)
    assert mean(noise={**many, "sigma": 0.1}) == pytest.approx(0.40, abs=0.01)
    assert mean(toward=1) == pytest.approx(0.61 / math.sqrt(1 + 0.012 + 1e-4), abs=1e-9)
    step = 0.01 * math.sqrt(128)
    expected = (0.6 + step) / math.sqrt(1 + 1.2 * step + step**2)
    assert mean(adversarial=1) == pytest.approx(expected, abs=1e-9)


def test_noise_differs_between_queries_and_negatives() -> None:
    numbers = build(mixing(hardest=1, noise=4)).verbs["mix"].draw_numbers(unit(3, 5))
    assert len({float(x) for x in numbers.normal.flatten()}) == 3 * 4 * 5


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_six_kinds(detach: bool) -> None:
    """Of constants it is their sum; else it equals finite differences."""
    verb = build(mixing(**SIX_KINDS, detach=detach)).verbs["mix"]
    query, vectors = unit(3, 4, dtype=torch.float64), unit(6, 4, seed=1, dtype=torch.float64)
    numbers, counts = verb.draw_numbers(query), torch.full((3,), 6)
    columns = hardest_columns(full_pool(query @ vectors.T), 5)

    def similarity(q: Tensor, v: Tensor) -> Tensor:
        return verb.synthesize(q, v, columns, counts, numbers)[0]

    if not detach:
        leaves = query.clone().requires_grad_(), vectors.clone().requires_grad_()
        assert torch.autograd.gradcheck(similarity, leaves)
        return
    query.requires_grad_()
    (first,) = torch.autograd.grad(similarity(query, vectors).sum(), query)
    # The similarity to a constant is linear: its gradient times the query is the similarity.
    assert torch.allclose((first * query).sum(1), similarity(query, vectors).sum(1))
    jacobian = torch.autograd.functional.jacobian(lambda q: similarity(q, vectors), query)
    made = torch.stack([jacobian[i, :, i] for i in range(3)])  # (n, k, D)
    assert torch.allclose(made.norm(dim=2), torch.ones(3, 13, dtype=torch.float64))


# ---------------------------------------------------------------- random draws


def uniform(number: int, queries: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, queries, width, generator=generator)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 99))
def test_pairs_are_distinct_and_in_range(available: list[int], pairs: int, seed: int) -> None:
    first, second, alpha = synthesis.draw_pairs(
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
    first, second, _ = synthesis.draw_pairs(torch.tensor(counts), uniform(3, 3, 20_000))
    for count, a, b in zip(counts, first.tolist(), second.tolist(), strict=True):
        seen = Counter(zip(a, b, strict=True))
        assert set(seen) == set(itertools.permutations(range(count), 2))
        expected = 20_000 / (count * (count - 1))
        assert all(abs(number - expected) < 5 * math.sqrt(expected) for number in seen.values())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def test_coefficients_are_uniform_and_independent() -> None:
    available = torch.full((4,), 50)
    first, second, alpha = synthesis.draw_pairs(available, uniform(3, 4, 5000, seed=1))
    partner, gamma = synthesis.draw_partners(available, uniform(2, 4, 5000, seed=2))
    for share, end in ((alpha, 1.0), (gamma, 0.5)):
        assert share.histc(10, 0, end).sub(2000).abs().max() < 250
        assert 0 <= share.min() < 0.001 * end
        assert 0.999 * end < share.max() < end
    for one, other in itertools.combinations((first, second, alpha), 2):
        assert abs(correlation(one, other)) < 0.04
    assert abs(correlation(partner, gamma)) < 0.03
    assert abs(correlation(alpha[0], alpha[1])) < 0.06  # independent between queries


def test_partners_are_in_range_and_equally_likely() -> None:
    first, gamma = synthesis.draw_partners(torch.tensor([0, 1, 4]), uniform(2, 3, 8000))
    assert first.shape == gamma.shape == (3, 8000)
    assert first[0].unique().tolist() == first[1].unique().tolist() == [0]
    assert (first[2].bincount() - 2000).abs().max() < 250


# ---------------------------------------------------------------- random state


def loss_and_state(seed: int) -> tuple[float, Tensor]:
    torch.manual_seed(seed)
    loss = mocov2plus_loss_func(*moco(), 0.2, policy=build(BOTH))
    return loss.item(), torch.get_rng_state()


def test_the_global_seed_determines_the_draws() -> None:
    one, same, other = loss_and_state(1), loss_and_state(1), loss_and_state(2)
    assert one[0] == same[0] != other[0]
    torch.manual_seed(1)
    policy = build(BOTH)
    first, second = (mocov2plus_loss_func(*moco(), 0.2, policy=policy) for _ in range(2))
    assert first.item() == one[0] != second.item()


def test_each_step_has_another_seed() -> None:
    seeds = {synthesis._generator(torch.device("cpu")).initial_seed() for _ in range(300)}
    assert len(seeds) == 300


def test_ranks_draw_differently_from_equal_state(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rank in range(3):
        monkeypatch.setattr(synthesis, "get_rank", lambda rank=rank: rank)
        results.append(loss_and_state(1))
    assert len({loss for loss, _ in results}) == 3
    assert all(torch.equal(state, results[0][1]) for _, state in results)


def test_global_state_advances_equally_for_all_arguments() -> None:
    states = []
    for config in (BOTH, mixing(hardest=9, pairs=7), mixing(hardest=1, queries=1)):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        build(config)(pool_of())
        states.append(torch.get_rng_state())
        assert not torch.equal(states[-1], before)
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
