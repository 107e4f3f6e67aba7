"""Every preset trains in the standalone host with MoCo, and some with SimCLR."""

from __future__ import annotations

import math

import pytest
from presets import MIXING, RUNS, WITH_A_QUEUE, small

from solo_hardneg.errors import ConfigError
from solo_hardneg.standalone.run import pretrain

pytestmark = pytest.mark.usefixtures("tiny")
FOR_SIMCLR = ("hardest_5", "drop_same_class", "mochi", "sscl", "curriculum")
SSCL = [
    pytest.param("mocov2_sscl", [*MIXING, "method_kwargs.queue_size=32"], id="mocov2_sscl"),
    pytest.param("simclr_sscl", MIXING, id="simclr_sscl"),
]


def one_run(method, preset):
    rare = method.startswith("simclr") and preset not in FOR_SIMCLR
    marks = [pytest.mark.full] * rare
    return pytest.param(method, small(method, preset), marks=marks, id=f"{method} {preset}")


@pytest.mark.parametrize(("method", "overrides"), [*(one_run(*run) for run in RUNS), *SSCL])
def test_every_preset_trains(config, method, overrides):
    short = ("max_epochs=1", "++limit_train_batches=4", "data.val_path=null")
    metrics = pretrain(config(method, *overrides, *short, "checkpoint.enabled=false")).metrics
    assert 0 < metrics["train_nce_loss_epoch"] < math.inf
    assert metrics["negatives/present_epoch"] > 0


@pytest.mark.parametrize("preset", ["drop_own_image", "retain_hard"])
def test_simclr_refuses_policies_that_need_a_queue(config, preset):
    assert preset in WITH_A_QUEUE
    with pytest.raises(ConfigError, match=r"needs a queue.*MoCo method.*negatives\.fill=null"):
        pretrain(config("simclr_banded", f"negatives={preset}"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("simcrl", r"method: unknown method 'simcrl'\. Did you mean 'simclr"),
        ("barlow_twins", r"unknown method 'barlow_twins'.*Known: byol, .*needs solo-learn"),
    ],
)
def test_unknown_methods_are_refused(config, method, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(config("byol", f"method={method}"))
