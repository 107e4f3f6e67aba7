"""Slots and ages of the ring buffer against a plain list."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives.queue import (
    check_queue_size,
    inverse_permutation,
    key_ages,
    next_slots,
)


@given(st.integers(1, 20), st.lists(st.integers(1, 7), min_size=1, max_size=12))
def test_slots_and_ages_equal_those_of_a_list(length: int, batches: list[int]) -> None:
    slots: list[int | None] = [None] * length
    pointer = filled = key = 0
    for batch in (min(b, length) for b in batches):
        for slot in next_slots(pointer, batch, length).tolist():
            slots[slot] = key
            key += 1
        pointer, filled = (pointer + batch) % length, min(filled + batch, length)
        ages = key_ages(pointer, filled, length).tolist()
        assert [s is not None for s in slots] == [True] * filled + [False] * (length - filled)
        assert ages == [key - 1 - s for s in slots if s is not None]


@given(st.permutations(range(9)))
def test_inverse_permutation(order: list[int]) -> None:
    places = inverse_permutation(torch.tensor(order)).tolist()
    assert [order[place] for place in places] == list(range(9))
    assert [places[number] for number in order] == list(range(9))


def test_tensors_are_made_on_the_device() -> None:
    meta = torch.device("meta")
    assert next_slots(3, 4, 5, meta).device == meta
    assert key_ages(3, 4, 5, meta).device == meta
    assert inverse_permutation(torch.arange(4, device=meta)).device == meta
    assert next_slots(3, 4, 5).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "batch", "nearest"),
    [
        (15, 4, "12 and 16"),
        (3, 4, "4 and 8"),
        (-8, 4, "4 and 8"),
        (65536, 384, "65280 and 65664"),
    ],
)
def test_queue_size_must_be_a_multiple_of_the_batch(size: int, batch: int, nearest: str) -> None:
    text = rf"kwargs.queue_size={size}: .* global batch of {batch} .* nearest are {nearest}\."
    with pytest.raises(ConfigError, match=text):
        check_queue_size(size, batch)
    for batches in (1, 2, 5):
        check_queue_size(batches * batch, batch)
