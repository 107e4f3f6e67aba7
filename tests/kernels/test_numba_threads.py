"""Threads of the numba backend, which leave PyTorch's and Numba's settings unchanged."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from kernel_helpers import BANDS, moco_loss
from loss_helpers import moco

from solo_hardneg.kernels.numba import threads as numba_threads
from solo_hardneg.kernels.numba.threads import parallel_map


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["OpenMP", "workers"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """PyTorch's own threads, and workers where these are not available."""
    if request.param == "workers":
        monkeypatch.setattr(numba_threads, "_openmp", lambda: None)
    elif numba_threads._openmp() is None:
        pytest.skip("this PyTorch has no OpenMP library with GOMP_parallel")
    return request.param


def test_each_thread_takes_items_without_autograd(threads: int) -> None:
    barrier = threading.Barrier(threads, timeout=60)  # so that no thread takes two

    def observe(item: int) -> tuple[int, bool, int]:
        barrier.wait()
        return item, torch.is_grad_enabled(), threading.get_ident()

    items = list(range(threads))
    found = parallel_map(observe, items)
    assert [item for item, *_ in found] == items
    assert not any(grad for _, grad, _ in found)
    assert len({thread for *_, thread in found}) == threads


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_pytorch_starts_no_threads_in_a_thread(threads: int) -> None:
    matrix = torch.rand(500, 500)
    parallel_map(lambda _: matrix @ matrix, range(threads))
    before = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        parallel_map(lambda _: (matrix @ matrix).exp().sum(), range(2 * threads))
    assert len(os.listdir("/proc/self/task")) <= before


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_fewer_items_than_threads_end_no_thread(threads: int) -> None:
    def alive() -> set[str]:
        parallel_map(lambda item: item, range(2))
        torch.rand(400, 400).exp().sum()
        return set(os.listdir("/proc/self/task"))

    alive()
    assert alive() == alive()


def test_numbers_of_threads_dont_change(threads: int) -> None:
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()  # starts Numba's threads, which changes PyTorch's number
    torch.set_num_threads(threads)
    tensors = moco(100, 3000, 8)
    moco_loss("numba", BANDS["hardest"], tensors)
    moco_loss("numba", BANDS["without the hardest"], tensors)
    in_a_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: in_a_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), in_a_new_thread) == (threads, [threads])
    assert numba.get_num_threads() == before
    assert torch.is_grad_enabled()


def test_an_error_is_raised_after_all_threads_end(threads: int) -> None:
    done: list[int] = []

    def fail_at_0(item: int) -> None:
        if item == 0:
            raise ValueError("item 0")
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ValueError, match="item 0"):
        parallel_map(fail_at_0, [0, 1, 2])
    assert sorted(done) == ([] if threads == 1 else [1, 2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_new_workers(kind: str) -> None:
    if kind == "OpenMP":
        pytest.skip("PyTorch's own threads don't survive a fork")
    double = [0, 2, 4]
    assert parallel_map(lambda item: 2 * item, [0, 1, 2]) == double
    child = os.fork()
    if child == 0:
        os._exit(0 if parallel_map(lambda item: 2 * item, [0, 1, 2]) == double else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert ended == (child, 0)
