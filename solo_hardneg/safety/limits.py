"""Limits of a run (epochs, steps, time): reports which one ended it, and refuses empty runs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf

from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.host import config_of, host_checkpointer
from solo_hardneg.models.checkpoints import epochs_done
from solo_hardneg.safety.checkpoint_io import resume_command, resume_source
from solo_hardneg.safety.progress import inside_epoch, reopen_epoch

_TOO_FEW_IMAGES = "fewer images than one batch (optimizer.batch_size)"


class TrainingLimits(Callback):
    """Reports which limit ended the training, and refuses a run with nothing left to train.

    ``max_time`` counts from each start. Lightning would add up all starts, so a run that has used
    up its time could never be resumed.
    """

    def __init__(self) -> None:
        self._first_step: int | None = None  # of this start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Resets the first step."""
        self._first_step = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resets timers.

        Raises:
            CheckpointError: The checkpoint has reached ``max_epochs`` or ``max_steps``.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        for timer in _timers(trainer):
            checkpoint["callbacks"].pop(timer.state_key, None)
        epochs, steps = epochs_done(checkpoint), checkpoint["global_step"]
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
            used_up, key = f"all of its epochs, max_epochs={trainer.max_epochs}", "max_epochs"
        elif 0 <= trainer.max_steps <= steps:
            used_up, key = f"{steps} steps, and max_steps={trainer.max_steps}", "max_steps"
        else:
            return
        raise CheckpointError(
            f"{resume_source(trainer)}: it has trained {used_up}. Raise {key} to continue it, or "
            "start a new run with another name=, or with auto_resume.enabled=False and no "
            "resume_from_checkpoint."
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the first step of this start."""
        self._first_step = trainer.global_step

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lets a run that a limit cuts off inside an epoch resume there."""
        if inside_epoch(trainer):
            reopen_epoch(checkpoint)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints which limit was reached.

        Raises:
            ConfigError: No step was trained.
        """
        reached = _limits_reached(trainer, pl_module)
        limits = " and ".join(reached) or "a callback"
        if self._first_step in (None, trainer.global_step):
            raise ConfigError(
                f"{limits}: the run ended without training a step. {_remedy(reached)}"
            )
        if not trainer.is_global_zero:
            return
        verb = "reached" if reached else "stopped it"
        inside = "inside " if inside_epoch(trainer) else ""
        place = f"step {trainer.global_step}, {inside}epoch {trainer.current_epoch}"
        text = f"Training ended: {limits} {verb} ({place})."
        if not _all_epochs_done(trainer):
            if host_checkpointer(trainer) is None:
                text += " Nothing was saved: set checkpoint.enabled=True to resume such a run."
            else:
                options = "with a higher max_steps and" if "max_steps" in limits else "with"
                text += f" To resume: {resume_command(trainer, options)}"
        print(text)


def _limits_reached(trainer: Trainer, module: LightningModule) -> list[str]:
    """The limits reached, as they are written on the command line."""
    reached = []
    if 0 <= trainer.max_steps <= trainer.global_step:
        reached.append(f"max_steps={trainer.max_steps}")
    if _all_epochs_done(trainer):
        reached.append(f"max_epochs={trainer.max_epochs}")
    else:
        cfg = config_of(trainer, module)
        limit = None if cfg is None else OmegaConf.select(cfg, "max_time")
        name = "the limit of a Timer callback" if limit is None else f"max_time={limit}"
        remaining = [timer.time_remaining() for timer in _timers(trainer)]
        reached += [name for seconds in remaining if seconds is not None and seconds <= 0]
    if trainer.limit_train_batches == 0:
        reached.append("limit_train_batches=0")
    elif trainer.num_training_batches == 0:
        reached.append(_TOO_FEW_IMAGES)
    return reached


def _remedy(reached: list[str]) -> str:
    keys = " and ".join(limit.partition("=")[0] for limit in reached if "=" in limit)
    if keys:
        return f"Raise {keys}, or leave the limit out."
    if _TOO_FEW_IMAGES in reached:
        return "Lower it, or add images."
    return "Check the run's callbacks: one of them stops it."


def _all_epochs_done(trainer: Trainer) -> bool:
    last = trainer.max_epochs
    if last is None or last < 0:
        return False
    return trainer.current_epoch >= last and not inside_epoch(trainer)


def _timers(trainer: Trainer) -> list[Timer]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Timer)]
