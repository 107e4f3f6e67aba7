"""Random states in checkpoints, so that a resumed run draws what it would have drawn.

Shuffling, augmentation and the seeds of loader workers come from the process's global generators,
which neither Lightning nor the host saves. Lightning's private names are read in this module only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from solo_hardneg.distributed import gather_objects

State = dict[str, Any]


def states_of_all_ranks() -> list[State]:
    """Returns one state per rank, the same list on all. All ranks must call it together."""
    return gather_objects(current_state())


def current_state() -> State:
    """Returns the states of this process's generators, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = legacy
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_state(saved: State) -> None:
    """Sets this process's generators to a saved state."""
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])


def restore_states(states: Sequence[State], trainer: Trainer) -> None:
    """Sets this rank's state at the start of an epoch, or warns if the number of ranks differs."""
    if len(states) != trainer.world_size:
        saved = f"{len(states)} process" + ("es" if len(states) != 1 else "")
        rank_zero_warn(
            f"The checkpoint has the random states of {saved}, and this run has "
            f"{trainer.world_size}: random numbers start anew from seed=, so other images are "
            "loaded. Weights, optimizer and queue are restored. To repeat the interrupted run "
            f"exactly, use {saved}."
        )
        return
    set_state(states[trainer.global_rank])
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is not None and not makes_iterator(trainer):
        iter(fetcher)  # draws the loader's seed


def makes_iterator(trainer: Trainer) -> bool:
    """Whether Lightning makes a new iterator for the epoch that starts.

    In some versions, a resumed run's first epoch uses the iterator that was made before the
    checkpoint was read; the condition is that of ``TrainingEpochLoop.on_run_start``.
    """
    loop = trainer.fit_loop
    resuming = loop.epoch_loop.restarting or getattr(loop, "is_resuming", False)
    return trainer.current_epoch > 0 and not resuming


def restarts_inside_epoch(trainer: Trainer) -> bool:
    """Whether a run resumes inside an epoch, which newer versions of Lightning support."""
    return getattr(trainer.fit_loop, "restarted_mid_epoch", False)
