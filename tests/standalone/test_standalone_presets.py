"""Every preset trains in the standalone host, in both families; its baselines do, too."""

from __future__ import annotations

import math

import pytest
from presets import MIXING, RUNS, WITH_A_QUEUE, small

from solo_hardneg.errors import ConfigError
from solo_hardneg.methods import OUR_METHODS
from solo_hardneg.standalone.run import pretrain

pytestmark = pytest.mark.usefixtures("tiny")


def loss_of(cfg):
    result = pretrain(cfg)
    name = "train_neg_cos_sim" if cfg.method == "byol" else "train_nce_loss"
    loss = result.metrics[f"{name}_epoch"]
    assert math.isfinite(loss)
    return loss, result.metrics


@pytest.mark.parametrize(("method", "preset"), RUNS)
def test_every_preset_trains(config, method, preset):
    cfg = config(
        method, *small(method, preset), "++limit_train_batches=6", "checkpoint.enabled=false"
    )
    loss, metrics = loss_of(cfg)
    assert loss > 0
    assert metrics["negatives/present_epoch"] > 0


@pytest.mark.parametrize("preset", WITH_A_QUEUE)
def test_simclr_refuses_what_needs_a_queue_before_the_run(config, preset):
    with pytest.raises(ConfigError, match=r"needs a queue.*MoCo method.*negatives\.fill=null"):
        pretrain(config("simclr_banded", f"negatives={preset}"))


@pytest.mark.parametrize("method", [*OUR_METHODS, "byol", "mocov2plus", "simclr"])
def test_every_method_trains_from_its_config(config, method):
    small_enough = []
    if method in OUR_METHODS and method.endswith("sscl"):
        small_enough += MIXING
    if method.startswith("moco"):
        small_enough.append("method_kwargs.queue_size=64")
    loss_of(config(method, *small_enough, "checkpoint.enabled=false"))


def test_other_methods_are_solo_learns(config):
    message = r"unknown method 'barlow_twins'.*Known: byol, .*needs solo-learn"
    with pytest.raises(ConfigError, match=message):
        pretrain(config("byol", "method=barlow_twins"))
