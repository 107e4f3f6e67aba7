"""Signals that end a run: it saves a checkpoint, says how to go on, and exits.

SIGTERM comes from clusters that take machines back, SIGINT from Ctrl-C, SIGHUP from a closed ssh
connection, SIGUSR1 from SLURM before the time limit.

Lightning's own SIGTERM handler ends a run at the next batch without saving. In its newer versions
it waits, inside the handler, for the other ranks, and so for ever if they got no signal.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from solo_hardneg.distributed import gather
from solo_hardneg.safety.checkpoint_io import resume_words
from solo_hardneg.trainers import host_checkpointer

# Where several arrive, the last of these is reported: ranks forward any signal as SIGTERM.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
EVERY = 10  # steps between two agreements of several ranks

_CTRL_C = (
    "\nSIGINT: the run saves a checkpoint after this step (during validation: after the epoch) and "
    "ends. Press Ctrl-C again to end it at once, without a checkpoint.\n"
)

_shields = 0  # how many trainers of this process have worker processes to shield
_registered = False


class Stopped(SystemExit):
    """A signal has ended the run. It passes through Lightning and Hydra, without a traceback."""


class Stopping(Callback):
    """Ends the training after one of :data:`SIGNALS`, on all ranks after the same step.

    The handler sets a flag, and the run ends between two steps. It is in place from the sanity
    check on; before it there is nothing to save, and a signal ends the process as always. A signal
    during validation takes effect at the end of the epoch. Repeating SIGTERM changes nothing,
    because clusters and launchers send several; a second SIGINT ends the process at once.

    SIGINT, SIGHUP and SIGUSR1 are handled only where nobody else has: ``nohup`` ignores SIGHUP, a
    shell ignores SIGINT for background jobs, and with SLURM's auto-requeue SIGUSR1 is Lightning's.

    Attributes:
        received: Signals this process has received.
        ended_by: Signal that ended the run, the same on all ranks; ``None`` for any other end.
    """

    def __init__(self) -> None:
        self.received: set[signal.Signals] = set()
        self.ended_by: signal.Signals | None = None
        self._handler: Any = None
        self._previous: dict[signal.Signals, Any] = {}
        self._first_step = 0  # of this process
        self._saved_step = -1
        self._inside_epoch = False  # a checkpoint is being made between two batches
        # The epoch is over and saved, and this signal ends the run before the next one.
        self._leaves_by: signal.Signals | None = None
        self._shielding = False

    # ------------------------------------------------------------------ the handler

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shields the loader's worker processes, before there are any."""
        self.received.clear()
        self.ended_by = self._leaves_by = None
        self._inside_epoch = False
        self._saved_step = -1
        if stage == "fit":
            self._shield(True)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handler, in place of Lightning's for SIGTERM."""
        self._install_handler(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handler, and records the step at which this process begins."""
        self._install_handler(trainer)
        self._first_step = trainer.global_step

    def _install_handler(self, trainer: Trainer) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if self._handler is not None or not in_main:  # Python has handlers in that thread only
            return

        def note(signum: int, frame: Any) -> None:
            if signum == signal.SIGINT:
                # Python's handler would not run while the process waits for a GPU or another rank;
                # but a notebook or a prompt should outlive the run.
                interactive = hasattr(sys, "ps1")
                again = signal.default_int_handler if interactive else signal.SIG_DFL
                signal.signal(signal.SIGINT, again)
                if trainer.is_global_zero:
                    _say(_CTRL_C)
            elif signum == signal.SIGHUP:
                _replace_dead_outputs()
            launcher = trainer.strategy.launcher
            if not self.received and launcher is not None:
                # Forwarded to the ranks it has started. Not as SIGINT, which they may have got
                # from the terminal, and whose second one would end them at once.
                launcher.kill(signal.SIGTERM)
            self.received.add(signal.Signals(signum))

        self._handler = note
        for signum in SIGNALS:
            previous = signal.getsignal(signum)
            unclaimed = previous in (signal.SIG_DFL, signal.default_int_handler)
            if signum == signal.SIGTERM or unclaimed:
                self._previous[signum] = previous
                signal.signal(signum, note)

    def _put_handlers_back(self) -> None:
        # At a good end, Lightning has put back what was there before its own.
        for signum, previous in self._previous.items():
            spent = signum == signal.SIGINT and signum in self.received
            if spent or signal.getsignal(signum) is self._handler:
                signal.signal(signum, previous)
        self._forget_handlers()

    def _forget_handlers(self) -> None:
        self._handler = None
        self._previous.clear()

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
        """Restores the earlier handlers."""
        self._put_handlers_back()
        self._shield(False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restores the earlier handlers; where a signal ends the run, Lightning does so shortly.

        Where the first process fails alone, as on a full disk, those that it has started would wait
        for it, with NCCL for half an hour.
        """
        self._shield(False)
        launcher = trainer.strategy.launcher
        if launcher is not None and trainer.is_global_zero and isinstance(exception, Exception):
            launcher.kill(signal.SIGKILL)
        if not isinstance(exception, Stopped):
            self._put_handlers_back()
        self._forget_handlers()

    # ------------------------------------------------------------------ ending

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run between two steps.

        Only here has everybody done what belongs to the step before: the momentum encoder is
        updated after the callbacks have been told of a batch's end.

        Raises:
            Stopped: a signal has come, and the run is saved.
        """
        step, rest = divmod(batch_idx, trainer.accumulate_grad_batches)
        if rest or (trainer.world_size > 1 and step % EVERY):
            return
        ended_by = self._agree(trainer)
        if ended_by is None:
            return
        if trainer.global_step == self._first_step:
            self._leave(trainer, ended_by, saved=False)
        if batch_idx == 0:  # Lightning can't go on from here; a step later it can
            return
        self._inside_epoch = True
        try:
            saved = self._save(trainer)
        finally:
            self._inside_epoch = False
        self._leave(trainer, ended_by, saved)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, if the run is to end; what was logged of the epoch is written after this.

        The host saves every few epochs, and a limit may end the run between two of them.
        """
        # Reduces what was logged on all processes. The first one has, for its progress bar; the
        # others would do it in the middle of this agreement.
        _ = trainer.callback_metrics
        self._leaves_by = self._agree(trainer)
        if self._leaves_by is not None or _ends_after_this_epoch(trainer):
            self._save_what_was_trained(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what is not saved yet, as where a callback after this one has ended the run."""
        _ = trainer.callback_metrics
        self._save_what_was_trained(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the run between two epochs.

        Raises:
            Stopped: a signal has come, and the run is saved.
        """
        if self._leaves_by is not None:
            saved = host_checkpointer(trainer) is not None
            self._leave(trainer, self._leaves_by, saved)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes of a checkpoint inside an epoch one that all versions of Lightning go on from."""
        self._saved_step = trainer.global_step
        if self._inside_epoch:
            forget_next_batch(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"])

    def _agree(self, trainer: Trainer) -> signal.Signals | None:
        """The signal that any rank has received, if any. All ranks must call it together."""
        found = max((SIGNALS.index(signum) + 1 for signum in self.received), default=0)
        if trainer.world_size > 1:
            mine = torch.tensor([found], device=trainer.strategy.root_device)
            found = int(gather(mine).max())
        return SIGNALS[found - 1] if found else None

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

    def _save_what_was_trained(self, trainer: Trainer) -> None:
        if trainer.global_step != self._first_step:
            self._save(trainer)

    def _leave(self, trainer: Trainer, ended_by: signal.Signals, saved: bool) -> NoReturn:
        self.ended_by = ended_by
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            if ended_by == signal.SIGHUP:
                _replace_dead_outputs()  # what stdout was piped into may have ended later
            print(self._last_words(trainer, ended_by.name, saved), flush=True)
        trainer.strategy.barrier()  # no rank is gone while another one still writes
        raise Stopped(_status(trainer, ended_by))

    def _last_words(self, trainer: Trainer, ended_by: str, saved: bool) -> str:
        step = trainer.global_step
        text = f"\n{ended_by}: the run ends after step {step}"
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


def _ends_after_this_epoch(trainer: Trainer) -> bool:
    """Whether a limit ends the run here; timers and early stopping agree among the ranks."""
    most = trainer.max_epochs
    last = most is not None and 0 <= most <= trainer.current_epoch + 1
    return last or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step


def _say(text: str) -> None:
    """Writes to stderr from a signal handler, where ``print`` may be interrupted by itself."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _replace_dead_outputs() -> None:
    """Discards further output to a closed terminal or pipe, where writing raises an error."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)  # errors are reported unasked
    for descriptor, event in outputs.poll(0):
        if event & (select.POLLERR | select.POLLHUP):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def forget_next_batch(progress: dict[str, Any]) -> None:
    """Takes a batch that was fetched, but not trained on, out of Lightning's count of batches.

    Args:
        progress: of the batches, as it stands in a checkpoint; changed in place.
    """
    for part in ("total", "current"):
        progress[part]["ready"] = progress[part]["completed"]
    progress["is_last_batch"] = False  # what this says is of the next one


def _status(trainer: Trainer, ended_by: signal.Signals) -> int:
    """The exit status that a shell reports of a program ended by a signal.

    It is 0 in processes that Lightning's launcher has started: it takes anything else for a crash,
    and kills all the others. The first process has the status.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    helper = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
    return 0 if helper else 128 + ended_by


def _shield_child() -> None:
    """Blocks the signals in a loader's worker, which has just been forked from a training run.

    Clusters and terminals send them to all processes of a job. A worker that one of them ends takes
    the run with it, which still has to save. Workers end when the run closes its loader, or is
    gone.
    """
    if _shields > 0 and _is_a_loaders():
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


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
