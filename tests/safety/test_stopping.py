"""A signal at every kind of moment: the run is saved, ends, and goes on without losing a step."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from integration_helpers import load_checkpoint
from omegaconf import DictConfig
from safety_runs import STEPS, Watch

from solo_hardneg.errors import CheckpointError
from solo_hardneg.safety import stopping
from solo_hardneg.safety.reading import epochs_done
from solo_hardneg.safety.stopping import SIGNALS, Stopped
from solo_hardneg.standalone.run import linear, pretrain

pytestmark = pytest.mark.usefixtures("tiny")

Config = Callable[..., DictConfig]
Watched = Callable[..., Watch]
EPOCHS = 3


def checkpoints(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def stop(cfg: DictConfig, status: int = 143) -> None:
    with pytest.raises(Stopped) as ended:
        pretrain(cfg)
    assert ended.value.code == status
    assert stopping._shields == 0


@pytest.mark.parametrize(
    ("method", "hook", "step", "done"),
    [
        ("mocov2_banded", "step", 1, 0),
        ("mocov2plus", "step", STEPS - 1, 0),
        ("mocov2_banded", "step", STEPS, 1),  # at the end of an epoch
        ("simclr_banded", "validation", STEPS, 1),
        ("simclr", "step", STEPS + 2, 1),
        ("mocov2_banded", "step", EPOCHS * STEPS - 1, EPOCHS - 1),  # in the last epoch
    ],
)
def test_a_stopped_run_goes_on_where_it_was(
    config: Config,
    watched: Watched,
    tmp_path: Path,
    capsys: Any,
    method: str,
    hook: str,
    step: int,
    done: int,
) -> None:
    before = watched(hook, step, times=2)  # the second one changes nothing
    stop(config(method))
    assert before.steps == list(range(1, step + 1))
    said = capsys.readouterr().out
    (file,) = checkpoints(tmp_path)
    assert f"\nSIGTERM: the run ends after step {step}. Saved: {file}\n" in said
    if hook == "validation":  # what the epoch has logged is written
        (metrics,) = tmp_path.rglob("metrics.csv")
        assert pd.read_csv(metrics)["train_nce_loss_epoch"].notna().any()
    assert "the same command with auto_resume.enabled=True, or with" in said
    assert f"\"++resume_from_checkpoint='{file}'\"" in said
    content = load_checkpoint(file)
    assert content["global_step"] == step
    assert epochs_done(content) == done
    if step % STEPS:  # the batch that was fetched for the next step doesn't count
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        assert set(progress["current"].values()) == {step % STEPS}
        assert set(progress["total"].values()) == {step}
        assert not progress["is_last_batch"]

    after = watched()
    result = pretrain(config(method, "auto_resume.enabled=True"))
    assert after.steps == list(range(step + 1, EPOCHS * STEPS + 1))
    assert all(math.isfinite(loss) for loss in after.losses)
    assert result.checkpoint is not None
    content = load_checkpoint(result.checkpoint)
    assert content["global_step"] == EPOCHS * STEPS
    assert epochs_done(content) == EPOCHS
    assert content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == EPOCHS


@pytest.mark.parametrize(
    ("signum", "status", "then"),
    [
        (signal.SIGHUP, 129, None),
        (signal.SIGUSR1, 138, None),
        (signal.SIGINT, 130, signal.SIG_DFL),  # a second one ends the process at once
        (signal.SIGINT, 130, signal.default_int_handler),  # but not an interactive session
    ],
)
def test_other_signals_stop_it_likewise(
    config: Config,
    watched: Watched,
    tmp_path: Path,
    capfd: Any,
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
    status: int,
    then: Any,
) -> None:
    if then is signal.default_int_handler:
        monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    watch = watched("step", 2, signum=signum)
    stop(config("simclr", "data.num_workers=1"), status)
    said = capfd.readouterr()
    (file,) = checkpoints(tmp_path)
    assert f"\n{signum.name}: the run ends after step 2. Saved: {file}\n" in said.out
    assert load_checkpoint(file)["global_step"] == 2
    assert watch.ended_by is signum
    assert watch.next_handler is (watch.handler if then is None else then)
    assert ("Press Ctrl-C again" in said.err) == (then is not None)


@pytest.mark.parametrize(
    ("signum", "theirs"),
    [
        (signal.SIGHUP, signal.SIG_IGN),  # nohup, or a shell's job in the background
        (signal.SIGUSR1, lambda signum, frame: None),  # Lightning's requeuing in SLURM
    ],
)
def test_a_signal_that_others_have_handled_stays_theirs(
    config: Config, watched: Watched, signum: signal.Signals, theirs: Any
) -> None:
    before = signal.signal(signum, theirs)
    try:
        watch = watched("step", 2, signum=signum)
        pretrain(config("simclr", "max_epochs=1"))
        assert watch.handler is watch.next_handler is theirs
        assert len(watch.steps) == STEPS
    finally:
        signal.signal(signum, before)


def test_a_run_can_be_stopped_again_and_again(config: Config, watched: Watched) -> None:
    steps = []
    for step in (2, 7):
        watch = watched("step", step)
        stop(config("simclr_banded", "auto_resume.enabled=True"))
        steps += watch.steps
    watch = watched()
    pretrain(config("simclr_banded", "auto_resume.enabled=True"))
    assert steps + watch.steps == list(range(1, EPOCHS * STEPS + 1))


@pytest.mark.parametrize(
    ("hook", "step", "enabled", "why"),
    [
        ("sanity check", 0, True, ", before it has trained anything. Nothing was saved."),
        ("start", 0, True, ", before it has trained anything. Nothing was saved."),
        ("step", 2, False, ". Nothing was saved, because of checkpoint.enabled=False."),
    ],
)
def test_without_a_step_or_checkpoints_nothing_is_saved(
    config: Config,
    watched: Watched,
    tmp_path: Path,
    capsys: Any,
    hook: str,
    step: int,
    enabled: bool,
    why: str,
) -> None:
    watch = watched(hook, step)
    stop(config("simclr", "+num_sanity_val_steps=1", f"checkpoint.enabled={enabled}"))
    assert len(watch.steps) == step
    assert not checkpoints(tmp_path)
    assert why in capsys.readouterr().out


def test_after_the_last_step_the_run_is_at_its_end_anyway(config: Config, watched: Watched) -> None:
    watch = watched("step", EPOCHS * STEPS)
    result = pretrain(config("simclr"))  # the fixture compares the handlers before and after
    assert "Stopping" in watch.handler.__qualname__  # in the place of Lightning's
    assert len(watch.steps) == EPOCHS * STEPS
    assert result.checkpoint is not None
    assert epochs_done(load_checkpoint(result.checkpoint)) == EPOCHS


def test_gradients_that_are_being_summed_are_not_lost(config: Config, watched: Watched) -> None:
    more = ("+accumulate_grad_batches=2", "++limit_train_batches=6")
    before, batches = watched(), []

    def count(*_: Any) -> None:
        batches.append(len(batches))
        if len(batches) == 3:  # in the middle of a sum
            os.kill(os.getpid(), signal.SIGTERM)

    before.on_train_batch_end = count  # type: ignore[method-assign]
    stop(config("simclr", *more))
    assert len(batches) == 4
    after = watched()
    pretrain(config("simclr", *more, "auto_resume.enabled=True"))
    assert len(after.steps) == 3 * 6 - 4


def test_an_error_of_the_run_leaves_no_handler(config: Config, watched: Watched) -> None:
    watch = watched()

    def fail(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError

    watch.on_train_batch_end = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        pretrain(config("simclr"))
    assert stopping._shields == 0


def test_outside_the_main_thread_there_is_no_handler(config: Config, watched: Watched) -> None:
    watch = watched()
    thread = threading.Thread(target=pretrain, args=(config("simclr", "max_epochs=1"),))
    thread.start()
    thread.join()
    assert len(watch.steps) == STEPS


def test_linear_evaluation_is_stopped_goes_on_and_says_its_end_too(
    config: Config, watched: Watched, capsys: Any
) -> None:
    pretrained = pretrain(config("simclr", "max_epochs=1")).checkpoint
    more = [f"pretrained_feature_extractor='{pretrained}'", "++limit_train_batches=4"]
    before = watched("step", 6)
    with pytest.raises(Stopped):
        linear(config("linear", *more))
    after = watched()
    linear(config("linear", *more, "auto_resume.enabled=True"))
    assert before.steps + after.steps == list(range(1, EPOCHS * STEPS + 1))
    assert "max_epochs=3 reached (step 12, epoch 3)." in capsys.readouterr().out


def test_signals_for_the_loaders_workers_are_held_back(config: Config, watched: Watched) -> None:
    watch, workers = watched("step", 1, times=0), []
    others = multiprocessing.active_children()  # the ranks of other tests
    note = watch.on_train_batch_end

    def kill(*arguments: Any) -> None:
        note(*arguments)
        for worker in set(multiprocessing.active_children()).difference(others):
            workers.append(worker)
            for signum in SIGNALS:
                os.kill(worker.pid or 0, signum)

    watch.on_train_batch_end = kill  # type: ignore[method-assign]
    pretrain(config("simclr", "data.num_workers=1", "max_epochs=1"))
    assert workers
    assert watch.steps == list(range(1, STEPS + 1))
    assert not any(worker.is_alive() for worker in workers)


def test_a_damaged_checkpoint_is_passed_over_and_said(
    config: Config, watched: Watched, tmp_path: Path, capsys: Any
) -> None:
    watched("step", STEPS + 2)
    stop(config("simclr_banded", "+checkpoint.keep_prev=True"))
    older, newest = checkpoints(tmp_path)
    assert (older.stem[-4:], newest.stem[-4:]) == ("-ep0", "-ep1")
    newest.write_bytes(newest.read_bytes()[:1000])
    after = watched()
    with pytest.raises(CheckpointError, match=f"can't be read; .*of this run is {older}"):
        pretrain(config("simclr_banded", f"+resume_from_checkpoint='{newest}'"))
    with pytest.warns(UserWarning, match=f"found={newest}: it is cut off.* before it: {older}"):
        pretrain(config("simclr_banded", "auto_resume.enabled=True"))
    assert f"Resuming {older}" in capsys.readouterr().out
    assert after.steps == list(range(STEPS + 1, EPOCHS * STEPS + 1))


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    config: Config, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watched()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    watch.on_train_epoch_start = lambda trainer, _: (  # type: ignore[method-assign]
        monkeypatch.setattr(os, "fsync", fail) if trainer.current_epoch == 2 else None
    )
    text = r"checkpoint\.dir=.*runs: the checkpoint of epoch 2, step 12 .*one is .*-ep1\.ckpt: go"
    with pytest.raises(CheckpointError, match=text):
        pretrain(config("simclr"))
    (left,) = checkpoints(tmp_path)
    assert left.stem.endswith("-ep1")
    assert not list(tmp_path.rglob("*.part"))
