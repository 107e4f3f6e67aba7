"""reweight and debias: they set the knobs of the formula, whose values the losses' tests check."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import Pool, available, build, full_pool


def pool_of() -> Pool:
    return full_pool(torch.tensor([[0.1, 0.5, -0.3]]))


@given(st.floats(0, 100), st.floats(0, 1, exclude_max=True))
def test_they_set_the_knobs_and_nothing_else(beta: float, tau_plus: float) -> None:
    pool = pool_of()
    assert (pool.beta, pool.tau_plus) == (0.0, 0.0)
    left = build({"reweight": {"beta": beta}, "debias": {"tau_plus": tau_plus}})(pool)
    assert (left.beta, left.tau_plus) == (beta, tau_plus)
    assert left.similarity is pool.similarity
    assert left.present is pool.present
    assert (left.count, left.notes, left.log_weight, left.dropped) == (3, {}, None, None)


def test_one_value_alone_is_the_argument() -> None:
    policy = build({"reweight": 1, "debias": 0.1})
    assert policy.config == {"reweight": {"beta": 1.0}, "debias": {"tau_plus": 0.1}}
    assert policy.needs == frozenset()


def test_hardness_adds_up_with_that_of_a_verb_above() -> None:
    above = Pool(**{**vars(pool_of()), "beta": 0.5, "tau_plus": 0.3})
    assert build({"reweight": 1.0})(above).beta == 1.5
    assert build({"reweight": 1.0})(above).tau_plus == 0.3
    assert build({"debias": 0.1})(above).tau_plus == 0.1
    assert build({"debias": 0.1})(above).beta == 0.5


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf, True, "1", [1.0], -1])
def test_impossible_beta(beta: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^negatives.reweight.beta=.*: must be a number from 0 up\. .*0 weighs all negatives",
    ):
        build({"reweight": {"beta": beta}})


@pytest.mark.parametrize("tau_plus", [-0.1, 1.0, 1, 2.0, math.nan, math.inf, False, "0.1"])
def test_impossible_tau_plus(tau_plus: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^negatives.debias.tau_plus=.*: must lie in \[0, 1\)\. It is the probability",
    ):
        build({"debias": {"tau_plus": tau_plus}})


@pytest.mark.parametrize("verb", ["reweight", "debias"])
def test_the_argument_may_not_be_left_out(verb: str) -> None:
    for nothing in ({}, {available()[verb].arguments[0]: None}):
        with pytest.raises(ConfigError, match=f"negatives.{verb}: missing a required argument"):
            build({verb: nothing})
