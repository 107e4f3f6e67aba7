"""Threads that share out a loss's queries on a CPU.

Compiled loops and PyTorch's products alternate many times in one loss. If each had a thread pool of
its own, the idle one would spin on the cores that the other needs. So both run in the same threads,
each for its own queries: PyTorch's own OpenMP threads where they can be had, in which it doesn't
start others, and else worker threads with PyTorch's parallelism turned off.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def run_each(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Returns ``function`` of each part, computed in as many threads as PyTorch's; no gradient.

    A single part is computed in the calling thread, with all of PyTorch's threads.
    """
    found: dict[int, Result] = {}
    errors: list[BaseException] = []
    left = iter(enumerate(parts))  # each thread takes the next

    def some() -> None:
        try:
            with torch.no_grad():  # grad mode belongs to a thread
                for place, part in left:
                    found[place] = function(part)
        except BaseException as error:
            errors.append(error)

    # All of them, even for fewer parts: OpenMP ends those that a region leaves out.
    threads = torch.get_num_threads() if len(parts) > 1 else 1
    start = _openmp()
    if threads == 1:
        some()
    elif start is not None:
        start(_Region(lambda _: some()), None, threads, 0)
    else:
        workers = _workers(torch.get_num_threads())
        wait([workers.submit(some) for _ in range(threads)])
    if errors:
        raise errors[0]
    return [found[place] for place in range(len(parts))]


@cache
def _openmp() -> Any:
    """What starts a parallel region in PyTorch's own OpenMP library; ``None`` if nothing does.

    It is the call that compilers make of ``#pragma omp parallel``: of GCC's library, and for
    compatibility of Intel's and LLVM's.
    """
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    start.argtypes, start.restype = [_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


def _workers(number: int) -> ThreadPoolExecutor:
    """A pool of as many threads as PyTorch has, made at its first use."""
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
