"""The ring buffer's arithmetic against a list that is shifted by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg import ring
from solo_hardneg.errors import ConfigError


@given(st.integers(1, 20), st.lists(st.integers(1, 7), min_size=1, max_size=12))
def test_slots_and_ages_against_a_shifted_list(length: int, batches: list[int]) -> None:
    slots: list[int | None] = [None] * length
    pointer = filled = key = 0
    for batch in (min(b, length) for b in batches):
        for slot in ring.next_slots(pointer, batch, length).tolist():
            slots[slot] = key
            key += 1
        pointer, filled = (pointer + batch) % length, min(filled + batch, length)
        ages = ring.ages(pointer, filled, length).tolist()
        assert [s is not None for s in slots] == [True] * filled + [False] * (length - filled)
        assert ages == [key - 1 - s for s in slots if s is not None]


@given(st.permutations(range(9)))
def test_the_places_of_an_order(order: list[int]) -> None:
    places = ring.places(torch.tensor(order)).tolist()
    assert [order[place] for place in places] == list(range(9))
    assert [places[number] for number in order] == list(range(9))


def test_all_is_made_where_the_queue_is() -> None:
    meta = torch.device("meta")
    assert ring.next_slots(3, 4, 5, meta).device == meta
    assert ring.ages(3, 4, 5, meta).device == meta
    assert ring.places(torch.arange(4, device=meta)).device == meta
    assert ring.next_slots(3, 4, 5).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "batch", "nearest"),
    [
        (15, 4, "12 and 16"),
        (3, 4, "4 and 8"),
        (-8, 4, "4 and 8"),
        (65536, 384, "65280 and 65664"),
    ],
)
def test_queues_that_they_do_not_fill(size: int, batch: int, nearest: str) -> None:
    text = rf"kwargs.queue_size={size}: .* global batch of {batch} .* nearest are {nearest}\."
    with pytest.raises(ConfigError, match=text):
        ring.check_divisible(size, batch)
    for batches in (1, 2, 5):
        ring.check_divisible(batches * batch, batch)
