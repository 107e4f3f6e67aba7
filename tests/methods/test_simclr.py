"""SimCLRBanded and SimCLRSSCL: loss, default policies, checks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import simclr_loss_func
from solo_hardneg.methods import OUR_METHODS
from solo_hardneg.methods.simclr import WarnOfFewNegatives
from solo_hardneg.negatives import build

Maker = Callable[..., Any]
HARDER_HALF = {"keep": {"band": [0.5, 1.0]}}
SSCL = {
    "mix": {"hardest": 3, "pairs": 4, "queries": 1},
    "reweight": {"beta": 1.0},
    "debias": {"tau_plus": 0.05},
}
DEFAULTS = {
    "mocov2_banded": {"keep": {"band": [0.95, 1.0]}},
    "mocov2_sscl": {
        "mix": {"hardest": 1024.0, "pairs": 1024.0, "queries": 0.0, "detach": True},
        "reweight": {"beta": 0.2},
    },
    "simclr_banded": {"keep": {"band": [0.95, 1.0], "from_epoch": 1.0}},
    "simclr_sscl": {
        "mix": {"hardest": 32.0, "pairs": 8.0, "queries": 0.0, "detach": True},
        "reweight": {"beta": 1.0},
        "debias": {"tau_plus": 0.1},
    },
}


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    ("method", "negatives"), [("simclr_banded", {"drop": {"label": "same"}}), ("simclr_sscl", SSCL)]
)
def test_step_returns_the_loss_of_both_views_plus_the_classifiers(
    model: Maker, batch: Maker, method: str, negatives: dict
) -> None:
    simclr = model(method=method, negatives=negatives)
    indexes, views, targets = batch()
    outs = [simclr(view) for view in views]
    torch.manual_seed(7)  # for mix
    expected = simclr_loss_func(
        torch.cat([out["z"] for out in outs]), torch.cat([indexes, indexes]), 0.2,
        policy=build(negatives), labels=torch.cat([targets, targets]),
    )  # fmt: skip
    classes = sum(F.cross_entropy(out["logits"], targets) for out in outs) / 2
    torch.manual_seed(7)
    found = simclr.training_step([indexes, views, targets], 0)
    torch.testing.assert_close(found, expected + classes)
    assert expected > 0.1
    found.backward()
    assert simclr.projector[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(("method", "negatives"), [("simclr_banded", None), ("simclr_sscl", {})])
def test_step_without_policy_equals_the_hosts(
    model: Maker, batch: Maker, method: str, negatives: dict | None
) -> None:
    ours, hosts = model(method=method, negatives=negatives), model(method="simclr")
    hosts.load_state_dict(ours.state_dict())
    losses = [simclr.training_step(batch(), 0) for simclr in (ours, hosts)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    for loss in losses:
        loss.backward()
    for own, other in zip(ours.parameters(), hosts.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-6)


def test_labels_of_the_batch_reach_the_policy(model: Maker, batch: Maker) -> None:
    simclr = model(method="simclr_banded", negatives={"drop": {"label": "same"}})
    simclr.training_step(batch(classes=(0, 1, 0, 0)), 0)
    assert simclr.pools[0].counts.tolist() == [2, 6, 2, 2] * 2
    assert simclr.pools[0].query_indexes.tolist() == [50, 51, 52, 53] * 2


# ---------------------------------------------------------------- which policy


@pytest.mark.parametrize("method", DEFAULTS)
def test_default_policy_of_each_method(model: Maker, method: str) -> None:
    assert set(DEFAULTS) == set(OUR_METHODS)
    moco = method.startswith("moco")
    big = ["~negatives", "method_kwargs.queue_size=1024"] if moco else []
    ours = model(*big, method=method)
    assert ours.policy.config == DEFAULTS[method]
    assert build(ours.cfg.negatives).config == DEFAULTS[method]  # as stored with the run
    for negatives in (None, {}):  # the user's choice: all negatives
        assert model(method=method, negatives=negatives).policy.config == {}
    assert model(method=method, negatives=HARDER_HALF).policy.config == HARDER_HALF


# ---------------------------------------------------------------- epochs


def test_default_band_starts_in_the_second_epoch(model: Maker, fit: Maker) -> None:
    simclr = model(method="simclr_banded")
    fit(simclr, epochs=2)
    assert simclr.counts == [6] * 4 + [1] * 4


CURRICULUM = {"keep": {"band": [{"from": 0.0, "to": 0.8, "epochs": [0, 2]}, 1.0]}}
# At step i, 4 per epoch, the band starts at i/10, at most 0.8: ⌊6·i/10⌋ of 6 are dropped, ...
SIX = [6, 6, 5, 5, 4, 3, 3, 2, 2, 2, 2, 2]
# ... and of a filling queue 0, ⌊4/10⌋ of 4, ⌊8·2/10⌋ of 8, then ⌊12·i/10⌋ of 12.
TWELVE = [0, 4, 7, 9, 8, 6, 5, 4, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("method", "expected"), [("simclr_banded", SIX), ("mocov2_banded", TWELVE)]
)
def test_curriculum_moves_at_every_step(
    model: Maker, fit: Maker, method: str, expected: list[int]
) -> None:
    ours = model(method=method, negatives=CURRICULUM)
    fit(ours, epochs=3)
    assert ours.counts == expected


# ---------------------------------------------------------------- checks


def test_policy_is_checked_with_the_global_batch(model: Maker) -> None:
    simclr = model(method="simclr_sscl", negatives={})
    checked: list[int] = []
    simclr.policy.check = checked.append
    for world_size in (1, 3):
        simclr.trainer = SimpleNamespace(world_size=world_size)
        simclr.setup("fit")
    assert checked == [2 * (4 - 1), 2 * (12 - 1)]
    simclr.setup("validate")
    assert len(checked) == 2


def test_band_that_is_empty_on_a_single_process(model: Maker, fit: Maker) -> None:
    narrow = {"keep": {"band": [0.5, 0.6]}}  # ranks 3 to 2 of 6 negatives, rank 7 of 14
    simclr = model(method="simclr_banded", negatives=narrow)
    simclr.trainer = SimpleNamespace(world_size=2)
    simclr.setup("fit")
    simclr.trainer = None
    with pytest.raises(ConfigError, match=r"negatives.keep.band=\[0.5, 0.6\]: holds none of M=6 "):
        fit(simclr)
    assert simclr.losses == []


@pytest.mark.parametrize(
    ("overrides", "negatives", "message"),
    [
        (["+method_kwargs.symmetric=true"], {}, "unknown argument 'symmetric'.*Known: proj_hidden"),
        (["method_kwargs.temperature=-1"], {}, "temperature=-1: .*must be"),
        (["optimizer.batch_size=many"], {}, "optimizer.batch_size=many: must be a whole number"),
        (
            [],
            {"retain": {"strength": 0.0, "from_epoch": 3}},
            "needs a queue, .*retain=null",
        ),
        ([], {"drop": {"label": "same"}, "fill": "older"}, "needs a queue, .*negatives.fill=null"),
    ],
)
def test_invalid_config_is_refused_before_anything_is_built(
    model: Maker, overrides: list[str], negatives: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model(*overrides, method="simclr_banded", negatives=negatives)


def test_fill_none_needs_no_queue(model: Maker, batch: Maker) -> None:
    nothing = {"drop": {"band": [0.5, 1.0]}, "fill": "none"}
    simclr = model(method="simclr_banded", negatives=nothing)
    simclr.training_step(batch(), 0)
    assert simclr.counts == [3]


def test_dummy_indexes_are_renumbered_across_processes(
    model: Maker, batch: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = 3

    def with_dali(encoded: bool) -> Any:
        overrides = ["data.format=dali", f"dali.encode_indexes_into_labels={encoded}"]
        return model(*overrides, method="simclr_banded", negatives={})

    simclr = with_dali(encoded=False)
    seen: list[list[int]] = []
    loss = simclr_loss_func

    def record(z: Any, indexes: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(indexes.tolist())
        return loss(z, indexes, *args, **kwargs)

    monkeypatch.setattr("solo_hardneg.methods.simclr.simclr_loss_func", record)
    monkeypatch.setattr(type(simclr), "global_rank", rank)
    _, views, targets = batch()
    positions = [rank * len(targets) + i for i in range(len(targets))]
    for dummies in (torch.arange(len(targets)), torch.zeros(len(targets), dtype=torch.long)):
        simclr.training_step([dummies, views, targets], 0)
        assert seen[-1] == positions * 2
    with_dali(encoded=True).training_step([targets + 50, views, targets], 0)
    assert seen[-1] == (targets + 50).tolist() * 2


def test_keeping_the_own_image_is_refused(config: Maker) -> None:
    cfg = config(method="simclr_banded", negatives={"keep": {"image": "same"}})
    with pytest.raises(ConfigError, match=r"negatives.keep.image=same: leaves no negatives"):
        OUR_METHODS["simclr_banded"].add_and_assert_specific_cfg(cfg)


def test_stored_config_is_resolved(model: Maker) -> None:
    later = {"keep": {"band": ["${low}", 1.0]}}
    simclr = model("+low=0.5", method="simclr_banded", negatives=later)
    assert re.search(r"keep.*0\.5", str(simclr.cfg.negatives))


# ---------------------------------------------------------------- batches of one image


def test_host_simclr_without_negatives_warns(model: Maker) -> None:
    one, four = model("optimizer.batch_size=1", method="simclr"), model(method="simclr")
    ours = model("optimizer.batch_size=1", method="simclr_banded")
    single, two = (SimpleNamespace(world_size=ranks, accumulate_grad_batches=1) for ranks in (1, 2))
    text = r"^optimizer.batch_size=1: simclr's negatives are .*Set it to 2 or more"
    with pytest.warns(UserWarning, match=text):
        WarnOfFewNegatives().on_fit_start(single, one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WarnOfFewNegatives().on_fit_start(two, one)
        WarnOfFewNegatives().on_fit_start(single, four)
        WarnOfFewNegatives().on_fit_start(single, ours)


def test_our_simclr_without_negatives_is_refused(model: Maker, fit: Maker) -> None:
    ours = model("optimizer.batch_size=1", method="simclr_banded", negatives={})
    with pytest.raises(ConfigError, match=r"optimizer.batch_size=1: .*Set it to 2 or more"):
        fit(ours)
