"""MoCo's queue under ``retain``: who leaves, who stays, and what is known of each key."""

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
from lightning.pytorch import LightningModule

from solo_hardneg.methods.queue import QueueOfKeys, digest
from solo_hardneg.negatives.retain import Retain

Maker = Callable[..., Any]
LENGTH = 12


class Queue(QueueOfKeys):
    """The queue alone, without networks; counts the keys that it is given."""

    def __init__(self, length: int, retains: bool = True, views: int = 1):
        LightningModule.__init__(self)
        self.register_buffer("queue", torch.empty(0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.make_queue(views, 2, length, retains)
        self.given = 0

    def put(self, count: int, rule: Retain | None = None) -> None:
        """Enqueues keys whose numbers go on; of class number % 5, of image number + 1000."""
        numbers = torch.arange(self.given, self.given + count)
        views = torch.arange(self.queue.shape[0])
        keys = torch.stack(torch.broadcast_tensors(numbers[None], views[:, None]), dim=2)
        self.enqueue(keys.float(), numbers % 5, numbers + 1000, rule)
        self.given += count

    @property
    def numbers(self) -> list[int]:
        """The number of the key in each filled slot."""
        return self.queue[0, 0, : int(self.queue_filled)].long().tolist()


def rule(strength: float, low: float = 0.5) -> Retain:
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
        retaining.put(count, rule(0.0))
        plain.put(count)
        for name in ("queue", "queue_labels", "queue_indexes", "queue_filled", "queue_ptr"):
            assert torch.equal(getattr(retaining, name), getattr(plain, name)), name
        filled = int(plain.queue_filled)
        ages = [
            q.queue_ages(filled, r).tolist() for q, r in ((retaining, rule(0.0)), (plain, None))
        ]
        assert ages[0] == ages[1] == [plain.given - 1 - n for n in plain.numbers]
        assert retaining.queue_ages(0, rule(0.0)).tolist() == plain.queue_ages(0, None).tolist()


@pytest.mark.parametrize(
    ("symmetric", "others"),
    [
        (True, {"keep": {"band": [0.5, 1.0]}}),
        (False, {"drop": {"label": "same"}, "fill": {"kind": "older", "reserve": 0.1}}),  # 14 slots
    ],
)
@pytest.mark.filterwarnings("ignore:negatives.fill")
def test_training_with_strength_0_is_training_without(
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


# ---------------------------------------------------------------- who leaves


def lifetime(strength: float, mine: float, others: float, number: int = 0) -> int:
    """After how many newer keys one is gone whose score is ``mine`` all the time."""
    queue = Queue(LENGTH)
    while number not in queue.numbers or queue.given == 0:
        queue.put(1, rule(strength))
    while number in queue.numbers:
        queue.queue_hardness[:] = others
        queue.queue_hardness[queue.numbers.index(number)] = mine
        queue.put(1, rule(strength))
    return queue.given - 1 - number


CHANCE = 0.5


@pytest.mark.parametrize(
    ("strength", "mine", "others", "expected"),
    [
        (1.0, CHANCE, CHANCE, LENGTH),
        (1.0, 1.0, CHANCE, 2 * LENGTH),  # twice as often as by chance: a whole queue longer
        (0.5, 1.0, CHANCE, 1.5 * LENGTH),
        (1.0, 0.75, CHANCE, 1.5 * LENGTH),
        (1.0, 1.0, 0.0, 3 * LENGTH),  # the longest there is
        (1.0, 0.25, CHANCE, LENGTH),  # it is the oldest, and can't leave before the queue is full
        (1.0, 1.0, 1.0, LENGTH),
    ],
)
def test_how_long_a_key_stays(strength: float, mine: float, others: float, expected: float) -> None:
    assert lifetime(strength, mine, others) in (expected, expected - 1)  # a tie may end it sooner


@given(
    lengths_and_batches,
    st.sampled_from([0.25, 0.5, 1.0, 3.0]),
    st.randoms(use_true_random=False),
)
def test_who_leaves_against_plain_loops(
    case: tuple[int, list[int]], strength: float, random: Any
) -> None:
    length, batches = case
    queue, slots, given = Queue(length), [None] * length, 0
    for count in batches * 3:
        scores = [random.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for _ in range(length)]
        queue.queue_hardness[:] = torch.tensor(scores)
        ages = [math.inf if serial is None else given - 1 - serial for serial in slots]
        for slot, score in enumerate(scores):
            ages[slot] -= strength * length * min(max(score / 0.5 - 1, -1), 1)
        order = sorted(range(length), key=lambda slot, ages=ages: (-ages[slot], slot))
        full = [slot for slot in order if slots[slot] is not None]
        places = queue.queue_ages(len(full), rule(strength)).tolist()
        assert [places[slot] for slot in full] == list(range(len(full)))[::-1]
        queue.put(count, rule(strength))
        for slot in order[:count]:
            slots[slot], given = given, given + 1
        assert queue.numbers == [s for s in slots if s is not None]
        assert given - min(queue.numbers) <= (1 + 2 * strength) * length
        assert queue.queue_serial[: len(queue.numbers)].tolist() == queue.numbers
        assert queue.queue_labels[: len(queue.numbers)].tolist() == [n % 5 for n in queue.numbers]
        assert queue.queue_indexes[: len(queue.numbers)].tolist() == [
            n + 1000 for n in queue.numbers
        ]


def test_all_that_a_key_brings_is_in_its_slot() -> None:
    queue = Queue(6, views=2)
    for count in (4, 4, 3):
        queue.queue_hardness[1] = 1.0
        queue.put(count, rule(2.0))
    assert queue.numbers[1] == 1
    assert torch.equal(queue.queue[1, 0], queue.queue[0, 0])
    assert queue.queue[:, 1].tolist() == [[0.0] * 6, [1.0] * 6]


def test_a_queue_without_keys_knows_of_none() -> None:
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


def test_new_keys_start_by_chance() -> None:
    queue = Queue(4)
    queue.put(2, rule(1.0, low=0.8))
    assert queue.queue_hardness.tolist() == pytest.approx([0.2, 0.2, -1.0, -1.0])
    assert queue.queue_serial.tolist() == [0, 1, -1, -1]


def test_after_its_last_epoch_keys_leave_by_age(model: Maker, fit: Maker) -> None:
    moco = model(negatives={"retain": {"strength": 3.0, "band": [0.5, 1.0], "until_epoch": 1}})
    numbers: list[list[int]] = []
    enqueue = moco.enqueue

    def watch(*arguments: Any) -> None:
        moco.queue_hardness[:] = CHANCE
        moco.queue_hardness[0] = 1.0
        enqueue(*arguments)
        numbers.append(sorted(moco.queue_serial.tolist()))

    moco.enqueue = watch
    fit(moco, epochs=3)
    assert numbers[3] == [0, *range(5, 16)]  # key 0 was hard
    assert numbers[4] == list(range(8, 20))
    assert numbers[-1] == list(range(36, 48))
    ages = moco.queue_ages(12, None)
    assert torch.equal(ages, 47 - moco.queue_serial)


# ---------------------------------------------------------------- the scores


@pytest.mark.parametrize(
    ("symmetric", "keep"), [(False, {}), (True, {"keep": {"band": [0.25, 1.0]}})]
)
def test_scores_are_the_averaged_shares_of_queries(
    model: Maker, fit: Maker, symmetric: bool, keep: dict
) -> None:
    negatives = {**keep, "retain": {"strength": 1.0, "band": [0.5, 1.0], "decay": 0.75}}
    moco = model(f"method_kwargs.symmetric={symmetric}", negatives=negatives)
    met: list[tuple[list[torch.Tensor], torch.Tensor, int]] = []
    encode, score = moco._encode, moco.score_keys
    expected: list[list[float]] = []

    def watch_encode(*arguments: Any) -> Any:
        queries, keys, loss = encode(*arguments)
        met.append((queries, moco.queue.clone(), int(moco.queue_filled)))
        return queries, keys, loss

    def watch_score(*arguments: Any) -> None:
        queries, queue, filled = met[-1]
        scores = moco.queue_hardness.tolist()
        directions = zip(queries, reversed(queue), strict=True)
        rows = [row for query, keys in directions for row in (query @ keys[:, :filled]).tolist()]
        hard = [0.0] * filled
        for row in rows:
            kept = sorted(oracles.band(row, 0.25, 1.0)) if keep else list(range(filled))
            for j in oracles.band(row, 0.5, 1.0, present=kept):
                hard[j] += 1 / len(rows)
        mean = sum(hard) / max(filled, 1)  # and by chance it is 0.5
        scores[:filled] = [
            0.75 * s + 0.25 * h * 0.5 / mean for s, h in zip(scores, hard, strict=False)
        ]
        score(*arguments)
        expected.append(scores)
        assert moco.queue_hardness.tolist() == pytest.approx(scores)

    moco._encode, moco.score_keys = watch_encode, watch_score
    fit(moco, epochs=2)
    assert len(expected) == 8
    assert len({round(score, 6) for score in expected[-1]}) > 4


def test_keys_from_before_its_first_epoch_start_by_chance(model: Maker) -> None:
    retain = {"strength": 1.0, "band": [0.5, 1.0], "decay": 0.75, "from_epoch": 1}
    moco = model(negatives={"retain": retain})
    early, late = moco.policy.at(0).retention, moco.policy.at(1).retention
    assert early is None
    moco.enqueue(torch.zeros(1, 8, 8), torch.zeros(8), torch.arange(8), early)
    moco.score_keys([torch.ones(8)], early)
    assert moco.queue_ages(8, late).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    moco.score_keys([torch.tensor([1.0, 0.5] * 4)], late)
    first = [0.75 * 0.5 + 0.25 * share * 0.5 / 0.75 for share in (1.0, 0.5)]
    assert moco.queue_hardness[:8].tolist() == pytest.approx(first * 4)
    moco.score_keys([torch.tensor([0.0] * 8), torch.tensor([1.0] * 8)], late)
    then = [0.75 * score + 0.25 * 0.5 for score in first]
    assert moco.queue_hardness[:8].tolist() == pytest.approx(then * 4)


def test_a_key_that_was_never_hard_stays_so(model: Maker) -> None:
    moco = model(negatives={"retain": {"strength": 1.0, "band": [0.5, 1.0], "decay": 0.0}})
    moco.enqueue(torch.zeros(1, 4, 8), torch.zeros(4), torch.arange(4), moco.policy.retention)
    moco.score_keys([torch.tensor([0.0, 0.0, 1.0, 1.0])], moco.policy.retention)
    assert moco.queue_hardness[:4].tolist() == [0.0, 0.0, 1.0, 1.0]
    moco.score_keys([torch.tensor([0.0, 1.0, 0.0, 1.0])], Retain(1.0, band=[0.5, 1.0], decay=0.5))
    assert moco.queue_hardness[:4].tolist() == [0.0, 0.5, 0.5, 1.0]


# ---------------------------------------------------------------- beside the rest


def test_with_older_keys_the_reserve_holds_those_that_leave_next(model: Maker, fit: Maker) -> None:
    fill = {"kind": "older", "reserve": 0.5}
    retain = {"strength": 1.0, "band": [0.5, 1.0]}
    moco = model(negatives={"drop": {"band": [0.8, 1.0]}, "fill": fill, "retain": retain})
    enqueue, unusual = moco.enqueue, []

    def watch(*arguments: Any) -> None:
        full = int(moco.queue_filled) == 18
        ages = moco._negatives(0, moco.policy)["queue_age"]
        reserve = {i for i, age in enumerate(ages.tolist()) if age >= 12}
        next_ones = {i for i, age in enumerate(ages.tolist()) if age >= 14}
        before = moco.queue_serial.clone()
        enqueue(*arguments)
        written = set((moco.queue_serial != before).nonzero()[:, 0].tolist())
        if full:
            assert len(reserve) == 6
            assert written == next_ones < reserve
            oldest = set(before.argsort()[:6].tolist())
            unusual.append(reserve != oldest)

    moco.enqueue = watch
    fit(moco, epochs=4)
    assert len(unusual) == 11
    assert any(unusual)
    assert moco.pools[-1].notes["filled"].min() > 0


def test_a_queue_can_be_pickled() -> None:
    """For spawned processes, and ``torch.save`` of a whole model."""
    queue = Queue(LENGTH, retains=False)
    queue.put(5)
    again = pickle.loads(pickle.dumps(queue))
    assert (again.filled, again.numbers) == (5, queue.numbers)
    again.load_state_dict({**queue.state_dict(), "queue_filled": torch.tensor([3])})
    assert again.filled == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_digest_knows_each_bit_and_its_slot(dtype: torch.dtype) -> None:
    queue = torch.randn(7, 300).mul(1e3).to(dtype)
    before = digest(queue)
    assert before == digest(queue.clone()) == digest(queue.flip(0))  # of slots, not of dimensions
    for slot in (0, 150, 298):
        swapped = queue.clone()
        swapped[:, [slot, slot + 1]] = queue[:, [slot + 1, slot]]
        assert digest(swapped) != before
        changed = queue.clone()
        changed.view(torch.int16)[3, slot * queue.element_size() // 2] ^= 1
        assert digest(changed) != before
