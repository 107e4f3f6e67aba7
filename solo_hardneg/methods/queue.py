"""MoCo's queue: keys with what is known of them, and the order in which they leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solo_hardneg import ring
from solo_hardneg.distributed import gather, get_world_size, keep_out_of_broadcast
from solo_hardneg.errors import RanksDifferError
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

    Pointer and number of filled slots are known to Python too, so that no step asks the device for
    them. Ranks hold equal queues, because they enqueue the same gathered keys: no buffer of the
    queue is broadcast, and :meth:`check_ranks` compares digests.
    """

    queue: Tensor
    queue_labels: Tensor
    queue_indexes: Tensor
    queue_ptr: Tensor
    queue_filled: Tensor
    queue_serial: Tensor
    queue_hardness: Tensor
    filled: int
    _pointer: int
    _retains: bool

    def make_queue(self, views: int, dimensions: int, length: int, retains: bool) -> None:
        """Makes the buffers, empty. The host's ``queue`` starts as random vectors, no images."""
        # Each key is contiguous, so that it is written and read in one piece.
        self.queue = torch.zeros(views, length, dimensions).transpose(1, 2)
        self.register_buffer("queue_labels", torch.full((length,), -1, dtype=torch.long))
        self.register_buffer("queue_indexes", torch.full((length,), -1, dtype=torch.long))
        self.register_buffer("queue_filled", torch.zeros(1, dtype=torch.long))
        self._retains = retains
        if retains:
            self.register_buffer("queue_serial", torch.full((length,), -1, dtype=torch.long))
            self.register_buffer("queue_hardness", torch.full((length,), -1.0))
        self.read_counters()
        self.register_load_state_dict_post_hook(_read_counters)
        keep_out_of_broadcast(self, self._queue_buffers)

    @property
    def _queue_buffers(self) -> dict[str, Tensor]:
        return {name: b for name, b in self.named_buffers(recurse=False) if "queue" in name}

    def read_counters(self) -> None:
        """Takes pointer and number of filled slots from the buffers, as after loading them."""
        self._pointer, self.filled = int(self.queue_ptr), int(self.queue_filled)

    def queue_ages(self, filled: int, retention: Retain | None) -> Tensor:
        """(filled,) int, the place of each key in the order of leaving; 0 leaves last."""
        if not self._retains:
            return ring.ages(self._pointer, filled, self.queue.shape[2], self.queue.device)
        leaving = self._leaving(retention)[self.queue.shape[2] - filled :]
        return ring.places(leaving.flip(0))

    @torch.no_grad()
    def score_keys(
        self, shares: list[Tensor], retention: Retain | None, valid: Tensor | bool = True
    ) -> None:
        """Updates each key's hardness score.

        Args:
            shares: (M,) for each direction, the share of this rank's queries for which each of the
                first M slots was hard.
            retention: how scores are averaged; ``None`` leaves them.
            valid: bool; ``False`` leaves them, too.
        """
        if retention is None or not shares:
            return
        share = gather(torch.stack(shares)).mean(dim=0)  # of all ranks
        scores = self.queue_hardness[: len(share)]
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
            retention: which keys leave; ``None`` for the oldest.
            valid: bool; ``False`` leaves all buffers as they are. Nothing waits for it, so
                pointer and number of filled slots go on, and the run must end.
        """
        length, count = self.queue.shape[2], keys.shape[1]
        if self._retains:
            slots = self._leaving(retention)[:count]
            serial = self.queue_serial.max() + 1 + torch.arange(count, device=slots.device)
            self._write("queue_serial", slots, serial, valid)
            hardness = self.queue_hardness.new_full((count,), -1.0)
            if retention is not None:
                hardness.fill_(retention.chance)
            self._write("queue_hardness", slots, hardness, valid)
        else:
            slots = ring.next_slots(self._pointer, count, length, keys.device)
        self._write("queue", slots, keys.transpose(1, 2), valid)
        self._write("queue_labels", slots, labels, valid)
        self._write("queue_indexes", slots, indexes, valid)
        self._pointer = (self._pointer + count) % length
        self.filled = min(self.filled + count, length)
        for name, value in (("queue_ptr", self._pointer), ("queue_filled", self.filled)):
            buffer = getattr(self, name)
            self._write(name, slice(1), torch.full_like(buffer, value), valid)

    def _write(
        self, name: str, slots: Tensor | slice, values: Tensor, valid: Tensor | bool
    ) -> None:
        buffer = getattr(self, name)
        values = values.to(buffer)
        if isinstance(valid, Tensor):
            values = torch.where(valid, values, buffer[..., slots])
        buffer[..., slots] = values

    def check_ranks(self, epoch: int) -> None:
        """Compares the queues of all ranks by a digest; all ranks must call it together.

        Raises:
            RanksDifferError: it names the ranks whose queue isn't that of rank 0.
        """
        if get_world_size() == 1:
            return
        buffers = self._queue_buffers
        digests = gather(torch.stack([digest(buffer) for buffer in buffers.values()])[None])
        different = {
            rank: [name for name, differs in zip(buffers, row, strict=True) if differs]
            for rank, row in enumerate((digests != digests[0]).tolist())
            if any(row)
        }
        if different:
            found = "; ".join(f"rank {r}: {', '.join(names)}" for r, names in different.items())
            raise RanksDifferError(
                f"Epoch {epoch}: the queue is not the same on all ranks. Different from rank 0's "
                f"are, on {found}. Resume from the last checkpoint, which gives all ranks rank 0's "
                "queue; if it happens again, look for a faulty device, or for code of yours that "
                "writes to the queue on some ranks."
            )

    def _leaving(self, retention: Retain | None) -> Tensor:
        """(L,) int, the slots in the order in which they are written to: empty ones first."""
        age = (self.queue_serial.max() - self.queue_serial).double()
        if retention is not None:
            age = retention.effective_age(age, self.queue_hardness, len(age))
        age = age.masked_fill(self.queue_serial < 0, torch.inf)
        return torch.argsort(age, descending=True, stable=True)


def _read_counters(module: QueueOfKeys, _: Any) -> None:  # can be pickled, unlike a lambda
    module.read_counters()


def digest(tensor: Tensor) -> Tensor:
    """An int64 scalar of all bits of a tensor and of their places in its last dimension.

    Exact in whatever order the device adds, and made in one pass without a copy.
    """
    bits = tensor
    if tensor.is_floating_point():
        bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    above = tuple(range(bits.ndim - 1))
    sums = bits.sum(dim=above, dtype=torch.int64) if above else bits.long()
    places = 2 * torch.arange(len(sums), device=sums.device) + 1
    return (sums.remainder(1_000_003) * places).sum()  # stays below 2⁶³ up to a million slots
