"""Random states in a checkpoint, so that a resumed run draws what it would have drawn.

Shuffling, augmentation and the seeds of loader workers all come from the process's global
generators, which neither Lightning nor the host saves.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from solo_hardneg.distributed import gather_objects

State = dict[str, Any]


def state() -> State:
    """The states of this process's generators, as tensors and plain values."""
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = legacy
    return {
        "python": list(_flat(random.getstate())),
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: State) -> None:
    """Puts this process's generators into a saved state."""
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])


def states_of_all_ranks() -> list[State]:
    """One state per rank, the same list on every rank. All ranks must call it together."""
    return gather_objects(state())


def other_number(saved: int, now: int) -> str:
    """What to say where a run goes on in another number of processes than have saved states."""
    return (
        f"The checkpoint has the random states of {saved} {_processes(saved)}, and this run has "
        f"{now}: each draws anew, from seed=, and loads other images than it would have. Weights, "
        "optimizer and queue go on. To repeat the interrupted run exactly, go on with "
        f"{saved} {_processes(saved)}."
    )


def _processes(number: int) -> str:
    return "process" if number == 1 else "processes"


def _flat(python_state: tuple[Any, ...]) -> tuple[Any, list[int], Any]:
    version, numbers, gauss = python_state
    return version, list(numbers), gauss
