"""Worker threads that share out a loss's queries on a CPU.

Compiled loops and PyTorch's products alternate many times in one loss. If each had a thread pool of
its own, the idle one would spin on the cores that the other needs. So each worker here runs both,
one after the other, for its own queries, with PyTorch's own parallelism turned off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def run_each(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Returns ``function`` of each part, computed in as many threads as PyTorch's; no gradient.

    A single part is computed in the calling thread, with all of PyTorch's threads.
    """

    def alone(part: Part) -> Result:
        with torch.no_grad():  # grad mode belongs to a thread
            return function(part)

    threads = torch.get_num_threads()
    if min(len(parts), threads) == 1:
        return [alone(part) for part in parts]
    workers = _workers(threads)
    futures = [workers.submit(alone, part) for part in parts]
    wait(futures)  # also where one fails: the others write to shared arrays
    return [future.result() for future in futures]


def _workers(number: int) -> ThreadPoolExecutor:
    """The pool of as many threads as PyTorch has, made at its first use."""
    with _lock:
        if number not in _pools:
            together = threading.Barrier(number)
            pool = ThreadPoolExecutor(number, "solo_hardneg", _use_one_thread, (together,))
            wait([pool.submit(together.wait) for _ in range(number)])
            torch.set_num_threads(number)  # of threads to come, which the workers' calls set, too
            _pools[number] = pool
        return _pools[number]


def _use_one_thread(together: threading.Barrier) -> None:
    """Turns off PyTorch's parallelism in this thread."""
    torch.get_num_threads()  # PyTorch gives each thread its default once, and not after this
    torch.set_num_threads(1)
    together.wait()


def _forget() -> None:
    """Threads don't survive a fork, nor may a lock that one of them held."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
