"""Resuming with changed settings: the config is applied, and the differences are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_helpers import load_checkpoint
from lightning.pytorch import Callback
from omegaconf import DictConfig
from safety_runs import STEPS

from solo_hardneg import plugin
from solo_hardneg.errors import CheckpointError
from solo_hardneg.safety import resumed_settings
from solo_hardneg.standalone.run import pretrain

pytestmark = pytest.mark.usefixtures("tiny")

Config = Callable[..., DictConfig]
Rates = dict[int, list[dict[str, Any]]]  # step -> parameter groups, without the parameters
KEEP = "+checkpoint.keep_prev=true"
_UNINTERRUPTED: dict[Any, tuple[Any, Rates]] = {}  # runs that tests share


@pytest.fixture
def train(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Rates]]:
    """``train("simclr", ...)`` returns the run's result and the optimizer's settings by step."""
    seen: Rates = {}

    class Record(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            (optimizer,) = trainer.optimizers
            seen[trainer.global_step] = [
                {k: v for k, v in group.items() if k not in ("params", "initial_lr")}
                for group in optimizer.param_groups
            ]

    callbacks = plugin.callbacks
    monkeypatch.setattr(plugin, "callbacks", lambda: [*callbacks(), Record()])

    def run(method: str, *overrides: str) -> tuple[Any, Rates]:
        if (method, overrides) not in _UNINTERRUPTED:
            seen.clear()
            result = pretrain(config(method, KEEP, *overrides))
            if any("resume_from" in override for override in overrides):
                return result, dict(seen)
            _UNINTERRUPTED[method, overrides] = result, dict(seen)
        return _UNINTERRUPTED[method, overrides]

    return run


def after_one_epoch(result: Any) -> str:
    """The override that resumes from the checkpoint of the first epoch."""
    (path,) = result.folder.glob("*ep0.ckpt")
    return f"+resume_from_checkpoint='{path}'"


WARM = "scheduler.warmup_epochs=2"
BY_EPOCH = "+scheduler.interval=epoch"
STEP = ("scheduler.name=step", "+scheduler.lr_decay_steps=[1,2]")
NONE = "scheduler.name=none"
LR = "optimizer.lr=0.5"
LR_CHANGE = "optimizer.lr: 0.001875 there, 0.03125 here"
ADAMW, LARS = "optimizer.name=adamw", "optimizer.name=lars"
GROUPS = (
    "optimizer.classifier_lr=8",
    "optimizer.weight_decay=0.5",
    "+optimizer.kwargs.momentum=0.5",
)


@pytest.mark.parametrize(
    ("before", "now", "printed"),
    [
        (
            [],
            [LR, *GROUPS],
            [
                *(LR_CHANGE, "optimizer.classifier_lr: 0.01875 there, 0.5 here"),
                "optimizer.weight_decay: 0.0001 there, 0.5 here",
                "optimizer.kwargs.momentum: 0.9 there, 0.5 here",
            ],
        ),
        ([WARM], [WARM, LR], [LR_CHANGE]),  # the checkpoint is inside the warm-up
        (
            [],
            [WARM, "+scheduler.min_lr=0.001", "max_epochs=5"],
            [
                *("scheduler.warmup_epochs: 0 there, 2 here", "max_epochs: 3 there, 5 here"),
                "scheduler.min_lr: 0.0 there, 0.001 here",
            ],
        ),
        ([], [BY_EPOCH], ["scheduler.interval: step there, epoch here"]),
        ([], STEP, ["scheduler.name: warmup_cosine there, step here"]),
        (STEP, [NONE], ["scheduler.name: step there, none here"]),
        (STEP, [STEP[0], "+scheduler.lr_decay_steps=[2]"], ["lr_decay_steps: [1, 2] there, [2]"]),
        ([NONE], [], ["scheduler.name: none there, warmup_cosine here"]),
        ([NONE], [NONE, LR], [LR_CHANGE]),
        ([LARS], [LARS, "+optimizer.kwargs.eta=0.5"], ["optimizer.kwargs.eta: 0.001 there, 0.5 h"]),
        ([ADAMW], [ADAMW, "optimizer.batch_size=32"], ["optimizer.batch_size: 16 there, 32 here"]),
        # Nothing is changed or printed.
        ([], ["seed=77"], []),
        ([*STEP, BY_EPOCH], [*STEP, BY_EPOCH], []),
    ],
)
def test_resumed_rates_equal_those_of_an_uninterrupted_run(
    train: Callable[..., Any], capsys: Any, before: list[str], now: list[str], printed: list[str]
) -> None:
    _, expected = train("mocov2_banded", *now)
    first, _ = train("mocov2_banded", *before)
    capsys.readouterr()
    resumed, found = train("mocov2_banded", *now, after_one_epoch(first))
    assert found == {step: rates for step, rates in expected.items() if step >= STEPS}
    out = capsys.readouterr().out
    assert [text for text in printed if text not in out] == []
    assert ("other settings" in out) == bool(printed)
    assert ("seed=77 has no effect" in out) == ("seed=77" in now)
    args = json.loads((resumed.folder / "args.json").read_text())
    stored = json.loads(load_checkpoint(resumed.checkpoint)[resumed_settings.KEY])
    assert stored["optimizer.lr"] == args["optimizer"]["lr"]


def test_host_methods_are_covered(train: Callable[..., Any], capsys: Any) -> None:
    now = ["optimizer.lr=0.7", "optimizer.weight_decay=0.25"]
    _, expected = train("simclr", *now)
    first, _ = train("simclr")
    _, found = train("simclr", *now, after_one_epoch(first))
    assert found == {step: rates for step, rates in expected.items() if step >= STEPS}
    assert "optimizer.weight_decay: " in capsys.readouterr().out


def test_momenta_are_kept(train: Callable[..., Any]) -> None:
    first, _ = train("simclr")
    (path,) = first.folder.glob("*ep0.ckpt")
    before = load_checkpoint(path)["optimizer_states"][0]["state"]
    # With these settings a step leaves the momentum unchanged.
    now = ["optimizer.lr=1e-30", "optimizer.classifier_lr=1e-30", "+optimizer.kwargs.momentum=1.0"]
    now += ["+optimizer.kwargs.dampening=1.0", "optimizer.weight_decay=0"]
    second, _ = train("simclr", *now, after_one_epoch(first))
    after = load_checkpoint(second.checkpoint)["optimizer_states"][0]["state"]
    assert before.keys() == after.keys()
    for key, state in before.items():
        assert torch.equal(after[key]["momentum_buffer"], state["momentum_buffer"])


def test_epochs_with_fewer_steps(train: Callable[..., Any], capsys: Any) -> None:
    """The schedule continues at the checkpoint's epoch, not at its step."""
    now = ["limit_train_batches=2"]
    _, expected = train("simclr", *now)
    first, _ = train("simclr")
    capsys.readouterr()
    _, found = train("simclr", *now, after_one_epoch(first))
    assert [*found] == [4, 5, 6, 7]
    assert [*found.values()] == [expected[step] for step in (2, 3, 4, 5)]
    assert "steps of an epoch: 4 there, 2 here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stored", "method", "now", "difference"),
    [
        (True, "mocov2_banded", ADAMW, "optimizer.name: sgd there, adamw here"),
        (False, "simclr", ADAMW, "optimizer.name: sgd there, adam here"),
        (
            *(True, "simclr", "+optimizer.exclude_bias_n_norm_wd=true"),
            "optimizer.exclude_bias_n_norm_wd: False there, True here",
        ),
    ],
)
def test_different_optimizer_is_refused(
    train: Callable[..., Any], stored: bool, method: str, now: str, difference: str
) -> None:
    first, _ = train(method, "max_epochs=1")
    path = first.checkpoint if stored else without_settings(first.checkpoint)
    with pytest.raises(CheckpointError) as refused:
        train(method, now, f"+resume_from_checkpoint='{path}'")
    for text in (f"{path}: ", f"({difference}", "Set it as", "name=", "auto_resume.enabled=False"):
        assert text in str(refused.value)


def without_settings(path: Path) -> Path:
    """Copies a checkpoint as an older version would have written it."""
    checkpoint = load_checkpoint(path)
    del checkpoint[resumed_settings.KEY]
    old = path.with_name("old.ckpt")
    torch.save(checkpoint, old)
    return old


COSINE = "one with lr_lambdas"
MILESTONES = "one with gamma, milestones"
OF_GROUPS = "of backbone: {} there, {} here".format


@pytest.mark.parametrize(
    ("before", "now", "printed"),
    [
        (
            [],
            [LR, "optimizer.weight_decay=0.5"],
            [f"lr {OF_GROUPS(0.001875, 0.03125)}", f"weight_decay {OF_GROUPS(0.0001, 0.5)}"],
        ),
        ([], STEP, [f"scheduler.name: {COSINE} there, {MILESTONES} here"]),
        (STEP, [NONE], [f"scheduler.name: {MILESTONES} there, none here"]),
        ([NONE], [], [f"scheduler.name: none there, {COSINE} here"]),
        ([], [], []),
        (STEP, STEP, []),
    ],
)
def test_checkpoint_of_an_older_version(
    train: Callable[..., Any], capsys: Any, before: list[str], now: list[str], printed: list[str]
) -> None:
    _, expected = train("mocov2_banded", *now)
    first, _ = train("mocov2_banded", *before)
    (path,) = first.folder.glob("*ep0.ckpt")
    capsys.readouterr()
    _, found = train("mocov2_banded", *now, f"+resume_from_checkpoint='{without_settings(path)}'")
    assert found == {step: rates for step, rates in expected.items() if step >= STEPS}
    out = capsys.readouterr().out
    assert [text for text in printed if text not in out] == []
    assert ("other settings" in out) == bool(printed)


STEPS_AS_TEXT = json.dumps(
    {
        "optimizer.name": "sgd",
        "optimizer.exclude_bias_n_norm_wd": False,
        "steps of an epoch": "x",
        "scheduler": [],
        "seed": {},
    }
)


@pytest.mark.parametrize("value", [torch.zeros(2), "[1]", "[" * 10**5, STEPS_AS_TEXT])
def test_foreign_settings_in_a_checkpoint_are_ignored(
    train: Callable[..., Any], value: object
) -> None:
    first, _ = train("simclr")
    (path,) = first.folder.glob("*ep0.ckpt")
    torch.save({**load_checkpoint(path), resumed_settings.KEY: value}, path.with_name("other.ckpt"))
    resume = f"+resume_from_checkpoint='{path.with_name('other.ckpt')}'"
    _, expected = train("simclr")
    _, found = train("simclr", resume)
    assert found == {step: rates for step, rates in expected.items() if step >= STEPS}
