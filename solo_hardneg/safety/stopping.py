"""SIGTERM, by which clusters take machines back: the run saves, says how to go on, and ends.

Lightning's own handler ends a run at the next batch without saving. In its newer versions it waits,
inside the handler, for the other ranks, and so for ever if they got no signal.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from solo_hardneg.safety.checkpoint_io import resume_words
from solo_hardneg.trainers import host_checkpointer

STATUS = 128 + signal.SIGTERM  # what a shell reports of a program that SIGTERM has ended
EVERY = 10  # steps between two agreements of several ranks

_shields = 0  # how many trainers of this process have worker processes to shield
_registered = False


class Stopped(SystemExit):
    """SIGTERM has ended the run. It passes through Lightning and Hydra, without a traceback."""


class Stopping(Callback):
    """Ends the training after SIGTERM, on all ranks after the same step.

    The handler takes a note and does nothing else. It is in place from the sanity check on; before
    it there is nothing to save, and SIGTERM ends the process as always. What comes while the run
    validates waits for the end of the epoch. A second SIGTERM changes nothing, because clusters and
    launchers send several; SIGINT and SIGKILL end the run at once as ever.

    Attributes:
        requested: whether this process has got a SIGTERM.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handler: Any = None
        self._previous: Any = None
        self._first_step = 0  # of this process
        self._saved_step = -1
        self._inside_epoch = False  # a checkpoint is being made between two batches
        self._leaves = False  # the epoch is over and saved, and so is the run
        self._shielding = False

    # ------------------------------------------------------------------ the handler

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shields the loader's worker processes, before there are any."""
        self.requested = self._leaves = self._inside_epoch = False
        self._saved_step = -1
        if stage == "fit":
            self._shield(True)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the place of Lightning's handler."""
        self._replace_handler(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the place of Lightning's handler, and notes where this process begins."""
        self._replace_handler(trainer)
        self._first_step = trainer.global_step

    def _replace_handler(self, trainer: Trainer) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if self._handler is not None or not in_main:  # Python has handlers in that thread only
            return

        def note(signum: int, frame: Any) -> None:
            if self.requested:
                return
            self.requested = True
            launcher = trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signum)  # hands it on to the ranks that it has started

        self._handler, self._previous = note, signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, note)

    def _put_handler_back(self) -> None:
        # At a good end, Lightning has put back what was there before its own.
        if self._handler is not None and signal.getsignal(signal.SIGTERM) is self._handler:
            signal.signal(signal.SIGTERM, self._previous)
        self._handler = self._previous = None

    def _shield(self, on: bool) -> None:
        global _shields, _registered
        if on == self._shielding:
            return
        self._shielding = on
        _shields += 1 if on else -1
        if not _registered:
            _registered = True
            os.register_at_fork(after_in_child=_shield_child)
            atexit.register(_end_shielded)  # before what multiprocessing has registered

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Puts the handler back."""
        self._put_handler_back()
        self._shield(False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Puts the handler back; where SIGTERM ends the run, Lightning does so in a moment.

        Where the first process fails alone, as on a full disk, those that it has started would wait
        for it, with NCCL for half an hour.
        """
        self._shield(False)
        launcher = trainer.strategy.launcher
        if launcher is not None and trainer.is_global_zero and isinstance(exception, Exception):
            launcher.kill(signal.SIGKILL)
        if not isinstance(exception, Stopped):
            self._put_handler_back()
        self._handler = self._previous = None

    # ------------------------------------------------------------------ ending

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run between two steps.

        Only here has everybody done what belongs to the step before: the momentum encoder is
        updated after the callbacks have been told of a batch's end.

        Raises:
            Stopped: SIGTERM has come, and the run is saved.
        """
        step, rest = divmod(batch_idx, trainer.accumulate_grad_batches)
        if rest or (trainer.world_size > 1 and step % EVERY) or not self._agreed(trainer):
            return
        if trainer.global_step == self._first_step:
            self._leave(trainer, saved=False)
        if batch_idx == 0:  # Lightning can't go on from here; a step later it can
            return
        self._inside_epoch = True
        try:
            saved = self._save(trainer)
        finally:
            self._inside_epoch = False
        self._leave(trainer, saved)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, if the run is to end; what was logged of the epoch is written after this."""
        # Reduces what was logged on all processes. The first one has, for its progress bar; the
        # others would do it in the middle of this agreement.
        _ = trainer.callback_metrics
        if self._agreed(trainer):
            self._save(trainer)
            self._leaves = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the run between two epochs.

        Raises:
            Stopped: SIGTERM has come, and the run is saved.
        """
        if self._leaves:
            self._leave(trainer, saved=host_checkpointer(trainer) is not None)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes of a checkpoint inside an epoch one that all versions of Lightning go on from."""
        self._saved_step = trainer.global_step
        if self._inside_epoch:
            forget_next_batch(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"])

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any rank has got a SIGTERM. All ranks must call it together."""
        return bool(trainer.strategy.reduce_boolean_decision(self.requested, all=False))

    def _save(self, trainer: Trainer) -> bool:
        """Lets the host save as it always does, unless it has; says whether there is a checkpoint.

        Its folder and naming are what its ``auto_resume`` looks for.
        """
        saver = host_checkpointer(trainer)
        if saver is None:
            return False
        if self._saved_step != trainer.global_step:
            saver.save(trainer)
        return True

    def _leave(self, trainer: Trainer, saved: bool) -> NoReturn:
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            print(self._last_words(trainer, saved), flush=True)
        trainer.strategy.barrier()  # no rank is gone while another one still writes
        raise Stopped(_status(trainer))

    def _last_words(self, trainer: Trainer, saved: bool) -> str:
        step = trainer.global_step
        text = f"\nSIGTERM: the run ends after step {step}"
        if step == self._first_step:
            return f"{text}, before it has trained anything. Nothing was saved."
        if not saved:
            return f"{text}. Nothing was saved, because of checkpoint.enabled=False."
        path = getattr(trainer.strategy.checkpoint_io, "newest", None)
        if path is None:  # somebody else's plug-in has written it
            return f"{text}. To go on: the same command with auto_resume.enabled=True"
        return (
            f"{text}. Saved: {path.absolute()}\nTo go on: the same command with "
            f"auto_resume.enabled=True, or with {resume_words(path)}"
        )


def forget_next_batch(progress: dict[str, Any]) -> None:
    """Takes a batch that was fetched, but not trained on, out of Lightning's count of batches.

    Args:
        progress: of the batches, as it stands in a checkpoint; changed in place.
    """
    for part in ("total", "current"):
        progress[part]["ready"] = progress[part]["completed"]
    progress["is_last_batch"] = False  # what this says is of the next one


def _status(trainer: Trainer) -> int:
    """The process's exit status; 0 for those that Lightning's launcher has started.

    It takes anything else from them for a crash, and kills all the others. The first process has
    the status.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    helper = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
    return 0 if helper else STATUS


def _shield_child() -> None:
    """In a process that is forked while a run trains, such as a loader's worker: SIGTERM waits.

    Clusters send it to all processes of a job. A worker that it ends takes the run with it, which
    still has to save. Workers end when the run closes its loader, or is gone.
    """
    if _shields > 0 and _is_a_loaders():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _end_shielded() -> None:
    """Ends the workers that don't hear SIGTERM: Python sends it to them at its end, and waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would call it a crash
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            blocked = next(line for line in lines if line.startswith("SigBlk:")).split()[1]
            if int(blocked, 16) >> (signal.SIGTERM - 1) & 1:
                child.kill()


def _is_a_loaders() -> bool:
    """Whether this process has just been forked by a loader.

    Others, such as those of a ``multiprocessing.Pool``, are ended by SIGTERM and must hear it.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.data.dataloader":
            return True
        frame = frame.f_back
    return False
