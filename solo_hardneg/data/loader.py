"""A DataLoader that checks that its workers' batches fit in shared memory."""

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
_PER_WORKER = 64 * 1024  # bytes; the semaphores of its queues and events take a page each


class CheckedLoader(DataLoader):
    """A DataLoader that raises ConfigError where its workers would run out of shared memory.

    Otherwise the kernel kills a worker with a bus error, at any step of a run.

    Attributes:
        key: The setting that errors name.
    """

    key = "data.num_workers"
    _checked = False

    def __iter__(self) -> Any:
        """Starts the workers, or returns an iterator that raises the error."""
        try:
            self._check()
        except HardnegError as error:  # raised by iter(), Lightning would replace it
            return _raising(error)
        return super().__iter__()

    def _check(self) -> None:
        """Checks shared memory once, before this loader's own batches are in it.

        Raises:
            ConfigError: /dev/shm is too small for the batches that workers prepare in advance.
            DataError: The image that is measured can't be used.
        """
        if self._checked or self.num_workers == 0 or not SHARED.is_dir() or not len(self):
            return
        # Those that wait for the trainer, and the one that it has.
        batches = min(len(self), self.num_workers * (self.prefetch_factor or 2) + 1)
        check_shared_memory(self.key, self.num_workers, batches, self._batch_bytes())
        self._checked = True

    def _batch_bytes(self) -> int:
        """The bytes of a batch, from one sample; random generators don't advance."""
        sizes: list[int] = []
        with isolate_rng():
            batch = self.collate_fn([self.dataset[0]])
        apply_to_collection(batch, torch.Tensor, lambda tensor: sizes.append(tensor.nbytes))
        images = self.batch_size or 1
        return sum(_PAGE * math.ceil(size * images / _PAGE) for size in sizes)


def _raising(error: HardnegError) -> Iterator[Any]:
    raise error
    yield


def number_of_images(loader: Any) -> int:
    """Returns the number of images of a loader's dataset, not only of this process's share.

    Args:
        loader: A DataLoader, or an iterator of :mod:`solo_hardneg.data.dali`.
    """
    files = getattr(loader, "files", None)
    return len(loader.dataset) if files is None else len(files)


def check_shared_memory(key: str, workers: int, batches: int, size: int) -> None:
    """Refuses worker processes whose batches wouldn't fit in shared memory.

    Args:
        key: The setting of one loader's workers.
        workers: Its value.
        batches: Number of batches that the loader holds at once.
        size: Bytes of a batch.

    Raises:
        ConfigError: There is less than this machine's processes need.
    """
    stat = os.statvfs(SHARED)
    if stat.f_blocks == 0:  # unlimited
        return
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    # One process per GPU shares this machine's memory; without GPUs, all of them.
    processes = min(get_world_size(), torch.cuda.device_count() or get_world_size())
    own = workers * _PER_WORKER + batches * size
    # Other processes may have started before, so their needs don't count against what is free.
    if processes * own > total:
        needed, there = processes * own, f"{_format_bytes(total)} in all"
    elif own > free:
        needed, processes, there = own, 1, f"{_format_bytes(free)} free"
    else:
        return
    each = f" in each of {processes} processes" if processes > 1 else ""
    problem = (
        f"workers hand over batches in shared memory, up to {batches} of {_format_bytes(size)} at "
        f"once{each}, which takes {_format_bytes(needed)}; {SHARED} has {there}"
    )
    remedy = f"Give it more (docker run --shm-size=8g), or set {key}=0 or a smaller number."
    raise bad_value(key, workers, problem, remedy)


def _format_bytes(number: int) -> str:
    unit, name = (2**20, "MiB") if number >= 2**20 else (2**10, "KiB")
    return f"{number / unit:.3g} {name}"
