"""The arithmetic of a ring buffer: which slot comes next, and how old each one is."""

from __future__ import annotations

import torch
from torch import Tensor


def next_slots(pointer: int, count: int, length: int) -> Tensor:
    """(count,) int, the slots that the next ``count`` keys go to, from ``pointer`` on."""
    return (pointer + torch.arange(count)) % length


def ages(pointer: int, filled: int, length: int) -> Tensor:
    """(filled,) int, the age of each filled slot in keys: 0 for the newest.

    ``pointer`` is the slot that is written next. Slots fill from 0 up, so the filled ones are the
    first ``filled`` of the ring, all of it once it has gone round.
    """
    return (pointer - 1 - torch.arange(filled)) % length
