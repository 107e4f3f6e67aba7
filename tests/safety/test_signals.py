"""A signal at any moment: the run is saved, ends, and resumes without losing a step."""

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
from solo_hardneg.models.checkpoints import epochs_done
from solo_hardneg.safety import worker_signals
from solo_hardneg.safety.signals import SIGNALS, Stopped
from solo_hardneg.standalone.run import linear, pretrain

pytestmark = pytest.mark.usefixtures("tiny")

Config = Callable[..., DictConfig]
Watched = Callable[..., Watch]
EPOCHS = 3


def checkpoints(tmp_path: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    return sorted(tmp_path.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def pretrain_until_stopped(cfg: DictConfig, status: int = 143) -> None:
    with pytest.raises(Stopped) as ended:
        pretrain(cfg)
    assert ended.value.code == status
    assert worker_signals._trainings == 0


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
def test_stopped_run_resumes_at_its_step(
    config: Config,
    watched: Watched,
    tmp_path: Path,
    capsys: Any,
    method: str,
    hook: str,
    step: int,
    done: int,
) -> None:
    before = watched(hook, step, times=2)  # the second signal changes nothing
    pretrain_until_stopped(config(method))
    assert before.steps == list(range(1, step + 1))
    out = capsys.readouterr().out
    (file,) = checkpoints(tmp_path)
    assert f"\nSIGTERM: the run ends after step {step}. Saved: {file}\n" in out
    if hook == "validation":  # the epoch's metrics are written
        (metrics,) = tmp_path.rglob("metrics.csv")
        assert pd.read_csv(metrics)["train_nce_loss_epoch"].notna().any()
    assert f"auto_resume.enabled=True or \"++resume_from_checkpoint='{file}'\"" in out
    content = load_checkpoint(file)
    assert content["global_step"] == step
    assert epochs_done(content) == done
    if step % STEPS:  # the batch fetched for the next step doesn't count
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
    ("signum", "status", "next_handler"),
    [
        (signal.SIGHUP, 129, None),
        (signal.SIGUSR1, 138, None),
        (signal.SIGINT, 130, signal.SIG_DFL),  # a second one ends the process
        (signal.SIGINT, 130, signal.default_int_handler),  # but not an interactive session
    ],
)
def test_other_signals_stop_the_run(
    config: Config,
    watched: Watched,
    tmp_path: Path,
    capfd: Any,
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
    status: int,
    next_handler: Any,
) -> None:
    if next_handler is signal.default_int_handler:
        monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    watch = watched("step", 2, signum=signum)
    pretrain_until_stopped(config("simclr", "data.num_workers=1"), status)
    output = capfd.readouterr()
    (file,) = checkpoints(tmp_path)
    assert f"\n{signum.name}: the run ends after step 2. Saved: {file}\n" in output.out
    assert load_checkpoint(file)["global_step"] == 2
    assert watch.ended_by is signum
    assert watch.next_handler is (watch.handler if next_handler is None else next_handler)
    assert ("Press Ctrl-C again" in output.err) == (next_handler is not None)


@pytest.mark.parametrize(
    ("signum", "handler"),
    [
        (signal.SIGHUP, signal.SIG_IGN),  # nohup, or a background job
        (signal.SIGUSR1, lambda signum, frame: None),  # Lightning's auto-requeue in SLURM
    ],
)
def test_existing_handlers_are_kept(
    config: Config, watched: Watched, signum: signal.Signals, handler: Any
) -> None:
    before = signal.signal(signum, handler)
    try:
        watch = watched("step", 2, signum=signum)
        pretrain(config("simclr", "max_epochs=1"))
        assert watch.handler is watch.next_handler is handler
        assert len(watch.steps) == STEPS
    finally:
        signal.signal(signum, before)


def test_run_can_be_stopped_twice(config: Config, watched: Watched) -> None:
    steps = []
    for step in (2, 7):
        watch = watched("step", step)
        pretrain_until_stopped(config("simclr_banded", "auto_resume.enabled=True"))
        steps += watch.steps
    watch = watched()
    pretrain(config("simclr_banded", "auto_resume.enabled=True"))
    assert steps + watch.steps == list(range(1, EPOCHS * STEPS + 1))


@pytest.mark.parametrize(
    ("hook", "step", "enabled", "message"),
    [
        ("sanity check", 0, True, ", before it has trained anything. Nothing was saved."),
        ("start", 0, True, ", before it has trained anything. Nothing was saved."),
        ("step", 2, False, ". Nothing was saved, because of checkpoint.enabled=False."),
    ],
)
def test_nothing_is_saved_without_a_step_or_checkpoints(
    config: Config,
    watched: Watched,
    tmp_path: Path,
    capsys: Any,
    hook: str,
    step: int,
    enabled: bool,
    message: str,
) -> None:
    watch = watched(hook, step)
    pretrain_until_stopped(
        config("simclr", "+num_sanity_val_steps=1", f"checkpoint.enabled={enabled}")
    )
    assert len(watch.steps) == step
    assert not checkpoints(tmp_path)
    assert message in capsys.readouterr().out


def test_signal_after_the_last_step_changes_nothing(config: Config, watched: Watched) -> None:
    watch = watched("step", EPOCHS * STEPS)
    result = pretrain(config("simclr"))  # the fixture compares the handlers before and after
    assert "StopOnSignal" in watch.handler.__qualname__  # not Lightning's
    assert len(watch.steps) == EPOCHS * STEPS
    assert result.checkpoint is not None
    assert epochs_done(load_checkpoint(result.checkpoint)) == EPOCHS


def test_accumulated_gradients_are_not_lost(config: Config, watched: Watched) -> None:
    more = ("+accumulate_grad_batches=2", "++limit_train_batches=6")
    before, batches = watched(), []

    def count(*_: Any) -> None:
        batches.append(len(batches))
        if len(batches) == 3:  # between two accumulated batches
            os.kill(os.getpid(), signal.SIGTERM)

    before.on_train_batch_end = count  # type: ignore[method-assign]
    pretrain_until_stopped(config("simclr", *more))
    assert len(batches) == 4
    after = watched()
    pretrain(config("simclr", *more, "auto_resume.enabled=True"))
    assert len(after.steps) == 3 * 6 - 4


def test_handlers_are_restored_after_an_error(config: Config, watched: Watched) -> None:
    watch = watched()

    def fail(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError

    watch.on_train_batch_end = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        pretrain(config("simclr"))
    assert worker_signals._trainings == 0


def test_no_handler_outside_the_main_thread(config: Config, watched: Watched) -> None:
    watch = watched()
    thread = threading.Thread(target=pretrain, args=(config("simclr", "max_epochs=1"),))
    thread.start()
    thread.join()
    assert len(watch.steps) == STEPS


def test_linear_evaluation_is_stopped_and_resumed(
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


def test_signals_are_blocked_in_loader_workers(config: Config, watched: Watched) -> None:
    watch, workers = watched("step", 1, times=0), []
    others = multiprocessing.active_children()  # ranks of other tests
    record = watch.on_train_batch_end

    def kill(*arguments: Any) -> None:
        record(*arguments)
        for worker in set(multiprocessing.active_children()).difference(others):
            workers.append(worker)
            for signum in SIGNALS:
                os.kill(worker.pid or 0, signum)

    watch.on_train_batch_end = kill  # type: ignore[method-assign]
    pretrain(config("simclr", "data.num_workers=1", "max_epochs=1"))
    assert workers
    assert watch.steps == list(range(1, STEPS + 1))
    assert not any(worker.is_alive() for worker in workers)


def test_damaged_checkpoint_is_replaced_by_the_previous_one(
    config: Config, watched: Watched, tmp_path: Path, capsys: Any
) -> None:
    watched("step", STEPS + 2)
    pretrain_until_stopped(config("simclr_banded", "+checkpoint.keep_prev=True"))
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


def test_full_disk_keeps_the_last_checkpoint(
    config: Config, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watched()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    watch.on_train_epoch_start = lambda trainer, _: (  # type: ignore[method-assign]
        monkeypatch.setattr(os, "fsync", fail) if trainer.current_epoch == 2 else None
    )
    text = r"checkpoint\.dir=.*runs: the checkpoint of epoch 2, step 12 .*one is .*-ep1\.ckpt: r"
    with pytest.raises(CheckpointError, match=text):
        pretrain(config("simclr"))
    (left,) = checkpoints(tmp_path)
    assert left.stem.endswith("-ep1")
    assert not list(tmp_path.rglob("*.part"))
