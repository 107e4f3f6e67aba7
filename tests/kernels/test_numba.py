"""The numba kernel: lists, sampled bounds that fail, compiled loops, and its size in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import BANDS, moco_loss, named
from loss_helpers import moco, unit

from solo_hardneg.kernels.interface import Kernel, KernelInput, Ranks
from solo_hardneg.kernels.numba import candidate_lists, loops
from solo_hardneg.kernels.numba import kernel as numba_kernel
from solo_hardneg.kernels.numba.listed_ranks import ListedRanks, choose_listed_ranks


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@named({name: config for name, config in BANDS.items() if name != "holes"})
def test_many_tiles(
    config: dict[str, Any], two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_kernel, "_TILE", 61)  # the last of 1500 columns' tiles overlaps
    monkeypatch.setattr("solo_hardneg.kernels.numba.query_shard._CANDIDATE_TILE", 70)
    query, key, queue = moco(70, 1500, 12)
    tensors = query, key, queue.T.contiguous().T
    moco_loss("numba", config, tensors).assert_equal(moco_loss("dense", config, tensors))
    assert torch.get_num_threads() == 2


@named({k: BANDS[k] for k in ("all", "middle", "without the hardest")})
def test_many_blocks_and_shards(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_kernel, "_BLOCK_SIZE", 1)  # 512 queries
    monkeypatch.setattr(numba_kernel, "_SHARD_SIZE", 1)  # 32 queries
    tensors = moco(1100, 80, 4)
    moco_loss("numba", config, tensors).assert_equal(moco_loss("dense", config, tensors))


@named({k: BANDS[k] for k in ("middle", "without the hardest")})
@pytest.mark.parametrize("kind", ["misleading", "too high", "too low", "all equal"])
def test_bounds_that_fail_change_nothing(
    config: dict[str, Any], kind: str, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = moco(9, 6000, 8)
    fallbacks: list[int] = []
    if kind == "misleading":  # the sample holds only the easiest candidates of the first query
        query, key, queue = tensors
        order = (query[0] @ queue).argsort()
        queue = queue[:, order]
        monkeypatch.setattr(
            candidate_lists, "sample_columns", lambda width, number: torch.arange(number)
        )
        tensors = query, key, queue
    elif kind == "all equal":
        tensors = (*tensors[:2], tensors[2][:, :1].expand(-1, 6000).contiguous())
    else:
        off = 0.5 if kind == "too high" else -0.5
        real = candidate_lists._value_at_rank

        def value_at_rank(*args: Any) -> np.ndarray:
            return real(*args) + np.float32(off)

        monkeypatch.setattr(candidate_lists, "_value_at_rank", value_at_rank)
    real_chunked = numba_kernel.chunked_kernel

    def recording(inputs: KernelInput) -> Kernel:
        fallbacks.append(len(inputs.query))
        return real_chunked(inputs)

    monkeypatch.setattr(numba_kernel, "chunked_kernel", recording)
    found = moco_loss("numba", config, tensors)
    assert fallbacks == [9]
    found.assert_equal(moco_loss("dense", config, tensors))


@pytest.mark.parametrize("share", [0.001, 0.2])
def test_samples_rarely_mislead(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inputs: KernelInput) -> Kernel:
        raise AssertionError("fell back to the chunked kernel")

    monkeypatch.setattr(numba_kernel, "chunked_kernel", fail)
    width = 20_000
    first = round(width * (1 - share))
    query, vectors = unit(300, 16), unit(width, 16, seed=1)
    for ranks in (Ranks(first, width), Ranks(first, width, inside=False)):
        kernel = numba_kernel.numba_kernel(KernelInput(query, vectors, 0.2, ranks=ranks))
        assert isinstance(kernel, numba_kernel.ListKernel)
        counts = kernel.reduce(slice(0, 300)).counts
        assert counts.tolist() == [ranks.kept(width)] * 300


@pytest.mark.parametrize(
    ("ranks", "hardest", "is_listed"),
    [
        (None, 0, True),
        (None, 100, True),
        (None, 500, False),
        (Ranks(950, 1000), 0, True),
        (Ranks(950, 1000), 20, True),
        (Ranks(500, 1000), 0, False),
        (Ranks(0, 900), 0, True),
        (Ranks(0, 900), 50, True),
        (Ranks(100, 1000), 0, True),
        (Ranks(100, 1000), 5, False),
        (Ranks(400, 600), 0, True),
        (Ranks(400, 600, inside=False), 0, True),
        (Ranks(300, 700, inside=False), 0, False),
        (Ranks(300, 700), 0, False),
    ],
)
def test_lists_are_short(
    ranks: Ranks | None, hardest: int, is_listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.numba.listed_ranks._ALWAYS_LISTED", 0)
    inputs = KernelInput(unit(4, 5), unit(1000, 5), 0.2, ranks=ranks, hardest=hardest)
    listed = choose_listed_ranks(inputs)
    assert (listed is not None) == is_listed
    if listed is not None:
        assert listed.past - listed.first <= 200


def test_bit_equal_each_time_and_from_two_threads(two_threads: None) -> None:
    tensors = moco(64, 5000, 16)

    def run(_: int) -> list[torch.Tensor]:
        found = moco_loss("numba", BANDS["hardest"], tensors)
        return [found.loss, found.grads[0]]

    alone = [run(0) for _ in range(3)]
    with ThreadPoolExecutor(2) as pool:
        concurrent = list(pool.map(run, range(6)))
    for loss, gradient in (*alone[1:], *concurrent):
        assert torch.equal(loss, alone[0][0])
        assert torch.equal(gradient, alone[0][1])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=400, unique=True), st.data())
def test_partition_sorts_one_place(numbers: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(numbers) - 1))
    keys = np.array(numbers, np.uint64)
    loops.partition(keys, 0, len(keys), place)
    expected = sorted(numbers)
    assert int(keys[place]) == expected[place]
    assert sorted(keys[:place].tolist()) == expected[:place]
    assert sorted(keys.tolist()) == expected


def test_partition_of_ordered_keys() -> None:
    count = 5000
    up = np.arange(count, dtype=np.uint64)
    organ_pipe = np.concatenate([up[::2], up[1::2][::-1]])
    saw = up.reshape(50, 100).T.ravel()
    for keys in (up, up[::-1], organ_pipe, saw):
        for place in (0, 1, 17, 2500, 4998, 4999):
            found = keys.copy()
            loops.partition(found, 0, count, place)
            assert found[place] == place
            assert found[:place].max(initial=0) <= place


def test_minus_zero_is_zero() -> None:
    """Ties of 0 and -0 break by column."""
    query = torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[0.0, -0.0, 0.0, -0.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]]).T
    vectors = torch.cat([queue, torch.zeros_like(queue)], dim=1)
    inputs = KernelInput(query, vectors, 0.2, ranks=Ranks(8, 10), hardest=2)
    assert numba_kernel.numba_kernel(inputs).reduce(slice(0, 1)).hardest.tolist() == [[3, 2]]


@given(
    st.lists(st.sampled_from([-2.0, -0.5, -0.0, 0.0, 1e-30, 0.25, 0.5, 7.0]), min_size=1)
    | st.lists(st.integers(0, 999).map(lambda i: 0.5 + i * 2.0**-24), min_size=1, max_size=60),
    st.data(),
)
def test_hardest_first_ties_by_column(values: list[float], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(values)))
    row = np.array([values], np.float32) + np.float32(0)  # -0 is 0
    expected = sorted(range(len(values)), key=lambda i: (row[0, i], i), reverse=True)
    # Not compiled, a wrong index raises an error.
    for sort_hardest in (loops.sort_hardest, loops.sort_hardest.py_func):
        places = np.empty((1, number), np.int32)
        sort_hardest(row, places)
        assert places[0].tolist() == expected[:number]


def garbage(shape: Any, dtype: Any) -> np.ndarray:
    """An uninitialised array."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF)
    return array


@pytest.mark.parametrize("inside", [True, False])
def test_select_kept(inside: bool) -> None:
    """A list holds the ranks [before, until), and must hold [first, past).

    The ranks [start, end) among these are kept, or all others in the list. Not compiled, a wrong
    index raises an error.
    """
    width = 5
    similarity = [3, 0, 4, 1, 2]  # also the ranks
    bits = np.array(similarity, np.float32).view(np.uint32)
    python = loops.select_kept.py_func
    names = {**python.__globals__, "np": SimpleNamespace(**vars(np) | {"empty": garbage})}
    not_compiled = FunctionType(python.__code__, names)
    bounds = combinations_with_replacement(range(width + 1), 6)
    for before, first, start, end, past, until in bounds:
        listed = [c for c in range(width) if before <= similarity[c] < until]
        keys = garbage((1, width), np.uint64)
        keys[0, : len(listed)] = [loops.key_of(bits[c], np.uint32(c)) for c in listed]
        columns, values = garbage((1, width), np.int32), garbage((1, width), np.float32)
        lists = keys, np.array([len(listed)]), np.array([before])
        ranks = first, past, start, end, inside
        for select_kept in (loops.select_kept, not_compiled):
            assert select_kept(*lists, *ranks, columns, values) == 0
            expected = [c for c in listed if (start <= similarity[c] < end) == inside]
            assert columns[0, : len(expected)].tolist() == expected
            assert values[0, : len(expected)].tolist() == [similarity[c] for c in expected]
            assert (values[0, len(expected) :] == -np.inf).all()
            assert (columns[0, len(expected) :] > width).all()


def test_mixing_vectors_that_are_not_unit() -> None:
    query, key, queue = moco(9, 200, 6)
    tensors = 0.3 * query, key, queue * torch.linspace(0.5, 3, 200)
    config = {"mix": {"hardest": 50, "pairs": 30, "queries": 20}}
    moco_loss("numba", config, tensors, tau=2.0).assert_equal(
        moco_loss("dense", config, tensors, tau=2.0)
    )


def test_mixing_vectors_that_nearly_cancel(two_threads: None) -> None:
    """‖α·nₐ + (1-α)·n_b‖ near 0 is as precise as in the dense backend."""
    direction = unit(1, 24)
    noise = 1e-3 * unit(400, 24, seed=1)
    vectors = torch.where(torch.arange(400)[:, None] % 2 == 0, direction, -direction) + noise
    query, key, _ = moco(40, 10, 24)
    tensors = query, key, torch.nn.functional.normalize(vectors).T.contiguous()
    config = {"mix": {"hardest": 400, "pairs": 50, "queries": 20}, "reweight": {"beta": 0.3}}
    moco_loss("numba", config, tensors).assert_equal(moco_loss("dense", config, tensors), rtol=1e-4)


def test_gradient_of_the_queue_in_a_narrow_band(two_threads: None) -> None:
    for config in (BANDS["middle"], BANDS["weighed"]):
        tensors = moco(70, 1500, 12)
        tensors = (*tensors[:2], tensors[2].T.contiguous().T)
        expected = moco_loss("dense", config, tensors, queue_grad=True)
        moco_loss("numba", config, tensors, queue_grad=True).assert_equal(expected)


# ---------------------------------------------------------------- memory

QUERIES, CANDIDATES = 8192, 10_000


def list_kernel(ranks: Ranks, others: bool) -> numba_kernel.ListKernel:
    query, vectors = torch.zeros(QUERIES, 2), torch.zeros(CANDIDATES, 2)
    listed = ListedRanks(ranks.first, ranks.past, ranks, others)
    return numba_kernel.ListKernel(KernelInput(query, vectors, 0.2), listed)


def test_block_size() -> None:
    kept = list_kernel(Ranks(0, 2000), others=False).block * 2000
    assert 2**20 < kept <= 2**21
    assert list_kernel(Ranks(0, 2000, inside=False), others=True).block == QUERIES  # keeps no list


class Stopped(Exception):
    """Carries the rows of the shards."""


def test_shard_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(function: object, rows: list[slice]) -> None:
        raise Stopped(rows)

    monkeypatch.setattr(numba_kernel, "parallel_map", stop)
    with pytest.raises(Stopped) as stopped:
        list_kernel(Ranks(0, 20), others=False).reduce(slice(1000, 3000))
    (shards,) = stopped.value.args
    assert [shard.stop for shard in shards[:-1]] == [shard.start for shard in shards[1:]]
    assert (shards[0].start, shards[-1].stop) == (1000, 3000)
    tile = 2048
    assert all(2**17 < (shard.stop - shard.start) * tile <= 2**18 for shard in shards)
