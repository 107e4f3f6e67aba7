"""MoCo's queue: a ring of keys with their labels, dataset indexes and ages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solo_hardneg.distributed import check_equal_on_ranks, gather, keep_out_of_broadcast
from solo_hardneg.errors import bad_value
from solo_hardneg.negatives.retain import Retain


class KeyQueue:
    """A queue of keys in the buffers of a module.

    With V views (2 or 1), D dimensions and L slots, the module gets the buffers ``queue``
    (V, D, L), keys; ``queue_labels`` and ``queue_indexes`` (L,), class and dataset index of each
    key's image, -1 where unknown; ``queue_filled`` (1,), how many slots hold a key, the first ones;
    and ``queue_ptr`` (1,), the slot written next in a queue that is first in, first out. Empty
    slots are no negatives.

    With the verb ``retain`` there are also ``queue_serial`` (L,), each key's number in the order
    of arrival, -1 for an empty slot; and ``queue_hardness`` (L,), its score, -1 before ``retain``
    acts.

    Pointer and fill are Python numbers too, so no step waits for the device. Ranks enqueue the same
    gathered keys, so their queues are equal: DDP broadcasts none of it, and :meth:`check_ranks`
    compares digests.

    Args:
        module: Module that holds the buffers, and saves and loads them with its own.
        views: V.
        dimensions: D.
        length: L.
        retains: Whether the policy has the verb ``retain`` in some epoch.

    Attributes:
        filled: Number of slots that hold a key.
    """

    def __init__(
        self, module: nn.Module, views: int, dimensions: int, length: int, retains: bool = False
    ) -> None:
        self.module, self.length, self._retains = module, length, retains
        unknown = torch.full((length,), -1, dtype=torch.long)
        # A key's numbers are contiguous, so that it is written and read in one piece.
        buffers = {
            "queue": torch.zeros(views, length, dimensions).transpose(1, 2),
            "queue_ptr": torch.zeros(1, dtype=torch.long),
            "queue_labels": unknown,
            "queue_indexes": unknown.clone(),
            "queue_filled": torch.zeros(1, dtype=torch.long),
        }
        if retains:
            buffers["queue_serial"] = unknown.clone()
            buffers["queue_hardness"] = torch.full((length,), -1.0)
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer)
        self.names = tuple(buffers)
        self.read_counters()
        module.register_load_state_dict_post_hook(self._after_loading)
        keep_out_of_broadcast(module, self.names)

    def __getitem__(self, name: str) -> Tensor:
        return self.module.get_buffer(name)

    def read_counters(self) -> None:
        """Takes pointer and fill from the buffers, as after loading a checkpoint."""
        self._pointer, self.filled = int(self["queue_ptr"]), int(self["queue_filled"])

    def _after_loading(self, module: nn.Module, _: Any) -> None:
        self.read_counters()

    def ages(self, filled: int, retention: Retain | None = None) -> Tensor:
        """(filled,) int, each key's place in the order of leaving; 0 leaves last."""
        if not self._retains:
            return key_ages(self._pointer, filled, self.length, self["queue"].device)
        leaving = self._leaving(retention)[self.length - filled :]
        return inverse_permutation(leaving.flip(0))

    @torch.no_grad()
    def score(
        self, shares: list[Tensor], retention: Retain | None, valid: Tensor | bool = True
    ) -> None:
        """Updates each key's hardness score.

        Args:
            shares: (M,) per direction, share of this rank's queries for which each of the first M
                keys was hard.
            retention: Verb that averages the scores; ``None`` leaves them.
            valid: bool; ``False`` leaves them, too.
        """
        if retention is None or not shares:
            return
        share = gather(torch.stack(shares)).mean(dim=0)  # over all ranks
        scores = self["queue_hardness"][: len(share)]
        scores = scores.masked_fill(scores < 0, retention.chance)  # from before its first epoch
        self._write("queue_hardness", slice(len(share)), retention.average(scores, share), valid)

    @torch.no_grad()
    def enqueue(
        self,
        keys: Tensor,
        labels: Tensor,
        indexes: Tensor,
        retention: Retain | None = None,
        valid: Tensor | bool = True,
    ) -> None:
        """Replaces the keys that leave.

        Args:
            keys: (V, B, D), of all ranks.
            labels, indexes: (B,) class and dataset index of each key's image.
            retention: Verb that says which keys leave; ``None`` for the oldest.
            valid: bool; ``False`` leaves all buffers as they are. Nothing waits for it, so pointer
                and fill go on, and the run must end.
        """
        count = keys.shape[1]
        if self._retains:
            slots = self._leaving(retention)[:count]
            serial = self["queue_serial"].max() + 1 + torch.arange(count, device=slots.device)
            self._write("queue_serial", slots, serial, valid)
            hardness = self["queue_hardness"].new_full((count,), -1.0)
            if retention is not None:
                hardness.fill_(retention.chance)
            self._write("queue_hardness", slots, hardness, valid)
        else:
            slots = next_slots(self._pointer, count, self.length, keys.device)
        self._write("queue", slots, keys.transpose(1, 2), valid)
        self._write("queue_labels", slots, labels, valid)
        self._write("queue_indexes", slots, indexes, valid)
        self._pointer = (self._pointer + count) % self.length
        self.filled = min(self.filled + count, self.length)
        for name, value in (("queue_ptr", self._pointer), ("queue_filled", self.filled)):
            self._write(name, slice(1), torch.full_like(self[name], value), valid)

    def _write(
        self, name: str, slots: Tensor | slice, values: Tensor, valid: Tensor | bool
    ) -> None:
        buffer = self[name]
        values = values.to(buffer)
        if isinstance(valid, Tensor):
            values = torch.where(valid, values, buffer[..., slots])
        buffer[..., slots] = values

    def check_ranks(self, epoch: int) -> None:
        """Compares the queues of all ranks by a digest; all ranks must call it together.

        Raises:
            RanksDifferError: Names the ranks whose queue differs from that of rank 0.
        """
        check_equal_on_ranks("the queue", {name: self[name] for name in self.names}, epoch)

    def _leaving(self, retention: Retain | None) -> Tensor:
        """(L,) int, the slots in the order in which they are written: empty ones first."""
        serial = self["queue_serial"]
        age = (serial.max() - serial).double()
        if retention is not None:
            age = retention.effective_age(age, self["queue_hardness"], len(age))
        age = age.masked_fill(serial < 0, torch.inf)
        return torch.argsort(age, descending=True, stable=True)


def next_slots(pointer: int, count: int, length: int, device: torch.device | None = None) -> Tensor:
    """(count,) int, the slots of the next ``count`` keys, from ``pointer`` on."""
    return (pointer + torch.arange(count, device=device)) % length


def key_ages(pointer: int, filled: int, length: int, device: torch.device | None = None) -> Tensor:
    """(filled,) int, the age of each filled slot's key, 0 for the newest.

    ``pointer`` is the slot written next. Slots fill from 0 up, so the filled ones come first.
    """
    return (pointer - 1 - torch.arange(filled, device=device)) % length


def inverse_permutation(order: Tensor) -> Tensor:
    """(M,) int, the place of each of 0 … M-1 in ``order``."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def check_queue_size(queue_size: int, global_batch: int) -> None:
    """Raises ConfigError unless the keys of whole steps fill the queue."""
    if queue_size % global_batch or queue_size < global_batch:
        below = max(queue_size // global_batch, 1) * global_batch
        raise bad_value(
            "method_kwargs.queue_size",
            queue_size,
            f"must be a multiple of the global batch of {global_batch} images "
            "(optimizer.batch_size times processes)",
            f"The nearest are {below} and {below + global_batch}.",
        )
