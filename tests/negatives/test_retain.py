"""``retain``: hardness of each key, and the order in which keys leave."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import PAIRS, unit

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import EmptyBandError, build, full_pool
from solo_hardneg.negatives.retain import Retain


def test_defaults() -> None:
    verb = Retain(1)
    assert (verb.strength, verb.band, verb.decay) == (1.0, (0.95, 1.0), 0.9)
    assert verb.chance == pytest.approx(0.05)
    assert Retain(0, [0.5, 0.9]).chance == pytest.approx(0.4)
    policy = build({"retain": 0.5})
    assert policy.config == {"retain": {"strength": 0.5, "band": [0.95, 1.0], "decay": 0.9}}
    assert policy.needs == {"queue"}
    assert policy.retains
    assert policy.retention.strength == 0.5


@given(st.integers(1, 5), st.integers(2, 30))
def test_hard_share_counts_queries(n: int, m: int) -> None:
    similarity = unit(n, 6, seed=m) @ unit(m, 6, seed=n).T
    pool = full_pool(similarity)
    left = build({"retain": {"strength": 1.0, "band": [0.5, 1.0]}})(pool)
    bands = [oracles.band(row, 0.5, 1.0) for row in similarity.tolist()]
    expected = [sum(j in band for band in bands) / n for j in range(m)]
    assert left.hard_share.tolist() == pytest.approx(expected)
    assert left.present is pool.present
    assert left.similarity is pool.similarity
    assert left.count == m


def test_synthetic_negatives_are_ranked_but_have_no_hard_share() -> None:
    query, vectors = unit(3, 5, seed=1), unit(8, 5, seed=2)
    pool = full_pool(query @ vectors.T, query=query, vectors=vectors)
    left = build(PAIRS | {"retain": {"strength": 1.0, "band": [0.5, 1.0]}})(pool)
    ranked = [oracles.band(row, 0.5, 1.0) for row in left.similarity.tolist()]
    expected = [sum(j in band for band in ranked) / 3 for j in range(8)]
    assert left.hard_share.tolist() == pytest.approx(expected)


def test_band_is_ranked_after_the_verbs_above() -> None:
    pool = full_pool(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]))
    config = {"drop": {"band": [0.75, 1.0]}, "retain": {"strength": 1.0, "band": [0.67, 1.0]}}
    assert build(config)(pool).hard_share.tolist() == [0.0, 0.5, 0.5, 0.0]
    assert pool.hard_share is None


def test_empty_band_is_refused() -> None:
    with pytest.raises(EmptyBandError, match=r"^negatives.retain.band=\[0.5, 0.6\]: .*M=4"):
        build({"retain": {"strength": 1.0, "band": [0.5, 0.6]}}).check(4)


def test_score_is_a_moving_average() -> None:
    verb = Retain(1.0, decay=0.75)
    scores = verb.average(torch.tensor([0.0, 0.4]), torch.tensor([0.1, 0.0]))
    torch.testing.assert_close(scores, torch.tensor([0.025, 0.3]))
    last = Retain(1.0, decay=0.0).average(torch.tensor([0.3, 0.3]), torch.tensor([0.06, 0.04]))
    torch.testing.assert_close(last, torch.tensor([0.06, 0.04]))


def test_average_score_is_chance_whatever_the_verbs_above_drop() -> None:
    """Negatives that ``keep`` drops are never ranked; the shares of the others are scaled."""
    torch.manual_seed(0)
    query, vectors = (torch.nn.functional.normalize(torch.randn(n, 16), dim=1) for n in (64, 512))
    pool = full_pool(query @ vectors.T, query=query, vectors=vectors)
    retain = {"retain": {"strength": 1.0, "decay": 0.0}}
    for above in ({}, {"keep": {"band": [0.5, 1.0]}}, {"keep": {"band": [0.9, 1.0]}}):
        policy = build({**above, **retain})
        left = policy(pool)
        scores = policy.retention.average(torch.zeros(512), left.hard_share)
        assert scores.mean().item() == pytest.approx(policy.retention.chance)
    nothing = policy.retention.average(torch.full((3,), 0.05), torch.zeros(3))
    assert nothing.tolist() == [0.0] * 3


def test_effective_age() -> None:
    """Scores 0, 0.5, 1, 1.5 and 2 times chance p = 0.5, for L = 10."""
    scores = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    age = torch.full((5,), 7.0, dtype=torch.float64)
    found = Retain(1.0, [0.5, 1.0]).effective_age(age, scores, 10)
    assert found.tolist() == [17, 12, 7, 2, -3]
    assert Retain(0.5, [0.5, 1.0]).effective_age(age, scores, 10).tolist() == [12, 9.5, 7, 4.5, 2]
    assert Retain(0, [0.5, 1.0]).effective_age(age, scores, 10).tolist() == [7] * 5
    rare = Retain(1.0, [0.75, 1.0]).effective_age(age, scores, 10)
    assert rare.tolist() == [17, 7, -3, -3, -3]  # more than twice chance counts as twice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1}, "^negatives.retain.strength=-1: must be a number from 0 up. 1 lets the"),
        ({}, "missing a required argument: 'strength'"),
        ({"strength": 1, "band": [0.9, 0.1]}, "negatives.retain.band=.*upside down"),
        ({"strength": 1, "band": [0, 1]}, r"retain.band=\[0, 1\]: holds all .* hardest 5 %"),
        ({"strength": 1, "decay": 1}, r"negatives.retain.decay=1.*: must lie in \[0, 1\)"),
        ({"strength": 1, "decay": -0.1}, "negatives.retain.decay=-0.1"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"retain": arguments})
