"""The ring buffer's arithmetic against a list that is shifted by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solo_hardneg import ring


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
