"""A DataLoader that knows how much shared memory its workers need before it starts them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

from solo_hardneg.distributed import get_world_size
from solo_hardneg.errors import HardnegError, bad_value

SHARED = Path("/dev/shm")
_PAGE = 4096
_PER_WORKER = 64 * 1024  # semaphores of its queues and events, each a page


class CheckedLoader(DataLoader):
    """torch's, which raises ConfigError where its workers' batches wouldn't fit in shared memory.

    A worker that finds no room there is killed by a bus error, at any step of a run.

    Attributes:
        key: the setting that errors name.
    """

    key = "data.num_workers"
    _checked = False

    def __iter__(self) -> Any:
        """Starts the workers, or returns an iterator that raises the error."""
        try:
            self._check()
        except HardnegError as error:  # of iter(), Lightning would show one of its own instead
            return _raising(error)
        return super().__iter__()

    def _check(self) -> None:
        """Checks shared memory, once: later, batches of this loader may still lie there.

        Raises:
            ConfigError: /dev/shm is too small for the batches that workers prepare in advance.
            DataError: the image that is measured can't be used.
        """
        if not self._checked and self.num_workers > 0 and SHARED.is_dir() and len(self):
            batches = self._batches_at_once()
            check_shared_memory(self.key, self.num_workers, batches, self._measure())
            self._checked = True

    def _batches_at_once(self) -> int:
        """What waits for the trainer, and the one that it has."""
        return min(len(self), self.num_workers * (self.prefetch_factor or 2) + 1)

    def _measure(self) -> int:
        """The bytes of a batch, by one sample; what the sample draws at random isn't used up."""
        sizes: list[int] = []
        with isolate_rng():
            batch = self.collate_fn([self.dataset[0]])
        apply_to_collection(batch, torch.Tensor, lambda tensor: sizes.append(tensor.nbytes))
        images = self.batch_size or 1
        return sum(_PAGE * math.ceil(size * images / _PAGE) for size in sizes)


def _raising(error: HardnegError) -> Iterator[Any]:
    raise error
    yield


def check_shared_memory(key: str, workers: int, batches: int, size: int) -> None:
    """Refuses worker processes whose batches wouldn't fit in shared memory.

    Args:
        key, workers: the setting, of one loader.
        batches: how many the loader holds at once.
        size: bytes of one.

    Raises:
        ConfigError: there is less than this machine's processes need.
    """
    stat = os.statvfs(SHARED)
    if stat.f_blocks == 0:  # without a limit
        return
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    # As many processes as GPUs share this machine's memory, or without GPUs all of them.
    here = min(get_world_size(), torch.cuda.device_count() or get_world_size())
    own = workers * _PER_WORKER + batches * size
    # What is free says nothing of the other processes' needs: they may have started before.
    if here * own > total:
        needed, there = here * own, f"{_size(total)} in all"
    elif own > free:
        needed, here, there = own, 1, f"{_size(free)} free"
    else:
        return
    each = f" in each of {here} processes" if here > 1 else ""
    allowed = (
        f"workers hand over batches in shared memory, up to {batches} of {_size(size)} at once"
        f"{each}, which takes {_size(needed)}; {SHARED} has {there}"
    )
    do = f"Give it more (docker run --shm-size=8g), or set {key}=0 or a smaller number."
    raise bad_value(key, workers, allowed, do)


def _size(number: int) -> str:
    unit, name = (2**20, "MiB") if number >= 2**20 else (2**10, "KiB")
    return f"{number / unit:.3g} {name}"
