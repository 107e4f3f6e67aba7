"""Saving in the middle and going on: the same losses, or a refusal that says why."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from solo_hardneg.errors import CheckpointError
from solo_hardneg.host import MoCoV2Plus, SimCLR
from solo_hardneg.methods import fingerprint, rng
from solo_hardneg.negatives import build, registry

Maker = Callable[..., Any]
STEPS = 4


MIX = {"hardest": 3, "pairs": 4, "queries": 2}
EVERYTHING = {
    "keep": {"band": [{"from": 0.0, "to": 0.6, "epochs": [0.5, 3.5], "curve": "cosine"}, 1.0]},
    "mix": {**MIX, "until_epoch": 3.5},
    "reweight": {"beta": {"from": 0.0, "to": 1.0, "epochs": [0, 4]}},
    "debias": {"tau_plus": 0.01, "from_epoch": 2.25},
}


@pytest.mark.parametrize(
    ("method", "overrides", "negatives"),
    [
        ("mocov2_banded", [], {"drop": {"label": "same"}, "fill": "older"}),
        ("mocov2_sscl", ["symmetric=true"], {"retain": 1.0, **EVERYTHING}),
        ("simclr_sscl", [], EVERYTHING),
    ],
)
@pytest.mark.filterwarnings("ignore:negatives.fill")
def test_a_resumed_run_gives_the_losses_it_would_have_given(
    model: Maker,
    fit: Maker,
    tmp_path: Path,
    method: str,
    overrides: list[str],
    negatives: dict[str, Any],
) -> None:
    overrides = [f"method_kwargs.{override}" for override in overrides]
    # A scheduler that knows of four epochs; the checkpoint is of the second's end.
    whole = model(*overrides, method=method, negatives=negatives)
    checkpoint = tmp_path / "half.ckpt"
    whole.on_train_epoch_end = lambda: (
        whole.trainer.save_checkpoint(checkpoint) if whole.trainer.current_epoch == 1 else None
    )
    fit(whole, epochs=4)
    assert len(set(whole.losses)) == len(whole.losses) == 4 * STEPS

    resumed = model(*overrides, method=method, negatives=negatives)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    fit(resumed, epochs=4, ckpt_path=str(checkpoint))
    assert resumed.batches == whole.batches[2 * STEPS :]
    assert resumed.losses == whole.losses[2 * STEPS :]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_random_states_of_another_number_of_processes_are_left_alone(
    model: Maker, fit: Maker, tmp_path: Path
) -> None:
    path = tmp_path / "one.ckpt"
    fit(model()).save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    batches = []
    for count in (0, 1, 2):
        torch.save({**stored, "solo_hardneg_rng": stored["solo_hardneg_rng"] * count}, path)
        resumed = model()
        fit(resumed, epochs=2, ckpt_path=str(path))
        batches.append(resumed.batches)
    assert batches[0] == batches[2] != batches[1]


BANDS = [{"keep": {"band": [{"from": 0.0, "to": to, "epochs": [0, 2]}, 1.0]}} for to in (0.5, 0.75)]
DROP, KEEP = {"drop": {"band": [0.0, 0.5]}}, {"keep": {"band": [0.5, 1.0]}}


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (KEEP, {"keep": {**KEEP["keep"], "from_epoch": 1}}, r'"from_epoch": 1.0}} here'),
        (*BANDS, r'"to": 0.5, .* there, .*"to": 0.75, .* here'),
        (DROP | KEEP, KEEP | DROP, r'negatives: \{"drop": .* there, \{"keep": .* here'),
        ({"mix": MIX}, {"mix": {**MIX, "pairs": 5}}, r'"pairs": 4.0, .* there, .*"pairs": 5.0'),
        (KEEP, {}, r'"band": \[0.5, 1.0\]\}\} there, \{\} here'),
    ],
)
def test_what_tells_two_policies_apart(one: Any, other: Any, message: str) -> None:
    checkpoint: dict[str, Any] = {}
    policies = [build(config) for config in (one, other)]
    mine, theirs = (
        ({"negatives": policy.config}, {"negatives": policy.defaults}) for policy in policies
    )
    fingerprint.write(checkpoint, *mine)
    fingerprint.verify(checkpoint, *mine)
    with pytest.raises(CheckpointError, match=message):
        fingerprint.verify(checkpoint, *theirs)


@pytest.mark.parametrize("method", ["mocov2_banded", "simclr_banded"])
def test_another_policys_checkpoint_is_refused_with_the_way_out(
    model: Maker, fit: Maker, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "one.ckpt"
    fit(model(method=method, negatives=KEEP)).save_checkpoint(path)
    before = path.read_bytes()
    ours = model("method_kwargs.temperature=0.07", method=method, negatives=DROP)
    text = (
        r'belongs to another policy \(negatives: {"keep": .* there, {"drop": .* here; '
        r"temperature: 0.2 there, 0.07 here\).*name=.*auto_resume.enabled=False"
    )
    with pytest.raises(CheckpointError, match=text):
        fit(ours, epochs=2, ckpt_path=str(path))
    assert ours.losses == []
    assert path.read_bytes() == before


def test_a_checkpoint_says_whose_it_is(model: Maker) -> None:
    simclr = model(method="simclr_banded", negatives=DROP)
    mine = {"method": "simclr_banded", "negatives": DROP, "temperature": 0.2}
    assert simclr.identity == mine
    moco = model("method_kwargs.symmetric=true", method="mocov2_banded", negatives=DROP)
    queue = {"method": "mocov2_banded", "queue_size": 12, "symmetric": True}
    assert moco.identity == {**mine, **queue}


class FirstRelease:
    """A verb of somebody else, as it changes from one release to the next."""

    def __init__(self, share: float, label: str | None = None, power: float = 1.0) -> None: ...

    def __call__(self, pool: Any) -> Any:
        return pool


class MoreArguments(FirstRelease):
    def __init__(
        self,
        share: float,
        label: str | None = None,
        power: float = 1.0,
        noise: float | None = None,
        count: int = 0,
    ) -> None: ...


class FewerArguments(FirstRelease):
    def __init__(self, share: float) -> None: ...


class OtherDefaults(FirstRelease):
    def __init__(self, share: float, label: str | None = "same", power: float = 2.0) -> None: ...


Written = dict[str, Any]


def written(release: type, monkeypatch: Any, arguments: Written, old: bool = False) -> Written:
    """A checkpoint of a run with the verb of a release; ``old``: as the first version wrote it."""
    checkpoint: Written = {}
    fingerprint.write(checkpoint, *identity(release, monkeypatch, arguments))
    if old:
        del checkpoint[fingerprint.KEY]["defaults"]
    return checkpoint


def identity(release: type, monkeypatch: Any, arguments: Written) -> tuple[Written, Written]:
    info = registry.Info("other", release, "")
    monkeypatch.setitem(registry._registry, "other", info)
    policy = build({"other": arguments, "reweight": 1})
    return {"negatives": policy.config, "temperature": 0.2}, {"negatives": policy.defaults}


@pytest.mark.parametrize(
    ("there", "wrote", "here", "wants", "same"),
    [
        # An argument that has come since has its default there, and one that is gone had it.
        (FirstRelease, {"share": 0.5}, MoreArguments, {"share": 0.5}, True),
        (FirstRelease, {"share": 0.5}, MoreArguments, {"share": 0.5, "count": 3}, False),
        (FirstRelease, {"share": 0.5}, MoreArguments, {"share": 0.4}, False),
        (FirstRelease, {"share": 0.5, "power": 1}, FewerArguments, {"share": 0.5}, True),
        (FirstRelease, {"share": 0.5, "power": 2}, FewerArguments, {"share": 0.5}, False),
        (MoreArguments, {"share": 0.5}, FirstRelease, {"share": 0.5}, True),
        (MoreArguments, {"share": 0.5, "noise": 1}, FirstRelease, {"share": 0.5}, False),
        # A default that has changed since means there what it meant then.
        (FirstRelease, {"share": 0.5}, OtherDefaults, {"share": 0.4}, False),
        (OtherDefaults, {"share": 0.5, "power": 1}, FirstRelease, {"share": 0.5}, False),
        (OtherDefaults, {"share": 0.5}, FirstRelease,
         {"share": 0.5, "label": "same", "power": 2}, True),
        (FirstRelease, {"share": 0.5, "label": "same", "power": 2}, OtherDefaults,
         {"share": 0.5}, True),
    ],
)  # fmt: skip
def test_a_checkpoint_and_another_release_of_a_verb(
    monkeypatch: pytest.MonkeyPatch, there: type, wrote: Any, here: type, wants: Any, same: bool
) -> None:
    checkpoint = written(there, monkeypatch, wrote)
    now = identity(here, monkeypatch, wants)
    if same:
        fingerprint.verify(checkpoint, *now)
    else:
        text = r'\(negatives(: {"other": .* there, {"other": .* here|\.other\.label: its default)'
        with pytest.raises(CheckpointError, match=text):
            fingerprint.verify(checkpoint, *now)


def test_a_default_that_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = written(FirstRelease, monkeypatch, {"share": 0.5})
    now = identity(OtherDefaults, monkeypatch, {"share": 0.5})
    with pytest.raises(CheckpointError) as refused:
        fingerprint.verify(checkpoint, *now)
    text = str(refused.value)
    assert (
        "negatives.other.power: its default was 1.0 when this checkpoint was written, and is 2.0 "
        "now; set negatives.other.power=1.0"
    ) in text
    assert "negatives.other.label: its default was null" in text
    assert "there" not in text.partition(")")[0]


@pytest.mark.parametrize("set_there", [True, False])
def test_what_was_set_is_not_called_a_default(
    set_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"share": 0.5, "label": "same"} | ({"power": 3.0} if set_there else {})
    here = {"share": 0.5} | ({} if set_there else {"power": 3.0})
    checkpoint = written(FirstRelease, monkeypatch, there)
    now = identity(OtherDefaults, monkeypatch, here)
    with pytest.raises(CheckpointError, match=r"\(negatives: .* there, .* here\)") as refused:
        fingerprint.verify(checkpoint, *now)
    assert "its default was" not in str(refused.value)


@pytest.mark.parametrize(("wants", "same"), [({}, True), ({"count": 3}, False)])
def test_a_checkpoint_without_defaults_and_a_verb_that_has_gained_arguments(
    monkeypatch: pytest.MonkeyPatch, wants: Any, same: bool
) -> None:
    checkpoint = written(FirstRelease, monkeypatch, {"share": 0.5}, old=True)
    assert set(checkpoint["solo_hardneg"]) == {"version", "identity"}
    assert checkpoint["solo_hardneg"]["version"] == 1
    now = identity(MoreArguments, monkeypatch, {"share": 0.5, **wants})
    with contextlib.nullcontext() if same else pytest.raises(CheckpointError, match="negatives"):
        fingerprint.verify(checkpoint, *now)


def test_a_checkpoint_of_the_first_version() -> None:
    text = (
        '{"method": "mocov2_banded", "negatives": {"mix": {"hardest": 3.0, "pairs": 4.0, '
        '"queries": 0.0, "detach": true, "from_epoch": 0.0}}, '
        '"temperature": 0.2, "symmetric": true}'
    )
    policy = build({"mix": {"hardest": 3, "pairs": 4}})
    mine = {"method": "mocov2_banded", "negatives": policy.config, "temperature": 0.2}
    defaults = {"negatives": policy.defaults}
    checkpoint = {fingerprint.KEY: {"version": 1, "identity": text}}
    fingerprint.verify(checkpoint, {**mine, "symmetric": True}, defaults)
    for other in ({"symmetric": False}, {"symmetric": True, "temperature": 0.1}, {}):
        with pytest.raises(
            CheckpointError, match=r"\((symmetric|temperature): .* there, .* here\)"
        ):
            fingerprint.verify(checkpoint, {**mine, **other}, defaults)
    # A key of the identity that has come since.
    later = {**mine, "symmetric": True, "views": 2}
    fingerprint.verify(checkpoint, later, {**defaults, "views": 2})
    with pytest.raises(CheckpointError, match=r"\(views: null there, 2 here\)"):
        fingerprint.verify(checkpoint, later, {**defaults, "views": 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mix": MIX}, {"mix": {"detach": True, "pairs": 4.0, **MIX}, "fill": None}),
        (DROP, {"drop": {**DROP["drop"], "from_epoch": 0}}),
        (BANDS[0], {"keep": {"band": [{"epochs": (0.0, 2), "from": 0, "to": 0.5,
                                       "curve": "linear"}, 1]}}),
        ({"reweight": 1}, OmegaConf.create({"reweight": {"beta": 1.0}})),
    ],
)  # fmt: skip
def test_policies_that_do_the_same_are_one(one: Any, other: Any) -> None:
    checkpoint: dict[str, Any] = {}
    policy, alias = build(one), build(other)
    assert policy.config == alias.config
    fingerprint.write(checkpoint, {"negatives": policy.config}, {"negatives": policy.defaults})
    fingerprint.verify(checkpoint, {"negatives": alias.config}, {"negatives": alias.defaults})


def test_checkpoints_without_identity_or_of_another_format(
    model: Maker, fit: Maker, tmp_path: Path
) -> None:
    path = tmp_path / "one.ckpt"
    fit(model()).save_checkpoint(path)
    stored = torch.load(path, weights_only=True)  # tensors and plain values only
    stored["solo_hardneg"]["version"] = 99
    torch.save(stored, path)
    with pytest.raises(CheckpointError, match="version 99"):
        fit(model(), epochs=2, ckpt_path=str(path))
    del stored["solo_hardneg"]
    torch.save(stored, path)
    with pytest.raises(CheckpointError, match="not one of a solo-hardneg method"):
        fit(model(), epochs=2, ckpt_path=str(path))


def test_random_states_come_back() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(),
                torch.rand(1).item()]  # fmt: skip

    random.gauss(0, 1), np.random.randn()  # both keep the second half of a pair
    saved = rng.state()
    drawn = draw()
    assert draw() != drawn
    rng.restore(saved)
    assert draw() == drawn
    assert rng.states_of_all_ranks()[0].keys() == saved.keys()


def test_the_momentum_starts_where_the_trainer_stands(
    model: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the host makes of it; solo-learn starts anew."""
    monkeypatch.setattr(MoCoV2Plus, "on_train_start", lambda self: setattr(self, "last_step", 0))
    moco = model("momentum.base_tau=0.5", "momentum.final_tau=1.0")
    moco.trainer = SimpleNamespace(global_step=7, estimated_stepping_batches=14)
    moco.on_train_start()
    assert moco.last_step == 7
    assert moco.momentum_updater.cur_tau == pytest.approx(0.75)


@pytest.mark.parametrize("method", ["mocov2_banded", "simclr_banded"])
def test_the_hosts_hooks_run_as_well(
    model: Maker, fit: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    hooks = ["setup", "on_train_epoch_start", "on_save_checkpoint", "on_load_checkpoint"]
    called: list[str] = []
    for hook in hooks:
        host = MoCoV2Plus if method == "mocov2_banded" else SimCLR
        run = lambda self, *_, hook=hook: called.append(hook)  # noqa: E731
        monkeypatch.setattr(host, hook, run, raising=False)
    fit(model(method=method, negatives={})).save_checkpoint(tmp_path / "one.ckpt")
    fit(model(method=method, negatives={}), epochs=2, ckpt_path=str(tmp_path / "one.ckpt"))
    assert [*dict.fromkeys(called)] == hooks
    assert [called.count(hook) for hook in hooks] == [2, 2, 1, 1]
