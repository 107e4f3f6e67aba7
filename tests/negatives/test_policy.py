"""Policies built from the config."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from solo_hardneg import negatives
from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import (
    EmptyBandError,
    Pool,
    TooFewNegativesError,
    build,
    full_pool,
    register,
)


def test_no_verbs_leave_all_negatives() -> None:
    pool = full_pool(torch.zeros(2, 3))
    for nothing in (None, {}, OmegaConf.create({})):
        policy = build(nothing)
        assert policy(pool) is pool
        assert (policy.needs, policy.reserve) == (frozenset(), 0.0)


def test_null_leaves_out_a_verb_or_an_argument() -> None:
    policy = build({"drop": {"band": [0.9, 1.0], "label": None}, "fill": None})
    assert policy.config == {"drop": {"band": [0.9, 1.0]}}


def test_config_must_be_a_mapping() -> None:
    text = "negatives='hardest_5': must be a mapping of verbs.*negatives=hardest_5 on the comm"
    with pytest.raises(ConfigError, match=text):
        build("hardest_5")  # type: ignore[arg-type]


def config_text(config: dict) -> str:
    return json.dumps(build(config).config)


def test_equal_settings_have_equal_configs() -> None:
    one = config_text({"drop": {"band": [0, 1e0 / 2], "label": "same"}, "fill": "older"})
    for same in (
        {"drop": {"label": "same", "band": (0.0, 0.5)}, "fill": {"kind": "older"}},
        {"drop": {"band": [0, 0.5], "label": "same"}, "fill": {"reserve": 0.125, "kind": "older"}},
    ):
        assert config_text(same) == one
    others = [
        {"drop": {"band": [0, 0.5], "label": "different"}, "fill": "older"},
        {"drop": {"band": [0, 0.25], "label": "same"}, "fill": "older"},
        {"keep": {"band": [0, 0.5], "label": "same"}, "fill": "older"},
        {"drop": {"band": [0, 0.5], "label": "same"}},
        {"drop": {"band": [0, 0.5], "label": "same"}, "fill": {"kind": "older", "reserve": 0.5}},
    ]
    assert len({config_text(c) for c in others} | {one}) == 6
    drop, keep = {"drop": {"band": [0.8, 1.0]}}, {"keep": {"band": [0.5, 1.0]}}
    assert config_text(drop | keep) != config_text(keep | drop)


def test_check_refuses_empty_bands() -> None:
    narrow = build({"keep": {"band": [0.5, 0.51]}})
    assert narrow.fits(100)
    assert not narrow.fits(64)
    with pytest.raises(EmptyBandError, match="M=64"):
        narrow.check(64)
    build({"drop": {"label": "same", "band": [0.0, 0.999]}, "fill": "older"}).check(64)
    build({"keep": {"label": "same"}, "drop": {"image": "same"}}).check(1)
    build({"mix": {"hardest": 1, "queries": 2}}).check(1)
    build({"keep": {"band": [0.5, 1.0]}, "mix": {"hardest": 4, "pairs": 2}}).check(0)
    nothing_left = build({"keep": {"band": [0.9, 1.0]}, "drop": {"band": [0.0, 1.0]}})
    with pytest.raises(EmptyBandError, match="drops all"):
        nothing_left.check(1000)


def test_check_refuses_verbs_that_leave_nothing_together() -> None:
    policy = build({"keep": {"label": "same"}, "drop": {"label": "same"}, "reweight": 1.0})
    for count in (1, 64):
        with pytest.raises(
            TooFewNegativesError,
            match=rf"negatives=.*'keep'.*: leaves none of M={count} negatives. .*top to bottom",
        ):
            policy.check(count)
        assert not policy.fits(count)
    policy.check(0)
    build({"keep": {"image": "same"}, "drop": {"label": "same"}}).check(4)
    early = {"keep": {"label": "same", "until_epoch": 2}}
    build(early | {"drop": {"label": "same", "from_epoch": 2}}).check(4)


def test_check_accepts_what_some_labels_would_leave() -> None:
    build({"keep": {"label": "same"}, "mix": {"hardest": 32, "pairs": 1}}).check(64)
    build({"drop": {"label": "same"}, "mix": {"hardest": 32, "pairs": 1}}).check(64)
    build({"keep": {"label": "same"}, "mix": {"hardest": 63, "pairs": 1}}).check(64)
    build(
        {"keep": {"image": "same", "band": [0.9, 1.0]}, "mix": {"hardest": 1, "queries": 1}}
    ).check(10)
    for band in ([0.95, 1.0], [0.0, 0.05]):  # a single negative may be of any class
        build({"keep": {"band": band, "label": "same"}}).check(20)
        build({"drop": {"band": band, "label": "different"}}).check(20)
    with pytest.raises(
        TooFewNegativesError, match="leave fewer negatives than negatives.mix.hardest"
    ):
        build({"keep": {"label": "same"}, "mix": {"hardest": 65, "pairs": 1}}).check(64)


# ---------------------------------------------------------------- third parties


@pytest.mark.usefixtures("scratch")
def test_schedules_and_epochs_of_a_third_partys_verb() -> None:
    @negatives.register("mine", summary="changes nothing", needs=["labels", "queue"])
    class Mine:
        reserve = 0.75

        def __init__(self, number: int, share: float, options: dict | None = None):
            self.given = (number, share, options)

        def __call__(self, pool: Pool) -> Pool:
            return pool

    moving = {"from": 0, "to": 3, "epochs": [0, 3]}
    policy = build({"mine": {"number": moving, "share": moving, "options": {"deep": [moving]}}})
    assert policy.at(1.6).verbs["mine"].given == (2, pytest.approx(1.6), {"deep": [1.6]})
    assert policy.needs == {"labels", "queue"}
    assert policy.reserve == 0.75
    assert not policy.retains
    assert build({"mine": {"number": 2.0, "share": 1, "from_epoch": 3}}).at(2).verbs == {}


# ---------------------------------------------------------------- dependence on the data


def test_too_few_negatives_in_the_data_are_no_error_in_a_run() -> None:
    few = torch.tensor([0, 0] + [1] * 14)  # two of the query's class
    known = {"query_labels": torch.zeros(1).long(), "labels": few}
    query, vectors = torch.tensor([[1.0, 0.0]]), torch.nn.functional.normalize(torch.randn(16, 2))
    pool = full_pool(query @ vectors.T, query=query, vectors=vectors, **known)
    narrow = {"keep": {"band": [0.9, 0.95]}}
    for below, count in ((narrow, 0), ({"mix": {"hardest": 8, "pairs": 3}}, 5)):
        policy = build({"drop": {"label": "different"}, **below})
        policy.check(1024)
        assert policy(pool).counts.tolist() == [count]
    with pytest.raises(TooFewNegativesError, match="leaves none of M=3 "):
        build({"drop": {"label": "different"}, **narrow, "fill": "none"}).check(3)


def test_arguments_may_have_the_names_of_schedule_keys(scratch: None) -> None:
    @register("warm", summary="for a while")
    class Warm:
        def __init__(self, epochs: int, to: float = 1.0):
            self.epochs, self.to = epochs, to

        def __call__(self, pool: Pool) -> Pool:
            return pool

    verb = build({"warm": {"epochs": 3, "to": 0.5}}).verbs["warm"]
    assert (verb.epochs, verb.to) == (3, 0.5)
    moving = {"from": 1, "to": 9, "epochs": [0, 4]}
    assert build({"warm": moving}).at(2).verbs["warm"].epochs == 5
    assert build({"warm": {"epochs": moving}}).at(4).verbs["warm"].epochs == 9


# ---------------------------------------------------------------- OmegaConf and NumPy


def test_omegaconf_and_numpy_values() -> None:
    cfg = OmegaConf.create({"low": 0.5, "negatives": {"keep": {"band": ["${low}", 1.0]}}})
    expected = {"keep": {"band": [0.5, 1.0]}}
    assert build(cfg.negatives).config == expected
    cfg.negatives.keep.band = [0.5, 1.0]
    policy = build(dict(cfg.negatives))
    assert policy.config == expected
    assert json.loads(json.dumps(policy.config)) == expected
    alone = build({"debias": {"tau_plus": "${oc.select:data.suggest.tau_plus,0.2}"}})
    assert alone.config == {"debias": {"tau_plus": 0.2}}
    numpys = build({"reweight": np.float32(0.5), "mix": {"hardest": np.int64(4), "pairs": 2}})
    assert numpys.config["reweight"] == {"beta": 0.5}
    assert numpys.verbs["mix"].hardest == 4
    with pytest.raises(ConfigError, match="negatives: .*nowhere"):
        build({"reweight": "${nowhere}"})
