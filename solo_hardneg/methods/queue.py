"""MoCo's queue: keys with what is known of them, and the order in which they leave."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_hardneg import ring
from solo_hardneg.distributed import gather
from solo_hardneg.host import BaseMethod
from solo_hardneg.negatives.retain import Retain


class QueueOfKeys(BaseMethod):
    """The part of a method that is its queue, all of it buffers.

    With V views (2 or 1), D dimensions and L slots: ``queue`` (V, D, L) keys; ``queue_labels`` and
    ``queue_indexes`` (L,) the class and the dataset index of each key's image, -1 where unknown;
    ``queue_filled`` (1,) how many slots hold a key, the first ones. Slots that hold none are no
    negatives. ``queue_ptr`` (1,) is the slot written next in a queue that is first in, first out.

    Where the policy has the verb ``retain`` there are also ``queue_serial`` (L,), which key in the
    order of arrival each slot holds, -1 for none, and ``queue_hardness`` (L,), its score, -1 where
    it has none because ``retain`` did not act yet.
    """

    queue: Tensor
    queue_labels: Tensor
    queue_indexes: Tensor
    queue_ptr: Tensor
    queue_filled: Tensor
    queue_serial: Tensor
    queue_hardness: Tensor
    _retains: bool

    def make_queue(self, views: int, dimensions: int, length: int, retains: bool) -> None:
        """Makes the buffers, empty. The host's ``queue`` starts as random vectors, no images."""
        # Keys lie one after another, so that one is written, and read, in one piece.
        self.queue = torch.zeros(views, length, dimensions).transpose(1, 2)
        self.register_buffer("queue_labels", torch.full((length,), -1, dtype=torch.long))
        self.register_buffer("queue_indexes", torch.full((length,), -1, dtype=torch.long))
        self.register_buffer("queue_filled", torch.zeros(1, dtype=torch.long))
        self._retains = retains
        if retains:
            self.register_buffer("queue_serial", torch.full((length,), -1, dtype=torch.long))
            self.register_buffer("queue_hardness", torch.full((length,), -1.0))

    def queue_ages(self, filled: int, retention: Retain | None) -> Tensor:
        """(filled,) int, the place of each key in the order of leaving; 0 leaves last."""
        if not self._retains:
            length = self.queue.shape[2]
            return ring.ages(int(self.queue_ptr), filled, length, self.queue.device)
        leaving = self._leaving(retention)[self.queue.shape[2] - filled :]
        return ring.places(leaving.flip(0))

    @torch.no_grad()
    def score_keys(self, shares: list[Tensor], retention: Retain | None) -> None:
        """Takes down of how many of a step's queries each key was hard.

        Args:
            shares: (M,) for each direction, of the first M slots, from this rank's queries.
            retention: says what the scores are; ``None`` leaves them.
        """
        if retention is None or not shares:
            return
        everybodys = gather(torch.stack(shares)).mean(dim=0)  # the same on all ranks
        scores = self.queue_hardness[: len(everybodys)]
        scores = scores.masked_fill(scores < 0, retention.chance)  # from before its first epoch
        self.queue_hardness[: len(everybodys)] = retention.average(scores, everybodys)

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, labels: Tensor, indexes: Tensor, retention: Retain | None = None
    ) -> None:
        """Puts keys (V, B, D), with their labels and indexes (B,), in the place of others."""
        length, count = self.queue.shape[2], keys.shape[1]
        if self._retains:
            slots = self._leaving(retention)[:count]
            newest = self.queue_serial.max()
            self.queue_serial[slots] = newest + 1 + torch.arange(count, device=slots.device)
            self.queue_hardness[slots] = -1.0 if retention is None else retention.chance
        else:
            slots = ring.next_slots(int(self.queue_ptr), count, length, keys.device)
        self.queue[:, :, slots] = keys.permute(0, 2, 1).to(self.queue.dtype)
        self.queue_labels[slots] = labels.to(self.queue_labels)
        self.queue_indexes[slots] = indexes.to(self.queue_indexes)
        self.queue_ptr[0] = (int(self.queue_ptr) + count) % length
        self.queue_filled[0] = min(int(self.queue_filled) + count, length)

    def _leaving(self, retention: Retain | None) -> Tensor:
        """(L,) int, the slots in the order in which they are written to: empty ones first."""
        age = (self.queue_serial.max() - self.queue_serial).double()
        if retention is not None:
            age = retention.effective_age(age, self.queue_hardness, len(age))
        age = age.masked_fill(self.queue_serial < 0, torch.inf)
        return torch.argsort(age, descending=True, stable=True)
