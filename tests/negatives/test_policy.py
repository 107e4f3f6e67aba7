"""From the config to a policy."""

from __future__ import annotations

import json

import pytest
import torch
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import EmptyBandError, build, full_pool


@pytest.mark.parametrize("nothing", [None, {}, OmegaConf.create({})])
def test_no_verbs_leave_all_negatives(nothing: object) -> None:
    policy = build(nothing)
    pool = full_pool(torch.zeros(2, 3))
    assert policy(pool) is pool
    assert policy.needs == frozenset()
    assert policy.reserve == 0.0


def test_a_config_with_interpolations() -> None:
    cfg = OmegaConf.create({"low": 0.95, "negatives": {"keep": {"band": ["${low}", 1.0]}}})
    assert build(cfg.negatives).config == {"keep": {"band": [0.95, 1.0]}}


def test_null_takes_a_verb_or_an_argument_out() -> None:
    policy = build({"drop": {"band": [0.9, 1.0], "label": None}, "fill": None})
    assert policy.config == {"drop": {"band": [0.9, 1.0]}}


@pytest.mark.parametrize("wrong", ["hardest_5", 3, [1]])
def test_what_is_no_mapping(wrong: object) -> None:
    with pytest.raises(ConfigError, match="must be a mapping of policies"):
        build(wrong)  # type: ignore[arg-type]


def test_needs_are_those_of_the_conditions() -> None:
    assert build({"drop": {"band": [0.9, 1.0]}}).needs == frozenset()
    assert build({"drop": {"label": "same"}}).needs == {"labels"}
    assert build({"drop": {"image": "same"}, "keep": {"label": "same"}}).needs == {
        "labels",
        "indexes",
    }


def test_reserve_is_the_fills() -> None:
    drop = {"drop": {"band": [0.9, 1.0]}}
    assert build(drop).reserve == 0.0
    assert build({**drop, "fill": "none"}).reserve == 0.0
    assert build({**drop, "fill": "older"}).reserve == 0.125
    assert build({**drop, "fill": {"kind": "older", "reserve": 0.5}}).reserve == 0.5


def text(config: dict) -> str:
    return json.dumps(build(config).config)


def test_equal_settings_have_equal_configs() -> None:
    one = text({"drop": {"band": [0, 1e0 / 2], "label": "same"}, "fill": "older"})
    for same in (
        {"drop": {"label": "same", "band": (0.0, 0.5)}, "fill": {"kind": "older"}},
        {"drop": {"band": [0, 0.5], "label": "same"}, "fill": {"reserve": 0.125, "kind": "older"}},
    ):
        assert text(same) == one
    others = [
        {"drop": {"band": [0, 0.5], "label": "different"}, "fill": "older"},
        {"drop": {"band": [0, 0.25], "label": "same"}, "fill": "older"},
        {"keep": {"band": [0, 0.5], "label": "same"}, "fill": "older"},
        {"drop": {"band": [0, 0.5], "label": "same"}},
        {"drop": {"band": [0, 0.5], "label": "same"}, "fill": {"kind": "older", "reserve": 0.5}},
    ]
    assert len({text(c) for c in others} | {one}) == 6


def test_the_order_of_verbs_is_part_of_the_config() -> None:
    drop, keep = {"drop": {"band": [0.8, 1.0]}}, {"keep": {"band": [0.5, 1.0]}}
    assert text(drop | keep) != text(keep | drop)


def test_a_policy_is_tried_before_the_run() -> None:
    narrow = build({"keep": {"band": [0.5, 0.51]}})
    assert narrow.fits(100)
    assert not narrow.fits(64)
    with pytest.raises(EmptyBandError, match="M=64"):
        narrow.check(64)
    build({"drop": {"label": "same", "band": [0.0, 0.999]}, "fill": "older"}).check(64)
    build({"keep": {"label": "same"}, "drop": {"image": "same"}}).check(1)
    nothing_left = build({"keep": {"band": [0.9, 1.0]}, "drop": {"band": [0.0, 1.0]}})
    with pytest.raises(EmptyBandError, match="drops all"):
        nothing_left.check(1000)
