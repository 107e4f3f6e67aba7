"""Lightning's progress counters, in a trainer and in a checkpoint.

Only this module of the room depends on their names, which are not public.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def inside_epoch(trainer: Trainer) -> bool:
    """Whether a limit has ended the epoch before its last batch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    done = progress.current.completed
    return 0 < done < trainer.num_training_batches and not progress.is_last_batch


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Marks a checkpoint's epoch as unfinished, so that a resume trains its remaining batches.

    Lightning counts an epoch that a limit ends early as finished.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress")
    if progress is not None and progress["current"]["processed"] == progress["current"]["ready"]:
        for count in (progress["total"], progress["current"]):
            count["processed"] -= 1
            count["completed"] = count["processed"]


def discard_fetched_batch(checkpoint: dict[str, Any]) -> None:
    """Removes a batch that was fetched but not trained on from a checkpoint's count."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count["ready"] = count["completed"]
    progress["is_last_batch"] = False  # refers to the fetched batch
