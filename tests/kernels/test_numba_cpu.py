"""What only the lists of the numba kernel have: brackets that fail, and threads."""

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

from solo_hardneg.kernels import numba_cpu, numba_lists, numba_loops
from solo_hardneg.kernels.chunked import Block
from solo_hardneg.kernels.listing import listing_of
from solo_hardneg.kernels.problem import Problem, Ranks


@pytest.fixture
def threads() -> Iterator[None]:
    """Two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@named({name: config for name, config in BANDS.items() if name != "holes"})
def test_many_tiles_and_a_sample(
    config: dict[str, Any], threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_cpu, "_TILE", 61)  # of 1500, the last one overlaps
    monkeypatch.setattr("solo_hardneg.kernels.numba_part._CANDIDATES", 70)
    query, key, queue = moco(70, 1500, 12)
    tensors = query, key, queue.T.contiguous().T
    moco_loss("numba", config, tensors).same_as(moco_loss("dense", config, tensors))
    assert torch.get_num_threads() == 2


@named({k: BANDS[k] for k in ("all", "middle", "without the hardest")})
def test_many_blocks_of_many_parts(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_cpu, "_KEPT", 1)  # 512 queries in a block
    monkeypatch.setattr(numba_cpu, "_AT_ONCE", 1)  # 32 of them in a part
    tensors = moco(1100, 80, 4)
    moco_loss("numba", config, tensors).same_as(moco_loss("dense", config, tensors))


@named({k: BANDS[k] for k in ("middle", "without the hardest")})
@pytest.mark.parametrize("kind", ["misleading", "too high", "too low", "all equal"])
def test_a_bracket_that_fails_changes_nothing(
    config: dict[str, Any], kind: str, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = moco(9, 6000, 8)
    others: list[int] = []
    if kind == "misleading":  # the sample has only the easiest of the first query
        query, key, queue = tensors
        order = (query[0] @ queue).argsort()
        queue = queue[:, order]
        monkeypatch.setattr(numba_lists, "sample", lambda width, number: torch.arange(number))
        tensors = query, key, queue
    elif kind == "all equal":
        tensors = (*tensors[:2], tensors[2][:, :1].expand(-1, 6000).contiguous())
    else:
        off = 0.5 if kind == "too high" else -0.5
        real = numba_lists._at_rank

        def at_rank(*args: Any) -> np.ndarray:
            return real(*args) + np.float32(off)

        monkeypatch.setattr(numba_lists, "_at_rank", at_rank)
    real_chunked = numba_cpu.chunked

    def watched(problem: Problem) -> Block:
        others.append(len(problem.query))
        return real_chunked(problem)

    monkeypatch.setattr(numba_cpu, "chunked", watched)
    found = moco_loss("numba", config, tensors)
    assert others == [9]
    found.same_as(moco_loss("dense", config, tensors))


@pytest.mark.parametrize("share", [0.001, 0.2])
def test_a_sample_hardly_ever_misleads(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(problem: Problem) -> Block:
        raise AssertionError("left to the chunked kernel")

    monkeypatch.setattr(numba_cpu, "chunked", never)
    width = 20_000
    first = round(width * (1 - share))
    query, vectors = unit(300, 16), unit(width, 16, seed=1)
    for ranks in (Ranks(first, width), Ranks(first, width, inside=False)):
        kernel = numba_cpu.numba_kernel(Problem(query, vectors, 0.2, ranks=ranks))
        assert isinstance(kernel, numba_cpu.ListKernel)
        counts = kernel.reduce(slice(0, 300)).counts
        assert counts.tolist() == [ranks.kept(width)] * 300


@pytest.mark.parametrize(
    ("ranks", "hardest", "lists"),
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
def test_what_is_listed_is_little(
    ranks: Ranks | None, hardest: int, lists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.listing._FEW", 0)
    problem = Problem(unit(4, 5), unit(1000, 5), 0.2, ranks=ranks, hardest=hardest)
    listing = listing_of(problem)
    assert (listing is not None) == lists
    if listing is not None:
        assert listing.past - listing.first <= 200


def test_the_same_each_time_and_from_two_threads(threads: None) -> None:
    tensors = moco(64, 5000, 16)

    def once(_: int) -> list[torch.Tensor]:
        found = moco_loss("numba", BANDS["hardest"], tensors)
        return [found.loss, found.grads[0]]

    alone = [once(0) for _ in range(3)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(once, range(6)))
    for loss, gradient in (*alone[1:], *together):
        assert torch.equal(loss, alone[0][0])
        assert torch.equal(gradient, alone[0][1])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=400, unique=True), st.data())
def test_parting_is_sorting_in_one_place(numbers: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(numbers) - 1))
    keys = np.array(numbers, np.uint64)
    numba_loops.part(keys, 0, len(keys), place)
    expected = sorted(numbers)
    assert int(keys[place]) == expected[place]
    assert sorted(keys[:place].tolist()) == expected[:place]
    assert sorted(keys.tolist()) == expected


def test_parting_of_what_is_in_some_order() -> None:
    count = 5000
    up = np.arange(count, dtype=np.uint64)
    organ_pipe = np.concatenate([up[::2], up[1::2][::-1]])
    saw = up.reshape(50, 100).T.ravel()
    for keys in (up, up[::-1], organ_pipe, saw):
        for place in (0, 1, 17, 2500, 4998, 4999):
            mine = keys.copy()
            numba_loops.part(mine, 0, count, place)
            assert mine[place] == place
            assert mine[:place].max(initial=0) <= place


def test_minus_zero_is_zero() -> None:
    """Similarities of 0 and -0 are ties: the last columns are the hardest."""
    query = torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[0.0, -0.0, 0.0, -0.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]]).T
    vectors = torch.cat([queue, torch.zeros_like(queue)], dim=1)
    problem = Problem(query, vectors, 0.2, ranks=Ranks(8, 10), hardest=2)
    assert numba_cpu.numba_kernel(problem).reduce(slice(0, 1)).hardest.tolist() == [[3, 2]]


@given(
    st.lists(st.sampled_from([-2.0, -0.5, -0.0, 0.0, 1e-30, 0.25, 0.5, 7.0]), min_size=1)
    | st.lists(st.integers(0, 999).map(lambda i: 0.5 + i * 2.0**-24), min_size=1, max_size=60),
    st.data(),
)
def test_the_hardest_in_order_ties_by_column(values: list[float], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(values)))
    row = np.array([values], np.float32) + np.float32(0)  # -0 is 0
    expected = sorted(range(len(values)), key=lambda i: (row[0, i], i), reverse=True)
    # In Python, a wrong index is an error.
    for order in (numba_loops.order, numba_loops.order.py_func):
        places = np.empty((1, number), np.int32)
        order(row, places)
        assert places[0].tolist() == expected[:number]


def anything(shape: Any, dtype: Any) -> np.ndarray:
    """What fresh memory may hold."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF)
    return array


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_kept_of_a_list(inside: bool) -> None:
    """A list holds ranks [before, until), at least [first, past), in the order of columns.

    The ranks [start, end) among [first, past) are kept, or all others of the list. In Python, a
    wrong index is an error.
    """
    width = 5
    similarity = [3, 0, 4, 1, 2]  # by column; their ranks, too
    bits = np.array(similarity, np.float32).view(np.uint32)
    python = numba_loops.kept.py_func
    names = {**python.__globals__, "np": SimpleNamespace(**vars(np) | {"empty": anything})}
    not_compiled = FunctionType(python.__code__, names)
    bounds = combinations_with_replacement(range(width + 1), 6)
    for before, first, start, end, past, until in bounds:
        listed = [c for c in range(width) if before <= similarity[c] < until]
        keys = anything((1, width), np.uint64)
        keys[0, : len(listed)] = [numba_loops.key_of(bits[c], np.uint32(c)) for c in listed]
        columns, values = anything((1, width), np.int32), anything((1, width), np.float32)
        lists = keys, np.array([len(listed)]), np.array([before])
        ranks = first, past, start, end, inside
        for kept in (numba_loops.kept, not_compiled):
            assert kept(*lists, *ranks, columns, values) == 0
            expected = [c for c in listed if (start <= similarity[c] < end) == inside]
            assert columns[0, : len(expected)].tolist() == expected
            assert values[0, : len(expected)].tolist() == [similarity[c] for c in expected]
            assert (values[0, len(expected) :] == -np.inf).all()
            assert (columns[0, len(expected) :] > width).all()


def test_synthetic_ones_of_vectors_of_any_length() -> None:
    query, key, queue = moco(9, 200, 6)
    tensors = 0.3 * query, key, queue * torch.linspace(0.5, 3, 200)
    config = {"mix": {"hardest": 50, "pairs": 30, "queries": 20}}
    moco_loss("numba", config, tensors, tau=2.0).same_as(
        moco_loss("dense", config, tensors, tau=2.0)
    )


def test_pairs_that_nearly_cancel(threads: None) -> None:
    """‖α·nₐ + (1-α)·n_b‖ near 0 has as many digits as the dense way's."""
    direction = unit(1, 24)
    noise = 1e-3 * unit(400, 24, seed=1)
    vectors = torch.where(torch.arange(400)[:, None] % 2 == 0, direction, -direction) + noise
    query, key, _ = moco(40, 10, 24)
    tensors = query, key, torch.nn.functional.normalize(vectors).T.contiguous()
    config = {"mix": {"hardest": 400, "pairs": 50, "queries": 20}, "reweight": {"beta": 0.3}}
    moco_loss("numba", config, tensors).same_as(moco_loss("dense", config, tensors), rtol=1e-4)


def test_a_queue_that_wants_a_gradient_of_a_narrow_band(threads: None) -> None:
    for config in (BANDS["middle"], BANDS["weighed"]):
        tensors = moco(70, 1500, 12)
        tensors = (*tensors[:2], tensors[2].T.contiguous().T)
        expected = moco_loss("dense", config, tensors, queue_grad=True)
        moco_loss("numba", config, tensors, queue_grad=True).same_as(expected)
