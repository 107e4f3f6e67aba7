"""Signals that end a run: it saves a checkpoint, prints how to resume, and exits.

SIGTERM comes from clusters that reclaim machines, SIGINT from Ctrl-C, SIGHUP from a closed ssh
connection, SIGUSR1 from SLURM before the time limit.

Lightning's own SIGTERM handler ends a run at the next batch without saving. In newer versions it
waits, inside the handler, for the other ranks: forever, if they got no signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from solo_hardneg.distributed import gather
from solo_hardneg.host import host_checkpointer
from solo_hardneg.safety.checkpoint_io import resume_command
from solo_hardneg.safety.progress import discard_fetched_batch
from solo_hardneg.safety.worker_signals import shield_workers, unshield_workers

# If several arrive, the last of these is reported: ranks forward any signal as SIGTERM.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
AGREE_EVERY = 10  # steps between two agreements of several ranks

_CTRL_C = (
    "\nSIGINT: the run saves a checkpoint after this step (during validation: after the epoch) and "
    "ends. Press Ctrl-C again to end it immediately, without a checkpoint.\n"
)


class Stopped(SystemExit):
    """A signal has ended the run. Passes through Lightning and Hydra without a traceback."""


class StopOnSignal(Callback):
    """Ends the training after one of :data:`SIGNALS`, on all ranks after the same step.

    The handler sets a flag, and the run ends between two steps. It is installed from the sanity
    check on; before, there is nothing to save, and a signal ends the process as usual. A signal
    during validation takes effect at the end of the epoch. Repeating SIGTERM changes nothing,
    because clusters and launchers send several; a second SIGINT ends the process immediately.

    SIGINT, SIGHUP and SIGUSR1 are handled only if nobody else does: ``nohup`` ignores SIGHUP, a
    shell ignores SIGINT for background jobs, and with SLURM's auto-requeue Lightning uses SIGUSR1.

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
        self._saving_inside_epoch = False
        # Set at the end of an epoch that is saved: the run ends before the next one.
        self._pending: signal.Signals | None = None
        self._shielding = False

    # ------------------------------------------------------------------ handler

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shields the loader's workers before any is forked."""
        self.received.clear()
        self.ended_by = self._pending = None
        self._saving_inside_epoch = False
        self._saved_step = -1
        if stage == "fit" and not self._shielding:
            self._shielding = True
            shield_workers(SIGNALS)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handler, replacing Lightning's for SIGTERM."""
        self._install_handler(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handler, and records the first step of this process."""
        self._install_handler(trainer)
        self._first_step = trainer.global_step

    def _install_handler(self, trainer: Trainer) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if self._handler is not None or not in_main:  # Python allows handlers only there
            return

        def handle(signum: int, frame: Any) -> None:
            if signum == signal.SIGINT:
                # Python's handler would not run while the process waits for a GPU or another rank;
                # but a notebook or a prompt should outlive the run.
                interactive = hasattr(sys, "ps1")
                again = signal.default_int_handler if interactive else signal.SIG_DFL
                signal.signal(signal.SIGINT, again)
                if trainer.is_global_zero:
                    with contextlib.suppress(OSError):
                        os.write(2, _CTRL_C.encode())  # print may be interrupted by itself
            elif signum == signal.SIGHUP:
                _discard_closed_outputs()
            launcher = trainer.strategy.launcher
            if not self.received and launcher is not None:
                # Forwarded to the ranks this process started. Not as SIGINT: they may have got one
                # from the terminal already, and a second one ends them immediately.
                launcher.kill(signal.SIGTERM)
            self.received.add(signal.Signals(signum))

        self._handler = handle
        for signum in SIGNALS:
            previous = signal.getsignal(signum)
            unclaimed = previous in (signal.SIG_DFL, signal.default_int_handler)
            if signum == signal.SIGTERM or unclaimed:
                self._previous[signum] = previous
                signal.signal(signum, handle)

    def _restore_handlers(self) -> None:
        # After a normal end, Lightning has already restored the handlers it replaced.
        for signum, previous in self._previous.items():
            spent = signum == signal.SIGINT and signum in self.received
            if spent or signal.getsignal(signum) is self._handler:
                signal.signal(signum, previous)

    def _release(self) -> None:
        self._handler = None
        self._previous.clear()
        if self._shielding:
            self._shielding = False
            unshield_workers()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the previous handlers."""
        self._restore_handlers()
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restores the previous handlers; if a signal ends the run, Lightning does so shortly.

        If rank 0 fails alone, as on a full disk, the ranks it started would wait for it, with NCCL
        for half an hour: they are killed.
        """
        launcher = trainer.strategy.launcher
        if launcher is not None and trainer.is_global_zero and isinstance(exception, Exception):
            launcher.kill(signal.SIGKILL)
        if not isinstance(exception, Stopped):
            self._restore_handlers()
        self._release()

    # ------------------------------------------------------------------ ending

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run between two steps.

        Not at a batch's end, because the momentum encoder is updated after the callbacks.

        Raises:
            Stopped: A signal was received, and the run is saved.
        """
        step, rest = divmod(batch_idx, trainer.accumulate_grad_batches)
        if rest or (trainer.world_size > 1 and step % AGREE_EVERY):
            return
        ended_by = self._agree(trainer)
        if ended_by is None:
            return
        if trainer.global_step == self._first_step:
            self._end_run(trainer, ended_by, saved=False)
        if batch_idx == 0:  # Lightning can't resume here, but one step later it can
            return
        self._saving_inside_epoch = True
        try:
            saved = self._save(trainer)
        finally:
            self._saving_inside_epoch = False
        self._end_run(trainer, ended_by, saved)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if the run is about to end; the epoch's metrics are written after this.

        The host saves every few epochs, and a limit may end the run between two of them.
        """
        # Reduces the logged metrics on all ranks. Rank 0 has done so for its progress bar; the
        # others would start it in the middle of the agreement below.
        _ = trainer.callback_metrics
        self._pending = self._agree(trainer)
        if self._pending is not None or _is_last_epoch(trainer):
            self._save_unless_untrained(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what isn't saved yet, as when a later callback has ended the run."""
        _ = trainer.callback_metrics
        self._save_unless_untrained(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the run between two epochs.

        Raises:
            Stopped: A signal was received, and the run is saved.
        """
        if self._pending is not None:
            self._end_run(trainer, self._pending, saved=host_checkpointer(trainer) is not None)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes a checkpoint inside an epoch one that all versions of Lightning can resume."""
        self._saved_step = trainer.global_step
        if self._saving_inside_epoch:
            discard_fetched_batch(checkpoint)

    def _agree(self, trainer: Trainer) -> signal.Signals | None:
        """Returns the signal that any rank has received. All ranks must call it together."""
        found = max((SIGNALS.index(signum) + 1 for signum in self.received), default=0)
        if trainer.world_size > 1:
            own = torch.tensor([found], device=trainer.strategy.root_device)
            found = int(gather(own).max())
        return SIGNALS[found - 1] if found else None

    def _save(self, trainer: Trainer) -> bool:
        """Lets the host save unless it has, and returns whether there is a checkpoint.

        The host's ``auto_resume`` searches its own folders and names.
        """
        saver = host_checkpointer(trainer)
        if saver is None:
            return False
        if self._saved_step != trainer.global_step:
            saver.save(trainer)
        return True

    def _save_unless_untrained(self, trainer: Trainer) -> None:
        if trainer.global_step != self._first_step:
            self._save(trainer)

    def _end_run(self, trainer: Trainer, ended_by: signal.Signals, saved: bool) -> NoReturn:
        self.ended_by = ended_by
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            if ended_by == signal.SIGHUP:
                _discard_closed_outputs()  # the reader of a pipe may have ended since
            print(self._final_message(trainer, ended_by.name, saved), flush=True)
        trainer.strategy.barrier()  # no rank exits while another one still writes
        raise Stopped(_exit_status(trainer, ended_by))

    def _final_message(self, trainer: Trainer, ended_by: str, saved: bool) -> str:
        step = trainer.global_step
        text = f"\n{ended_by}: the run ends after step {step}"
        if step == self._first_step:
            return f"{text}, before it has trained anything. Nothing was saved."
        if not saved:
            return f"{text}. Nothing was saved, because of checkpoint.enabled=False."
        path = getattr(trainer.strategy.checkpoint_io, "newest", None)
        # A foreign checkpoint plug-in has no such attribute.
        text += "." if path is None else f". Saved: {path.absolute()}"
        return f"{text}\nTo resume: {resume_command(trainer)}"


def _is_last_epoch(trainer: Trainer) -> bool:
    """Whether a limit ends the run here; timers and early stopping agree among the ranks."""
    limit = trainer.max_epochs
    last = limit is not None and 0 <= limit <= trainer.current_epoch + 1
    return last or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step


def _discard_closed_outputs() -> None:
    """Redirects stdout and stderr to /dev/null if closed: writing to them would raise an error."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)  # poll always reports errors
    for descriptor, event in outputs.poll(0):
        if event & (select.POLLERR | select.POLLHUP):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


def _exit_status(trainer: Trainer, ended_by: signal.Signals) -> int:
    """The status a shell reports of a program ended by a signal; 0 in helper processes.

    Lightning's launcher takes any other status of the processes it started for a crash, and kills
    the rest. Rank 0 returns the real status.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    helper = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
    return 0 if helper else 128 + ended_by
