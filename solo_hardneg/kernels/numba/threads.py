"""Runs a function in PyTorch's threads on a CPU.

Compiled loops and PyTorch's products alternate many times in one loss. With separate thread pools,
the idle one would spin on cores that the other needs. So both run in the same threads, each for its
own queries: in PyTorch's OpenMP threads if the library allows it, where PyTorch starts no others,
and otherwise in worker threads with PyTorch's parallelism turned off.
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

Item = TypeVar("Item")
Result = TypeVar("Result")

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Applies a function to each item, in as many threads as PyTorch has, without autograd.

    A single item is handled in the calling thread, with all of PyTorch's threads.

    Raises:
        BaseException: The first error of the function, after all threads have ended.
    """
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    remaining = iter(enumerate(items))  # each thread takes the next

    def work() -> None:
        try:
            with torch.no_grad():  # grad mode is set per thread
                for place, item in remaining:
                    results[place] = function(item)
        except BaseException as error:
            errors.append(error)

    # All threads, even for fewer items: OpenMP ends threads that a region leaves out.
    threads = torch.get_num_threads() if len(items) > 1 else 1
    start = _openmp()
    if threads == 1:
        work()
    elif start is not None:
        start(_Region(lambda _: work()), None, threads, 0)
    else:
        workers = _workers(torch.get_num_threads())
        wait([workers.submit(work) for _ in range(threads)])
    if errors:
        raise errors[0]
    return [results[place] for place in range(len(items))]


@cache
def _openmp() -> Any:
    """Returns what starts a parallel region in PyTorch's OpenMP library; ``None`` if it can't.

    It is the call that GCC compiles ``#pragma omp parallel`` to, which Intel's and LLVM's libraries
    provide too.
    """
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    start.argtypes, start.restype = [_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


def _workers(number: int) -> ThreadPoolExecutor:
    """Returns a pool of threads, which is made at its first use."""
    with _lock:
        if number not in _pools:
            barrier = threading.Barrier(number)
            pool = ThreadPoolExecutor(number, "solo_hardneg", _use_one_thread, (barrier,))
            wait([pool.submit(barrier.wait) for _ in range(number)])
            torch.set_num_threads(number)  # the workers' calls change the default of new threads
            _pools[number] = pool
        return _pools[number]


def _use_one_thread(barrier: threading.Barrier) -> None:
    """Turns off PyTorch's parallelism in this thread."""
    torch.get_num_threads()  # PyTorch sets a thread's default at its first call, and not later
    torch.set_num_threads(1)
    barrier.wait()


def _forget_pools() -> None:
    """Forgets threads and a lock held by them, neither of which survives a fork."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
