"""Limits that end a run: what is said, how it goes on, and runs with nothing left to train."""

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
from solo_hardneg.safety.reading import epochs_done
from solo_hardneg.standalone.run import pretrain

pytestmark = pytest.mark.usefixtures("tiny")

Config = Callable[..., DictConfig]
Watched = Callable[..., Watch]
AGAIN = "auto_resume.enabled=true"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each step takes a second, by the clock that Lightning's timer reads."""
    now = [1000.0]
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time.monotonic", lambda: now[0])
    assert time.monotonic() == now[0]

    class Clock(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            now[0] += 1

    ours = plugin.callbacks
    monkeypatch.setattr(plugin, "callbacks", lambda: [*ours(), Clock()])
    return now


def test_max_time_counts_from_each_start_and_no_batch_is_left_out(
    config: Config, clock: list[float], watched: Watched, capsys: Any
) -> None:
    steps = []
    for place in ("step 5, inside epoch 2", "step 10, inside epoch 3"):
        watch = watched()
        result = pretrain(config("mocov2_banded", "+max_time='00:00:00:05'", AGAIN))
        steps += watch.steps
        said = capsys.readouterr().out
        assert f"max_time=00:00:00:05 reached ({place})" in said
        assert (
            f"auto_resume.enabled=True or \"++resume_from_checkpoint='{result.checkpoint}'" in said
        )
        # An epoch that is cut off isn't a whole one.
        assert epochs_done(load_checkpoint(result.checkpoint)) == len(steps) // STEPS
    watch = watched()
    pretrain(config("mocov2_banded", "+max_time='00:00:00:05'", AGAIN))
    assert "Training ended: max_epochs=3 reached (step 12, epoch 3)." in capsys.readouterr().out
    assert steps + watch.steps == [*range(1, 13)]


def test_steps_that_are_used_up(config: Config, watched: Watched, capsys: Any) -> None:
    first = pretrain(config("mocov2_banded", f"+max_steps={STEPS + 1}"))
    said = capsys.readouterr().out
    assert f"max_steps={STEPS + 1} reached (step 5, inside epoch 2)." in said
    assert "a higher max_steps" in said
    with pytest.raises(CheckpointError, match=rf"found={first.checkpoint}: .*max_steps=5") as used:
        pretrain(config("mocov2_banded", f"+max_steps={STEPS + 1}", AGAIN))
    assert "Raise max_steps" in str(used.value)
    assert [*first.folder.parent.glob("*/args.json")] == [first.folder / "args.json"]
    watch = watched()
    pretrain(config("mocov2_banded", f"+max_steps={2 * STEPS}", AGAIN))
    assert watch.steps == [6, 7, 8]
    assert f"max_steps={2 * STEPS} reached (step 8, epoch 2)." in capsys.readouterr().out


def test_epochs_that_are_used_up(config: Config) -> None:
    first = pretrain(config("simclr", "max_epochs=1"))
    named = f"+resume_from_checkpoint='{first.checkpoint}'"
    for how, key in ((AGAIN, "auto_resume.enabled=True found"), (named, "resume_from_checkpoint")):
        with pytest.raises(
            CheckpointError, match=rf"{key}={first.checkpoint}: .*max_epochs=1\."
        ) as e:
            pretrain(config("simclr", "max_epochs=1", how))
        assert "Raise max_epochs" in str(e.value)


@pytest.mark.parametrize(
    "given", ["max_steps=0", "max_time='00:00:00:00'", "limit_train_batches=0"]
)
def test_a_limit_of_nothing(config: Config, given: str) -> None:
    limit = given.replace("'", "")
    remedy = f"Raise {limit.partition('=')[0]}, or leave the limit out"
    with pytest.raises(ConfigError, match=f"{limit}: .*without training a step. {remedy}"):
        pretrain(config("simclr", f"++{given}"))


def test_a_timer_of_somebody_elses_goes_on_counting_in_one_start(
    config: Config, clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ours = plugin.callbacks
    monkeypatch.setattr(plugin, "callbacks", lambda: [*ours(), Timer({"seconds": 3})])
    pretrain(config("simclr"))
    out = capsys.readouterr().out
    assert "the limit of a Timer callback reached (step 3, inside epoch 1)." in out


class Rare(Callback):
    """Saves as solo-learn does, in the epochs 0, 10, 20 and so on; notes the steps."""

    def __init__(self) -> None:
        self.cfg, self.steps = None, list[int]()

    def save(self, trainer: Any) -> None:
        self.steps.append(trainer.global_step)
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{trainer.current_epoch}.ckpt")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch % 10 == 0:
            self.save(trainer)


class AtTheEnd(Callback):
    """Ends the run after all other callbacks have been told of an epoch's end."""

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize(
    ("limits", "after", "steps"),
    [
        ({"max_epochs": 3}, [], [2, 6]),
        ({"max_epochs": 11}, [], [2, 22]),  # whose turn it is anyway
        ({"max_epochs": 30, "max_steps": 5}, [], [2, 5]),
        ({"max_epochs": -1, "max_steps": 6}, [], [2, 6]),  # at the end of an epoch
        ({"max_epochs": 30, "max_time": {"seconds": 5}}, [], [2, 5]),
        ({"max_epochs": 30}, [AtTheEnd()], [2, 4]),
    ],
)
def test_what_a_limit_ends_is_saved_once(
    limits: dict[str, Any],
    after: list[Callback],
    steps: list[int],
    tmp_path: Path,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin.register()
    ours, saver = plugin.callbacks, Rare()
    monkeypatch.setattr(plugin, "callbacks", lambda: [*ours(), *after])
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
