"""MoCo's queue with ``retain``: which keys leave, and what is stored of each."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from solo_hardneg.distributed import digest
from solo_hardneg.negatives.queue import KeyQueue
from solo_hardneg.negatives.retain import Retain

Maker = Callable[..., Any]
LENGTH = 12


class Queue(nn.Module):
    """A queue without networks that counts the keys put into it."""

    def __init__(self, length: int, retains: bool = True, views: int = 1):
        super().__init__()
        self.key_queue = KeyQueue(self, views, 2, length, retains)
        self.count = 0

    def put(self, size: int, retention: Retain | None = None) -> None:
        """Enqueues consecutively numbered keys, with class number % 5 and image number + 1000."""
        numbers = torch.arange(self.count, self.count + size)
        views = torch.arange(self.queue.shape[0])
        keys = torch.stack(torch.broadcast_tensors(numbers[None], views[:, None]), dim=2)
        self.key_queue.enqueue(keys.float(), numbers % 5, numbers + 1000, retention)
        self.count += size

    @property
    def numbers(self) -> list[int]:
        """The key's number in each filled slot."""
        return self.queue[0, 0, : int(self.queue_filled)].long().tolist()


def retain(strength: float, low: float = 0.5) -> Retain:
    return Retain(strength, band=[low, 1.0])


lengths_and_batches = st.integers(1, 20).flatmap(
    lambda length: st.tuples(
        st.just(length), st.lists(st.integers(1, min(length, 7)), min_size=1, max_size=12)
    )
)


# ---------------------------------------------------------------- strength 0


@given(lengths_and_batches, st.integers(1, 2), st.randoms(use_true_random=False))
def test_strength_0_is_first_in_first_out(
    case: tuple[int, list[int]], views: int, random: Any
) -> None:
    length, batches = case
    retaining, plain = Queue(length, views=views), Queue(length, retains=False, views=views)
    for count in batches:
        retaining.queue_hardness[:] = torch.tensor([random.random() for _ in range(length)])
        retaining.put(count, retain(0.0))
        plain.put(count)
        for name in ("queue", "queue_labels", "queue_indexes", "queue_filled", "queue_ptr"):
            assert torch.equal(getattr(retaining, name), getattr(plain, name)), name
        filled = int(plain.queue_filled)
        ages = [
            q.key_queue.ages(filled, r).tolist()
            for q, r in ((retaining, retain(0.0)), (plain, None))
        ]
        assert ages[0] == ages[1] == [plain.count - 1 - n for n in plain.numbers]
        assert (
            retaining.key_queue.ages(0, retain(0.0)).tolist()
            == plain.key_queue.ages(0, None).tolist()
        )


@pytest.mark.parametrize(
    ("symmetric", "others"),
    [
        (True, {"keep": {"band": [0.5, 1.0]}}),
        (False, {"drop": {"label": "same"}, "fill": {"kind": "older", "reserve": 0.1}}),  # 14 slots
    ],
)
@pytest.mark.filterwarnings("ignore:negatives.fill")
def test_training_with_strength_0_equals_training_without_retain(
    model: Maker, fit: Maker, symmetric: bool, others: dict
) -> None:
    overrides = f"method_kwargs.symmetric={symmetric}"
    retaining = model(overrides, negatives={"retain": {"strength": 0.0}, **others})
    plain = model(overrides, negatives=others)
    for moco in (retaining, plain):
        fit(moco, epochs=3)
    assert len(set(plain.losses)) == 12
    assert retaining.losses == plain.losses
    for name, value in plain.named_buffers():
        assert torch.equal(retaining.get_buffer(name), value), name
    assert retaining.queue_hardness.any()
    assert not hasattr(plain, "queue_serial")


# ---------------------------------------------------------------- which keys leave


def lifetime(strength: float, own: float, others: float, number: int = 0) -> int:
    """Number of newer keys after which a key with the constant score ``own`` leaves."""
    queue = Queue(LENGTH)
    while number not in queue.numbers or queue.count == 0:
        queue.put(1, retain(strength))
    while number in queue.numbers:
        queue.queue_hardness[:] = others
        queue.queue_hardness[queue.numbers.index(number)] = own
        queue.put(1, retain(strength))
    return queue.count - 1 - number


CHANCE = 0.5


@pytest.mark.parametrize(
    ("strength", "own", "others", "expected"),
    [
        (1.0, CHANCE, CHANCE, LENGTH),
        (1.0, 1.0, CHANCE, 2 * LENGTH),  # hard twice as often as by chance: one queue length longer
        (0.5, 1.0, CHANCE, 1.5 * LENGTH),
        (1.0, 0.75, CHANCE, 1.5 * LENGTH),
        (1.0, 1.0, 0.0, 3 * LENGTH),  # the maximum
        (1.0, 0.25, CHANCE, LENGTH),  # the oldest; leaves only once the queue is full
        (1.0, 1.0, 1.0, LENGTH),
    ],
)
def test_lifetime_of_a_key(strength: float, own: float, others: float, expected: float) -> None:
    assert lifetime(strength, own, others) in (expected, expected - 1)  # ties may shorten it


@given(
    lengths_and_batches,
    st.sampled_from([0.25, 0.5, 1.0, 3.0]),
    st.randoms(use_true_random=False),
)
def test_leaving_keys_match_plain_loops(
    case: tuple[int, list[int]], strength: float, random: Any
) -> None:
    length, batches = case
    queue, slots, count = Queue(length), [None] * length, 0
    for size in batches * 3:
        scores = [random.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for _ in range(length)]
        queue.queue_hardness[:] = torch.tensor(scores)
        ages = [math.inf if serial is None else count - 1 - serial for serial in slots]
        for slot, score in enumerate(scores):
            ages[slot] -= strength * length * min(max(score / 0.5 - 1, -1), 1)
        order = sorted(range(length), key=lambda slot, ages=ages: (-ages[slot], slot))
        full = [slot for slot in order if slots[slot] is not None]
        places = queue.key_queue.ages(len(full), retain(strength)).tolist()
        assert [places[slot] for slot in full] == list(range(len(full)))[::-1]
        queue.put(size, retain(strength))
        for slot in order[:size]:
            slots[slot], count = count, count + 1
        assert queue.numbers == [s for s in slots if s is not None]
        assert count - min(queue.numbers) <= (1 + 2 * strength) * length
        assert queue.queue_serial[: len(queue.numbers)].tolist() == queue.numbers
        assert queue.queue_labels[: len(queue.numbers)].tolist() == [n % 5 for n in queue.numbers]
        assert queue.queue_indexes[: len(queue.numbers)].tolist() == [
            n + 1000 for n in queue.numbers
        ]


def test_key_of_all_views_is_in_one_slot() -> None:
    queue = Queue(6, views=2)
    for count in (4, 4, 3):
        queue.queue_hardness[1] = 1.0
        queue.put(count, retain(2.0))
    assert queue.numbers[1] == 1
    assert torch.equal(queue.queue[1, 0], queue.queue[0, 0])
    assert queue.queue[:, 1].tolist() == [[0.0] * 6, [1.0] * 6]


def test_empty_queue() -> None:
    queue = Queue(3)
    for name in ("queue_labels", "queue_indexes", "queue_serial"):
        empty = torch.tensor([-1, -1, -1])
        assert torch.equal(queue.get_buffer(name), empty)
        assert queue.get_buffer(name).dtype == torch.long
    assert queue.queue_filled.tolist() == [0]
    assert queue.queue_hardness.tolist() == [-1.0, -1.0, -1.0]
    assert set(Queue(3, retains=False).state_dict()) == {
        *("queue", "queue_ptr", "queue_labels", "queue_indexes", "queue_filled")
    }


def test_new_keys_start_at_the_score_of_chance() -> None:
    queue = Queue(4)
    queue.put(2, retain(1.0, low=0.8))
    assert queue.queue_hardness.tolist() == pytest.approx([0.2, 0.2, -1.0, -1.0])
    assert queue.queue_serial.tolist() == [0, 1, -1, -1]


def test_keys_leave_by_age_after_the_last_epoch_of_retain(model: Maker, fit: Maker) -> None:
    moco = model(negatives={"retain": {"strength": 3.0, "band": [0.5, 1.0], "until_epoch": 1}})
    numbers: list[list[int]] = []
    enqueue = moco.key_queue.enqueue

    def watch(*args: Any) -> None:
        moco.queue_hardness[:] = CHANCE
        moco.queue_hardness[0] = 1.0
        enqueue(*args)
        numbers.append(sorted(moco.queue_serial.tolist()))

    moco.key_queue.enqueue = watch
    fit(moco, epochs=3)
    assert numbers[3] == [0, *range(5, 16)]  # key 0 is hard
    assert numbers[4] == list(range(8, 20))
    assert numbers[-1] == list(range(36, 48))
    ages = moco.key_queue.ages(12, None)
    assert torch.equal(ages, 47 - moco.queue_serial)


# ---------------------------------------------------------------- the scores


@pytest.mark.parametrize(
    ("symmetric", "keep"), [(False, {}), (True, {"keep": {"band": [0.25, 1.0]}})]
)
def test_scores_average_the_shares_of_queries(
    model: Maker, fit: Maker, symmetric: bool, keep: dict
) -> None:
    negatives = {**keep, "retain": {"strength": 1.0, "band": [0.5, 1.0], "decay": 0.75}}
    moco = model(f"method_kwargs.symmetric={symmetric}", negatives=negatives)
    seen: list[tuple[list[torch.Tensor], torch.Tensor, int]] = []
    encode, score = moco._encode, moco.key_queue.score
    expected: list[list[float]] = []

    def watch_encode(*args: Any) -> Any:
        queries, keys, loss = encode(*args)
        seen.append((queries, moco.queue.clone(), int(moco.queue_filled)))
        return queries, keys, loss

    def watch_score(*args: Any) -> None:
        queries, queue, filled = seen[-1]
        scores = moco.queue_hardness.tolist()
        directions = zip(queries, reversed(queue), strict=True)
        rows = [row for query, keys in directions for row in (query @ keys[:, :filled]).tolist()]
        hard = [0.0] * filled
        for row in rows:
            kept = sorted(oracles.band(row, 0.25, 1.0)) if keep else list(range(filled))
            for j in oracles.band(row, 0.5, 1.0, present=kept):
                hard[j] += 1 / len(rows)
        mean = sum(hard) / max(filled, 1)  # 0.5 by chance
        scores[:filled] = [
            0.75 * s + 0.25 * h * 0.5 / mean for s, h in zip(scores, hard, strict=False)
        ]
        score(*args)
        expected.append(scores)
        assert moco.queue_hardness.tolist() == pytest.approx(scores)

    moco._encode, moco.key_queue.score = watch_encode, watch_score
    fit(moco, epochs=2)
    assert len(expected) == 8
    assert len({round(score, 6) for score in expected[-1]}) > 4


def test_earlier_keys_start_at_the_score_of_chance(model: Maker) -> None:
    retain = {"strength": 1.0, "band": [0.5, 1.0], "decay": 0.75, "from_epoch": 1}
    moco = model(negatives={"retain": retain})
    early, late = moco.policy.at(0).retention, moco.policy.at(1).retention
    assert early is None
    moco.key_queue.enqueue(torch.zeros(1, 8, 8), torch.zeros(8), torch.arange(8), early)
    moco.key_queue.score([torch.ones(8)], early)
    assert moco.key_queue.ages(8, late).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    moco.key_queue.score([torch.tensor([1.0, 0.5] * 4)], late)
    first = [0.75 * 0.5 + 0.25 * share * 0.5 / 0.75 for share in (1.0, 0.5)]
    assert moco.queue_hardness[:8].tolist() == pytest.approx(first * 4)
    moco.key_queue.score([torch.tensor([0.0] * 8), torch.tensor([1.0] * 8)], late)
    then = [0.75 * score + 0.25 * 0.5 for score in first]
    assert moco.queue_hardness[:8].tolist() == pytest.approx(then * 4)


def test_key_that_was_never_hard_has_score_0(model: Maker) -> None:
    moco = model(negatives={"retain": {"strength": 1.0, "band": [0.5, 1.0], "decay": 0.0}})
    moco.key_queue.enqueue(
        torch.zeros(1, 4, 8), torch.zeros(4), torch.arange(4), moco.policy.retention
    )
    moco.key_queue.score([torch.tensor([0.0, 0.0, 1.0, 1.0])], moco.policy.retention)
    assert moco.queue_hardness[:4].tolist() == [0.0, 0.0, 1.0, 1.0]
    moco.key_queue.score(
        [torch.tensor([0.0, 1.0, 0.0, 1.0])], Retain(1.0, band=[0.5, 1.0], decay=0.5)
    )
    assert moco.queue_hardness[:4].tolist() == [0.0, 0.5, 0.5, 1.0]


# ---------------------------------------------------------------- with a reserve; copies


def test_reserve_holds_the_keys_that_leave_next(model: Maker, fit: Maker) -> None:
    fill = {"kind": "older", "reserve": 0.5}
    retain = {"strength": 1.0, "band": [0.5, 1.0]}
    moco = model(negatives={"drop": {"band": [0.8, 1.0]}, "fill": fill, "retain": retain})
    enqueue, differs_from_age = moco.key_queue.enqueue, []

    def watch(*args: Any) -> None:
        full = int(moco.queue_filled) == 18
        ages = moco._negatives(0, moco.policy)["queue_age"]
        reserve = {i for i, age in enumerate(ages.tolist()) if age >= 12}
        next_ones = {i for i, age in enumerate(ages.tolist()) if age >= 14}
        before = moco.queue_serial.clone()
        enqueue(*args)
        written = set((moco.queue_serial != before).nonzero()[:, 0].tolist())
        if full:
            assert len(reserve) == 6
            assert written == next_ones < reserve
            oldest = set(before.argsort()[:6].tolist())
            differs_from_age.append(reserve != oldest)

    moco.key_queue.enqueue = watch
    fit(moco, epochs=4)
    assert len(differs_from_age) == 11
    assert any(differs_from_age)
    assert moco.pools[-1].notes["filled"].min() > 0


def test_queue_can_be_pickled() -> None:
    """For spawned processes and ``torch.save`` of a whole model."""
    queue = Queue(LENGTH, retains=False)
    queue.put(5)
    copy = pickle.loads(pickle.dumps(queue))
    assert (copy.key_queue.filled, copy.numbers) == (5, queue.numbers)
    copy.load_state_dict({**queue.state_dict(), "queue_filled": torch.tensor([3])})
    assert copy.key_queue.filled == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_digest_depends_on_every_bit_and_slot(dtype: torch.dtype) -> None:
    queue = torch.randn(7, 300).mul(1e3).to(dtype)
    before = digest(queue)
    assert (
        before == digest(queue.clone()) == digest(queue.flip(0))
    )  # depends on slots, not on dimensions
    for slot in (0, 150, 298):
        swapped = queue.clone()
        swapped[:, [slot, slot + 1]] = queue[:, [slot + 1, slot]]
        assert digest(swapped) != before
        changed = queue.clone()
        changed.view(torch.int16)[3, slot * queue.element_size() // 2] ^= 1
        assert digest(changed) != before
