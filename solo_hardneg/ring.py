"""The arithmetic of the queue, a ring of slots: which comes next, and how old each one is."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_hardneg.errors import bad_value


def next_slots(pointer: int, count: int, length: int, device: torch.device | None = None) -> Tensor:
    """(count,) int, the slots that the next ``count`` keys go to, from ``pointer`` on."""
    return (pointer + torch.arange(count, device=device)) % length


def ages(pointer: int, filled: int, length: int, device: torch.device | None = None) -> Tensor:
    """(filled,) int, the age of each filled slot in keys: 0 for the newest.

    ``pointer`` is the slot that is written next. Slots fill from 0 up, so the filled ones are the
    first ``filled`` of the ring, all of it once it has gone round.
    """
    return (pointer - 1 - torch.arange(filled, device=device)) % length


def places(order: Tensor) -> Tensor:
    """(M,) int, the place of each of 0 … M-1 in ``order``, which lists them: the inverse."""
    counted = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, counted)


def check_divisible(queue_size: int, global_batch: int) -> None:
    """Refuses a queue that the keys of whole steps don't fill.

    Raises:
        ConfigError: ``queue_size`` is no multiple of the images that all processes take a step.
    """
    if queue_size % global_batch or queue_size < global_batch:
        below = max(queue_size // global_batch, 1) * global_batch
        raise bad_value(
            "method_kwargs.queue_size",
            queue_size,
            f"must be a multiple of the global batch of {global_batch} images "
            "(optimizer.batch_size times processes)",
            f"The nearest are {below} and {below + global_batch}.",
        )
