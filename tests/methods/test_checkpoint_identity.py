"""Checkpoints of another experiment are refused, and equivalent ones accepted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from solo_hardneg.errors import CheckpointError
from solo_hardneg.methods.checkpoint_identity import KEY, check_identity, store_identity
from solo_hardneg.negatives import build, registry

Maker = Callable[..., Any]
MIX = {"hardest": 3, "pairs": 4, "queries": 2}
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
def test_different_policies_are_refused(one: Any, other: Any, message: str) -> None:
    checkpoint: dict[str, Any] = {}
    policies = [build(config) for config in (one, other)]
    own, foreign = (
        ({"negatives": policy.config}, {"negatives": policy.defaults}) for policy in policies
    )
    store_identity(checkpoint, *own)
    check_identity(checkpoint, *own)
    with pytest.raises(CheckpointError, match=message):
        check_identity(checkpoint, *foreign)


@pytest.mark.parametrize("method", ["mocov2_banded", "simclr_banded"])
def test_another_policys_checkpoint_is_refused_with_remedies(
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


def test_identity_of_a_method(model: Maker) -> None:
    simclr = model(method="simclr_banded", negatives=DROP)
    common = {"negatives": DROP, "temperature": 0.2}
    assert simclr.identity == {**common, "method": "simclr_banded"}
    moco = model("method_kwargs.symmetric=true", method="mocov2_banded", negatives=DROP)
    queue = {"method": "mocov2_banded", "queue_size": 12, "symmetric": True}
    assert moco.identity == {**common, **queue}


class FirstRelease:
    """A third party's verb, in its first of several releases."""

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


Mapping = dict[str, Any]


def checkpoint_of(
    release: type, monkeypatch: Any, arguments: Mapping, old: bool = False
) -> Mapping:
    """A checkpoint of a run with this release of the verb; ``old``: without defaults."""
    checkpoint: Mapping = {}
    store_identity(checkpoint, *identity(release, monkeypatch, arguments))
    if old:
        del checkpoint[KEY]["defaults"]
    return checkpoint


def identity(release: type, monkeypatch: Any, arguments: Mapping) -> tuple[Mapping, Mapping]:
    info = registry.Info("other", release, "")
    monkeypatch.setitem(registry._registry, "other", info)
    policy = build({"other": arguments, "reweight": 1})
    return {"negatives": policy.config, "temperature": 0.2}, {"negatives": policy.defaults}


@pytest.mark.parametrize(
    ("old", "old_args", "new", "new_args", "same"),
    [
        # A new argument has its default in the old release, a removed one had its default.
        (FirstRelease, {"share": 0.5}, MoreArguments, {"share": 0.5}, True),
        (FirstRelease, {"share": 0.5}, MoreArguments, {"share": 0.5, "count": 3}, False),
        (FirstRelease, {"share": 0.5}, MoreArguments, {"share": 0.4}, False),
        (FirstRelease, {"share": 0.5, "power": 1}, FewerArguments, {"share": 0.5}, True),
        (FirstRelease, {"share": 0.5, "power": 2}, FewerArguments, {"share": 0.5}, False),
        (MoreArguments, {"share": 0.5}, FirstRelease, {"share": 0.5}, True),
        (MoreArguments, {"share": 0.5, "noise": 1}, FirstRelease, {"share": 0.5}, False),
        # A default that has changed keeps its old value in the old release.
        (FirstRelease, {"share": 0.5}, OtherDefaults, {"share": 0.4}, False),
        (OtherDefaults, {"share": 0.5, "power": 1}, FirstRelease, {"share": 0.5}, False),
        (OtherDefaults, {"share": 0.5}, FirstRelease,
         {"share": 0.5, "label": "same", "power": 2}, True),
        (FirstRelease, {"share": 0.5, "label": "same", "power": 2}, OtherDefaults,
         {"share": 0.5}, True),
    ],
)  # fmt: skip
def test_checkpoint_of_another_release_of_a_verb(
    monkeypatch: pytest.MonkeyPatch, old: type, old_args: Any, new: type, new_args: Any, same: bool
) -> None:
    checkpoint = checkpoint_of(old, monkeypatch, old_args)
    now = identity(new, monkeypatch, new_args)
    if same:
        check_identity(checkpoint, *now)
    else:
        text = r'\(negatives(: {"other": .* there, {"other": .* here|\.other\.label: its default)'
        with pytest.raises(CheckpointError, match=text):
            check_identity(checkpoint, *now)


def test_changed_default_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_of(FirstRelease, monkeypatch, {"share": 0.5})
    now = identity(OtherDefaults, monkeypatch, {"share": 0.5})
    with pytest.raises(CheckpointError) as refused:
        check_identity(checkpoint, *now)
    text = str(refused.value)
    assert (
        "negatives.other.power: its default was 1.0 when this checkpoint was written, and is 2.0 "
        "now; set negatives.other.power=1.0"
    ) in text
    assert "negatives.other.label: its default was null" in text
    assert "there" not in text.partition(")")[0]


@pytest.mark.parametrize("set_there", [True, False])
def test_explicit_value_is_not_called_a_default(
    set_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"share": 0.5, "label": "same"} | ({"power": 3.0} if set_there else {})
    here = {"share": 0.5} | ({} if set_there else {"power": 3.0})
    checkpoint = checkpoint_of(FirstRelease, monkeypatch, there)
    now = identity(OtherDefaults, monkeypatch, here)
    with pytest.raises(CheckpointError, match=r"\(negatives: .* there, .* here\)") as refused:
        check_identity(checkpoint, *now)
    assert "its default was" not in str(refused.value)


@pytest.mark.parametrize(("more", "same"), [({}, True), ({"count": 3}, False)])
def test_checkpoint_without_defaults_and_new_arguments(
    monkeypatch: pytest.MonkeyPatch, more: Any, same: bool
) -> None:
    checkpoint = checkpoint_of(FirstRelease, monkeypatch, {"share": 0.5}, old=True)
    assert set(checkpoint["solo_hardneg"]) == {"version", "identity"}
    assert checkpoint["solo_hardneg"]["version"] == 1
    now = identity(MoreArguments, monkeypatch, {"share": 0.5, **more})
    with contextlib.nullcontext() if same else pytest.raises(CheckpointError, match="negatives"):
        check_identity(checkpoint, *now)


def test_checkpoint_of_the_first_version() -> None:
    text = (
        '{"method": "mocov2_banded", "negatives": {"mix": {"hardest": 3.0, "pairs": 4.0, '
        '"queries": 0.0, "detach": true, "from_epoch": 0.0}}, '
        '"temperature": 0.2, "symmetric": true}'
    )
    policy = build({"mix": {"hardest": 3, "pairs": 4}})
    current = {"method": "mocov2_banded", "negatives": policy.config, "temperature": 0.2}
    defaults = {"negatives": policy.defaults}
    checkpoint = {KEY: {"version": 1, "identity": text}}
    check_identity(checkpoint, {**current, "symmetric": True}, defaults)
    for other in ({"symmetric": False}, {"symmetric": True, "temperature": 0.1}, {}):
        with pytest.raises(
            CheckpointError, match=r"\((symmetric|temperature): .* there, .* here\)"
        ):
            check_identity(checkpoint, {**current, **other}, defaults)
    # A key of the identity that was added later.
    later = {**current, "symmetric": True, "views": 2}
    check_identity(checkpoint, later, {**defaults, "views": 2})
    with pytest.raises(CheckpointError, match=r"\(views: null there, 2 here\)"):
        check_identity(checkpoint, later, {**defaults, "views": 1})


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
def test_equivalent_policies_have_one_identity(one: Any, other: Any) -> None:
    checkpoint: dict[str, Any] = {}
    policy, alias = build(one), build(other)
    assert policy.config == alias.config
    store_identity(checkpoint, {"negatives": policy.config}, {"negatives": policy.defaults})
    check_identity(checkpoint, {"negatives": alias.config}, {"negatives": alias.defaults})


def test_missing_identity_or_another_format_is_refused(
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
