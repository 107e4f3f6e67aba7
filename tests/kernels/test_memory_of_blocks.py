"""How many numbers the kernels hold at a time: as many as fit, whatever the number of queries."""

from __future__ import annotations

import pytest
import torch

from solo_hardneg.kernels import chunked, numba_cpu
from solo_hardneg.kernels.listing import Listing
from solo_hardneg.kernels.problem import Problem, Ranks

QUERIES, CANDIDATES = 8192, 10_000


def problem(device: str = "cpu") -> Problem:
    query, vectors = (torch.zeros(n, 2, device=device) for n in (QUERIES, CANDIDATES))
    return Problem(query, vectors, 0.2)


# The meta device stands for any accelerator.
@pytest.mark.parametrize(("device", "numbers"), [("cpu", 2**22), ("meta", 2**23)])
def test_all_similarities_of_a_block(device: str, numbers: int) -> None:
    kernel = chunked.WeightsKernel(problem(device))
    assert numbers / 2 < kernel.block * CANDIDATES <= numbers


@pytest.mark.parametrize(("device", "numbers"), [("cpu", 2**19), ("meta", 2**23)])
def test_a_tile_of_similarities(device: str, numbers: int) -> None:
    kernel = chunked.EverythingKernel(problem(device))
    assert numbers / 2 < kernel.block * kernel.tile <= numbers


def test_what_lists_keep() -> None:
    ranks = Ranks(0, 2000)
    kernel = numba_cpu.ListKernel(problem(), Listing(0, 2000, ranks, others=False))
    assert 2**20 < kernel.block * 2000 <= 2**21
    ranks = Ranks(0, 2000, inside=False)
    kernel = numba_cpu.ListKernel(problem(), Listing(0, 2000, ranks, others=True))
    assert kernel.block == QUERIES  # nothing of the lists is kept


class Shared(Exception):
    """Has the parts that were to be shared out among threads."""


def test_what_a_thread_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_each(part: object, rows: list[slice]) -> None:
        raise Shared(rows)

    monkeypatch.setattr(numba_cpu, "run_each", run_each)
    kernel = numba_cpu.ListKernel(problem(), Listing(0, 20, Ranks(0, 20), others=False))
    with pytest.raises(Shared) as shared:
        kernel.reduce(slice(1000, 3000))
    (parts,) = shared.value.args
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert (parts[0].start, parts[-1].stop) == (1000, 3000)
    tile = 2048
    assert all(2**17 < (part.stop - part.start) * tile <= 2**18 for part in parts)
