"""Threads that share out a loss's queries: they leave everybody else's settings alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from kernel_helpers import BANDS, moco_loss
from loss_helpers import moco

from solo_hardneg.kernels import threads as module
from solo_hardneg.kernels.threads import run_each


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["OpenMP", "workers"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """PyTorch's own threads, and what stands in for them."""
    if request.param == "workers":
        monkeypatch.setattr(module, "_openmp", lambda: None)
    elif module._openmp() is None:
        pytest.skip("this PyTorch has no OpenMP library that starts a region for others")
    return request.param


def test_each_thread_takes_parts_and_keeps_no_gradient(threads: int) -> None:
    all_at_once = threading.Barrier(threads, timeout=60)  # so that no thread takes two

    def seen(part: int) -> tuple[int, bool, int]:
        all_at_once.wait()
        return part, torch.is_grad_enabled(), threading.get_ident()

    parts = list(range(threads))
    found = run_each(seen, parts)
    assert [part for part, *_ in found] == parts
    assert not any(grad for _, grad, _ in found)
    assert len({thread for *_, thread in found}) == threads


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_pytorch_is_not_parallel_in_a_part(threads: int) -> None:
    matrix = torch.rand(500, 500)
    run_each(lambda part: matrix @ matrix, range(threads))
    before = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        run_each(lambda part: (matrix @ matrix).exp().sum(), range(2 * threads))
    assert len(os.listdir("/proc/self/task")) <= before


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_fewer_parts_than_threads_end_no_thread(threads: int) -> None:
    def alive() -> set[str]:
        run_each(lambda part: part, range(2))
        torch.rand(400, 400).exp().sum()
        return set(os.listdir("/proc/self/task"))

    alive()
    assert alive() == alive()


def test_nobody_elses_number_of_threads_changes(threads: int) -> None:
    numba = pytest.importorskip("numba")
    of_numba = numba.get_num_threads()  # starts Numba's threads, which sets PyTorch's number too
    torch.set_num_threads(threads)
    tensors = moco(100, 3000, 8)
    moco_loss("numba", BANDS["hardest"], tensors)
    moco_loss("numba", BANDS["without the hardest"], tensors)
    of_a_new_thread: list[int] = []
    thread = threading.Thread(target=lambda: of_a_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), of_a_new_thread) == (threads, [threads])
    assert numba.get_num_threads() == of_numba
    assert torch.is_grad_enabled()


def test_an_error_comes_out_once_all_are_done(threads: int) -> None:
    done: list[int] = []

    def some_fail(part: int) -> None:
        if part == 0:
            raise ValueError("part 0")
        time.sleep(0.05)
        done.append(part)

    with pytest.raises(ValueError, match="part 0"):
        run_each(some_fail, [0, 1, 2])
    assert sorted(done) == ([] if threads == 1 else [1, 2])  # and no thread is left at work


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_has_workers_of_its_own(kind: str) -> None:
    if kind == "OpenMP":
        pytest.skip("PyTorch's own threads don't survive a fork, whatever uses them")
    double = [0, 2, 4]
    assert run_each(lambda part: 2 * part, [0, 1, 2]) == double
    child = os.fork()
    if child == 0:
        os._exit(0 if run_each(lambda part: 2 * part, [0, 1, 2]) == double else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
    assert ended == (child, 0)
