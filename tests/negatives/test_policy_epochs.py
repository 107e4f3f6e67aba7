"""Policies that change during training, and the normal form of their config."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import (
    EmptyBandError,
    Policy,
    TooFewNegativesError,
    build,
    full_pool,
)


def line(start: float, end: float, *epochs: float, curve: str = "linear") -> dict[str, Any]:
    return {"from": start, "to": end, "epochs": list(epochs), "curve": curve}


def values(policy: Policy) -> dict[str, Any]:
    """Numeric arguments of the verbs of this epoch."""
    names = ("band", "beta", "tau_plus", "hardest", "pairs", "strength")
    return {
        f"{verb}.{name}": vars(made)[name]
        for verb, made in policy.verbs.items()
        for name in names
        if vars(made).get(name) is not None
    }


def test_any_number_may_be_a_schedule() -> None:
    policy = build(
        {
            "keep": {"band": [line(0.0, 0.8, 0, 10), 1.0]},
            "drop": {"band": [0.9, line(1.0, 0.95, 0, 10)]},
            "mix": {"hardest": line(4, 14, 0, 10), "pairs": line(2, 4, 0, 10, curve="cosine")},
            "reweight": line(0, 1, 5, 10),
            "debias": {"tau_plus": line(0.2, 0.1, 0, 10)},
            "retain": {"strength": line(0, 1, 0, 20)},
        }
    )
    assert policy.changes
    assert values(policy) == values(policy.at(0)) == {
        "keep.band": (0.0, 1.0),
        "drop.band": (0.9, 1.0),
        "mix.hardest": 4,
        "mix.pairs": 2,
        "reweight.beta": 0.0,
        "debias.tau_plus": 0.2,
        "retain.band": (0.95, 1.0),
        "retain.strength": 0.0,
    }  # fmt: skip
    later = values(policy.at(7.5))
    assert later["keep.band"] == (pytest.approx(0.6), 1.0)
    assert later["drop.band"] == (0.9, pytest.approx(0.9625))
    assert later["reweight.beta"] == pytest.approx(0.5)
    assert later["debias.tau_plus"] == pytest.approx(0.125)
    assert later["retain.strength"] == pytest.approx(0.375)
    assert values(policy.at(99))["keep.band"] == (0.8, 1.0)
    assert list(policy.at(7.5).verbs) == list(policy.config)


def test_constant_policy_is_one_object_in_all_epochs() -> None:
    policy = build({"keep": {"band": [0.5, 1.0], "from_epoch": 0}})
    assert not policy.changes
    assert policy.at(7.5) is policy


def test_schedules_of_integers_are_rounded() -> None:
    policy = build(
        {"mix": {"hardest": line(2, 12, 0, 10), "pairs": 1, "queries": line(0, 3, 0, 9)}}
    )
    found = [policy.at(e).verbs["mix"] for e in (0, 0.4, 0.6, 4.0, 4.6, 10)]
    assert [verb.hardest for verb in found] == [2, 2, 3, 6, 7, 12]
    assert [verb.queries for verb in found] == [0, 0, 0, 1, 2, 3]
    assert all(isinstance(verb.hardest, int) for verb in found)


def test_at_returns_another_policy() -> None:
    policy = build({"reweight": line(0, 1, 0, 10)})
    then = policy.at(5)
    assert (policy.epoch, then.epoch) == (0.0, 5)
    assert (policy.verbs["reweight"].beta, then.verbs["reweight"].beta) == (0.0, 0.5)
    assert then.config == policy.config
    assert then.at(5) is then
    assert then.at(0).verbs["reweight"].beta == 0.0
    assert repr(then) == repr(policy) == f"Policy({json.dumps(policy.config)})"


ARGUMENTS = {
    "keep": {"band": [0.5, 1.0]},
    "drop": {"band": [0.9, 1.0]},
    "mix": {"hardest": 4, "pairs": 2},
    "reweight": {"beta": 1.0},
    "debias": {"tau_plus": 0.1},
    "retain": {"strength": 1.0},
}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_every_verb_may_start_late_and_end_early(verb: str) -> None:
    policy = build({verb: ARGUMENTS[verb] | {"from_epoch": 1, "until_epoch": 3}})
    assert policy.changes
    assert [list(policy.at(e).verbs) for e in (0, 0.99, 1, 2.99, 3, 9)] == (
        [[], [], [verb], [verb], [], []]
    )
    assert policy.config[verb]["from_epoch"] == 1.0
    pool = full_pool(torch.rand(1, 8), query=torch.ones(1, 1), vectors=torch.ones(8, 1))
    assert policy(pool) is policy.at(3)(pool) is pool
    assert policy.at(1)(pool) is not pool


def test_single_schedule_with_epochs_beside_it() -> None:
    policy = build({"reweight": line(0, 1, 0, 10) | {"from_epoch": 5}})
    assert policy.config == {"reweight": {"beta": line(0, 1, 0, 10), "from_epoch": 5.0}}
    assert policy.at(4).verbs == {}
    assert policy.at(5).verbs["reweight"].beta == 0.5


def test_needs_and_reserve_are_those_of_all_epochs() -> None:
    late = {"from_epoch": 5}
    drop = {"drop": {"band": [0.9, 1.0]}}
    assert build({"drop": {"label": "same"} | late}).needs == {"labels"}
    policy = build(drop | {"fill": {"kind": "older", "reserve": line(0.5, 0.25, 0, 4)} | late})
    assert policy.needs == {"queue"}
    assert policy.reserve == 0.5
    assert policy.at(9).reserve == 0.5
    assert (
        build(drop | {"fill": {"kind": "older", "reserve": line(0.25, 0.5, 0, 4)}}).reserve == 0.5
    )
    retain = build({"retain": {"strength": 1.0} | late})
    assert retain.needs == {"queue"}
    assert retain.retains
    assert retain.retention is None
    assert retain.at(5).retention.strength == 1.0
    assert (build(drop).needs, build(drop).reserve) == (frozenset(), 0.0)
    assert build(drop | {"fill": "none"}).needs == frozenset()
    assert build(drop | {"fill": "none"}).reserve == 0.0
    assert not build(drop).retains
    assert build(drop).retention is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        # Valid at both ends, upside down between them.
        (
            {"keep": {"band": [line(0, 0.9, 0, 1), line(0.05, 0.95, 0, 1, curve="cosine")]}},
            "negatives.keep.band=.*upside down",
        ),
        ({"keep": {"band": [line(0, 0.6, 0, 4), line(0.5, 1, 4, 8)]}}, "keep.band=.*upside down"),
        ({"debias": line(0.0, 1.0, 0, 4)}, r"debias.tau_plus=1.0: must lie in \[0, 1\)"),
        ({"mix": {"hardest": line(4, 1, 3, 4), "pairs": 2}}, "mix.hardest=1: .*at least 2"),
        ({"reweight": {"beta": 1, "until_epoch": 0}}, "reweight.until_epoch=0: leaves no"),
        ({"keep": {"band": [0.5, 1], "from_epochs": 1}}, "'from_epochs'. Did you mean 'from_ep"),
        ({"reweight": {"beta": 1, "x": 1}}, "unknown argument 'x'.*beta, from_epoch, until_epoch"),
        ({"reweight": {"from": 1}}, "negatives.reweight.beta=.*lacks 'to'"),
    ],
)
def test_values_invalid_in_some_epoch_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config)


def test_check_covers_all_epochs() -> None:
    narrow = build({"keep": {"band": [line(0, 0.5, 0, 10), 0.51]}})
    narrow.check(100)
    with pytest.raises(EmptyBandError, match="M=64"):
        narrow.check(64)
    assert narrow.fits(64)  # in this epoch
    assert not narrow.at(10).fits(64)
    late = build({"mix": {"hardest": 65, "pairs": 1, "from_epoch": 9}})
    assert late.fits(64)
    with pytest.raises(TooFewNegativesError, match="hardest=65.*M=64"):
        late.check(64)


# ---------------------------------------------------------------- normal form


CONFIGS: list[dict[str, Any]] = [
    {
        "drop": {"label": "different", "until_epoch": 12},
        "keep": {"band": (0.25, 1), "label": "same", "from_epoch": 3},
        "mix": {"hardest": 8, "pairs": line(0, 4, 0, 9), "queries": 2.0, "detach": False},
        "reweight": {"from": 1, "to": 2.5, "epochs": [0, 20]},
    },
    {"debias": 0, "retain": {"strength": line(0, 3, 2, 30, curve="cosine"), "band": [0.5, 1]}},
    {"keep": {"band": [line(0, 0.4, 1, 21), 1]}, "reweight": 2, "mix": {"hardest": 4, "pairs": 1}},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_config_is_in_normal_form(config: dict[str, Any]) -> None:
    policy = build(config)
    again = build(policy.config)
    assert json.dumps(again.config) == json.dumps(policy.config)
    assert build(OmegaConf.create(config)).config == policy.config
    assert list(policy.config) == list(config)
    assert not re.search(r"[ \[]\d+[,\]}]", json.dumps(policy.config))  # no int
    for epoch in (0, 9.5, 15, 25, 100):
        assert values(again.at(epoch)) == values(policy.at(epoch))


def test_number_of_synthetic_negatives_may_start_at_zero() -> None:
    config = {"mix": {"hardest": 4, "pairs": {"from": 0, "to": 4, "epochs": [0, 4]}}}
    policy = build(config)
    policy.check(8)
    query = torch.nn.functional.normalize(torch.ones(1, 2), dim=1)
    vectors = torch.nn.functional.normalize(torch.randn(8, 2), dim=1)
    pool = full_pool(query @ vectors.T, query=query, vectors=vectors)
    assert policy(pool) is pool
    assert [int(policy.at(e)(pool).counts) - 8 for e in (1, 2.4, 2.6, 9)] == [1, 2, 3, 4]
    config["mix"]["pairs"]["to"] = 0
    with pytest.raises(ConfigError, match="negatives.mix makes nothing"):
        build(config)


def test_moving_band_that_is_empty_on_its_way_is_refused() -> None:
    # Of 12 negatives, [0.01, 0.09] and [0.06, 0.14] hold one, and [0.02, 0.0833] holds none.
    sliding = build({"keep": {"band": [line(0.01, 0.91, 0, 8), line(0.09, 0.99, 0, 8)]}})
    with pytest.raises(
        EmptyBandError, match=r"keep.band=\[0.01, 0.09\] at epoch 0: moves, .*M=12 .*1/M = 0.083"
    ):
        sliding.check(12)
    sliding.check(13)
    below = build({"drop": {"band": [0.5, 1.0]}, **{"keep": sliding.config["keep"]}})
    with pytest.raises(EmptyBandError, match="M=12 "):
        below.check(24)
    below.check(26)
    build({"keep": {"band": [0.01, 0.09]}}).check(12)  # does not move, and holds one


def test_moving_band_that_ends_at_the_hardest_is_accepted() -> None:
    count = 14
    curriculum = build({"keep": {"band": [line(0.0, 0.95, 0, 8), 1.0]}})
    curriculum.check(count)
    pool = full_pool(torch.arange(count)[None, :] / count)
    assert all(curriculum.at(e / 7)(pool).counts >= 1 for e in range(60))
    build({"retain": {"strength": line(0, 1, 0, 8)}}).check(20)
    shrinking = build({"keep": {"band": [0.0, line(1.0, 0.05, 0, 8)]}})
    shrinking.check(20)
    with pytest.raises(EmptyBandError, match="moves, and is so narrow"):
        shrinking.check(18)
