"""What ends a run: its epochs, its steps or its time; and runs that have nothing left to train."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf

from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.safety.checkpoint_io import resume_words, resumed_from
from solo_hardneg.safety.reading import epochs_done
from solo_hardneg.trainers import config_of, host_checkpointer

_NO_BATCH = "fewer images than one batch (optimizer.batch_size)"


class Ending(Callback):
    """Says what has ended the training, and refuses a run that has nothing to train.

    ``max_time`` counts from each start of the run: Lightning would add up all of them, and a run
    whose time is used up would never train again.
    """

    def __init__(self) -> None:
        self._first_step: int | None = None  # of this start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets a run before."""
        self._first_step = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Starts the time anew.

        Raises:
            CheckpointError: the checkpoint has reached max_epochs or max_steps.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer):
                checkpoint["callbacks"].pop(callback.state_key, None)
        source, way_out = resumed_from(trainer), "or start a run of its own: another name=, or "
        way_out += "auto_resume.enabled=False and no resume_from_checkpoint."
        epochs, steps = epochs_done(checkpoint), checkpoint["global_step"]
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
            raise CheckpointError(
                f"{source}: it has trained all of its epochs, max_epochs={trainer.max_epochs}. "
                f"Raise max_epochs to go on, {way_out}"
            )
        if 0 <= trainer.max_steps <= steps:
            raise CheckpointError(
                f"{source}: it has trained {steps} steps, and max_steps={trainer.max_steps}. "
                f"Raise max_steps to go on, {way_out}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where this start begins."""
        self._first_step = trainer.global_step

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Has a run that is cut off in the middle of an epoch go on there.

        Lightning counts such an epoch as trained, so its other batches would be left out.
        """
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress")
        if progress is None or not in_the_middle_of_an_epoch(trainer):
            return
        if progress["current"]["processed"] == progress["current"]["ready"]:
            for part in ("total", "current"):
                progress[part]["processed"] -= 1
                progress[part]["completed"] = progress[part]["processed"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which limit was reached.

        Raises:
            ConfigError: no step was trained.
        """
        reached = _reached(trainer, pl_module)
        limits = " and ".join(reached) or "a callback"
        if self._first_step in (None, trainer.global_step):
            raise ConfigError(
                f"{limits}: the run has ended without training a step. {_remedy(reached)}"
            )
        if not trainer.is_global_zero:
            return
        how = "reached" if reached else "stopped it"
        text = f"Training ended: {limits} {how} ({_place(trainer)})."
        if _ended_early(trainer):
            text += f" To go on: {_how_to_go_on(trainer, limits)}"
        print(text)


def _reached(trainer: Trainer, module: LightningModule) -> list[str]:
    """The limits that a run has come to, as one writes them."""
    found = []
    if 0 <= trainer.max_steps <= trainer.global_step:
        found.append(f"max_steps={trainer.max_steps}")
    if not _ended_early(trainer):
        found.append(f"max_epochs={trainer.max_epochs}")
    cfg = config_of(trainer, module)
    limit = None if cfg is None else OmegaConf.select(cfg, "max_time")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0 and _ended_early(trainer):
            found.append("the limit of a Timer callback" if limit is None else f"max_time={limit}")
    if trainer.limit_train_batches == 0:
        found.append("limit_train_batches=0")
    elif trainer.num_training_batches == 0:
        found.append(_NO_BATCH)
    return found


def _remedy(reached: list[str]) -> str:
    keys = " and ".join(limit.partition("=")[0] for limit in reached if "=" in limit)
    if keys:
        return f"Raise {keys}, or leave the limit out."
    if _NO_BATCH in reached:
        return "Lower it, or add images."
    return "Look at the callbacks of the run: one of them ends it."


def _ended_early(trainer: Trainer) -> bool:
    """Whether there are epochs left, or the last one wasn't finished."""
    most = trainer.max_epochs
    if most is None or most < 0:
        return True
    return trainer.current_epoch < most or in_the_middle_of_an_epoch(trainer)


def in_the_middle_of_an_epoch(trainer: Trainer) -> bool:
    """Whether a limit has ended the epoch before its last batch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    done = progress.current.completed
    return 0 < done < trainer.num_training_batches and not progress.is_last_batch


def _place(trainer: Trainer) -> str:
    inside = "inside " if in_the_middle_of_an_epoch(trainer) else ""
    return f"step {trainer.global_step}, {inside}epoch {trainer.current_epoch}"


def _how_to_go_on(trainer: Trainer, limits: str) -> str:
    if host_checkpointer(trainer) is None:
        return "set checkpoint.enabled=True; nothing was saved."
    raised = "with a higher max_steps and" if "max_steps" in limits else "with"
    path = getattr(trainer.strategy.checkpoint_io, "newest", None)
    if path is None:
        return f"the same command {raised} auto_resume.enabled=True"
    return f"the same command {raised} auto_resume.enabled=True or {resume_words(path)}"
