"""Limits that end a run: their message, resuming afterwards, and runs with nothing to train."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import load_checkpoint
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import DictConfig
from safety_runs import STEPS, Watch

from solo_hardneg import plugin
from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.models.checkpoints import epochs_done
from solo_hardneg.standalone.run import pretrain

pytestmark = pytest.mark.usefixtures("tiny")

Config = Callable[..., DictConfig]
Watched = Callable[..., Watch]
AGAIN = "auto_resume.enabled=true"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes each step take a second on the clock of Lightning's timer."""
    now = [1000.0]
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time.monotonic", lambda: now[0])
    assert time.monotonic() == now[0]

    class Clock(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            now[0] += 1

    callbacks = plugin.callbacks
    monkeypatch.setattr(plugin, "callbacks", lambda: [*callbacks(), Clock()])
    return now


def test_max_time_counts_from_each_start_and_no_batch_is_lost(
    config: Config, clock: list[float], watched: Watched, capsys: Any
) -> None:
    steps = []
    for place in ("step 5, inside epoch 2", "step 10, inside epoch 3"):
        watch = watched()
        result = pretrain(config("mocov2_banded", "+max_time='00:00:00:05'", AGAIN))
        steps += watch.steps
        out = capsys.readouterr().out
        assert f"max_time=00:00:00:05 reached ({place})" in out
        assert (
            f"auto_resume.enabled=True or \"++resume_from_checkpoint='{result.checkpoint}'" in out
        )
        # An unfinished epoch doesn't count.
        assert epochs_done(load_checkpoint(result.checkpoint)) == len(steps) // STEPS
    watch = watched()
    pretrain(config("mocov2_banded", "+max_time='00:00:00:05'", AGAIN))
    assert "Training ended: max_epochs=3 reached (step 12, epoch 3)." in capsys.readouterr().out
    assert steps + watch.steps == [*range(1, 13)]


def test_max_steps_used_up(config: Config, watched: Watched, capsys: Any) -> None:
    first = pretrain(config("mocov2_banded", f"+max_steps={STEPS + 1}"))
    out = capsys.readouterr().out
    assert f"max_steps={STEPS + 1} reached (step 5, inside epoch 2)." in out
    assert "a higher max_steps" in out
    text = rf"found={first.checkpoint}: .*max_steps=5\. Raise max_steps"
    with pytest.raises(CheckpointError, match=text):
        pretrain(config("mocov2_banded", f"+max_steps={STEPS + 1}", AGAIN))
    assert [*first.folder.parent.glob("*/args.json")] == [first.folder / "args.json"]
    watch = watched()
    pretrain(config("mocov2_banded", f"+max_steps={2 * STEPS}", AGAIN))
    assert watch.steps == [6, 7, 8]
    assert f"max_steps={2 * STEPS} reached (step 8, epoch 2)." in capsys.readouterr().out


def test_max_epochs_used_up(config: Config) -> None:
    first = pretrain(config("simclr", "max_epochs=1"))
    named = f"+resume_from_checkpoint='{first.checkpoint}'"
    for override, key in (
        (AGAIN, "auto_resume.enabled=True found"),
        (named, "resume_from_checkpoint"),
    ):
        text = rf"{key}={first.checkpoint}: .*max_epochs=1\. Raise max_epochs"
        with pytest.raises(CheckpointError, match=text):
            pretrain(config("simclr", "max_epochs=1", override))


@pytest.mark.parametrize(
    "override", ["max_steps=0", "max_time='00:00:00:00'", "limit_train_batches=0"]
)
def test_limit_of_zero_is_refused(config: Config, override: str) -> None:
    limit = override.replace("'", "")
    remedy = f"Raise {limit.partition('=')[0]}, or leave the limit out"
    with pytest.raises(ConfigError, match=f"{limit}: .*without training a step. {remedy}"):
        pretrain(config("simclr", f"++{override}"))


def test_foreign_timer_is_reported(
    config: Config, clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    callbacks = plugin.callbacks
    monkeypatch.setattr(plugin, "callbacks", lambda: [*callbacks(), Timer({"seconds": 3})])
    pretrain(config("simclr"))
    out = capsys.readouterr().out
    assert "the limit of a Timer callback reached (step 3, inside epoch 1)." in out


class SaveEveryTenEpochs(Callback):
    """Saves as solo-learn does, and records the steps."""

    def __init__(self) -> None:
        self.cfg, self.steps = None, list[int]()

    def save(self, trainer: Any) -> None:
        self.steps.append(trainer.global_step)
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{trainer.current_epoch}.ckpt")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch % 10 == 0:
            self.save(trainer)


class StopLast(Callback):
    """Stops the run in epoch 1, after all other callbacks."""

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize(
    ("limits", "after", "steps"),
    [
        ({"max_epochs": 3}, [], [2, 6]),
        ({"max_epochs": 11}, [], [2, 22]),  # saved on schedule anyway
        ({"max_epochs": 30, "max_steps": 5}, [], [2, 5]),
        ({"max_epochs": -1, "max_steps": 6}, [], [2, 6]),  # at the end of an epoch
        ({"max_epochs": 30, "max_time": {"seconds": 5}}, [], [2, 5]),
        ({"max_epochs": 30}, [StopLast()], [2, 4]),
    ],
)
def test_last_state_is_saved_once(
    limits: dict[str, Any],
    after: list[Callback],
    steps: list[int],
    tmp_path: Path,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin.register()
    callbacks, saver = plugin.callbacks, SaveEveryTenEpochs()
    monkeypatch.setattr(plugin, "callbacks", lambda: [*callbacks(), *after])
    trainer = Trainer(
        **limits,
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=[saver],
        limit_train_batches=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    assert saver.steps == steps
