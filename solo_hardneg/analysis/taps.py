"""Where the recorder gets a step's queries and negatives from, without a change to the method.

Our methods show the very pools that their loss saw. For the host's own methods, hooks on the
projectors keep what went into the loss, and our loss functions, which give the host's value, make
the pools of it once more. A tap is open during a recorded step only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from solo_hardneg import ring
from solo_hardneg.distributed import gather, get_rank
from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives.pool import Pool, full_pool

Batch = Sequence[Any]  # [indexes (B,), views, targets (B,)]
Chooser = Callable[[int], Tensor]  # of so many queries, the numbers of those to look at


class Tap:
    """The pools of one step; this one is of a method that makes none."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def open(self) -> None:
        """Before a step that is recorded."""

    def close(self) -> None:
        """After it, or when it failed; leaves nothing behind in the method."""

    def pools(self, batch: Batch, choose: Chooser) -> list[Pool]:
        """The pools of the step since :meth:`open`, of some queries of each direction.

        All processes must call it together.
        """
        return []

    def after_step(self, batch: Batch) -> None:
        """After every step, recorded or not."""

    def state(self) -> dict[str, Any]:
        """What must be known to go on after a resume, as tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up such a state."""


class OwnTap(Tap):
    """Our methods: the pools that their losses saw."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._seen: list[Pool] = []

    def open(self) -> None:
        self._seen.clear()
        self.module.observers.append(self._see)

    def close(self) -> None:
        if self._see in self.module.observers:
            self.module.observers.remove(self._see)
        self._seen.clear()

    def _see(self, pool: Pool) -> None:
        # The queue's classes and indexes are buffers, to which the same step still writes.
        labels, indexes = (
            None if known is None else known.clone() for known in (pool.labels, pool.indexes)
        )
        self._seen.append(replace(pool, labels=labels, indexes=indexes))

    def pools(self, batch: Batch, choose: Chooser) -> list[Pool]:
        # MoCo's queue may hold no key yet.
        return [p.rows(choose(len(p.similarity))) for p in self._seen if p.similarity.shape[1]]


class HookedTap(Tap):
    """A host's method: what some of its parts put out during a step, view after view."""

    parts: Sequence[str] = ("projector",)

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._handles: list[Any] = []
        self.outputs: dict[str, list[Tensor]] = {}

    @property
    def temperature(self) -> float:
        """τ."""
        return float(self.module.temperature)

    def open(self) -> None:
        self.outputs = {name: [] for name in self.parts}
        for name, kept in self.outputs.items():

            def keep(_: nn.Module, __: Any, output: Tensor, kept: list[Tensor] = kept) -> None:
                kept.append(output.detach())

            self._handles.append(getattr(self.module, name).register_forward_hook(keep))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.outputs = {}


class BatchTap(HookedTap):
    """SimCLR: the negatives are all other images' views in the global batch."""

    def pools(self, batch: Batch, choose: Chooser) -> list[Pool]:
        _, _, targets = batch
        views = self.outputs["projector"]
        images = batch[0].repeat(len(views))
        seen: list[Pool] = []
        simclr_loss_func(
            torch.cat(views),
            self.positives(batch).repeat(len(views)),
            self.temperature,
            query_labels=targets.repeat(len(views)),
            observe=seen.append,
        )
        pool = replace(seen[0], query_indexes=images, indexes=gather(images))
        return [pool.rows(choose(len(pool.similarity)))]

    def positives(self, batch: Batch) -> Tensor:
        """(B,) what is the same for a query and its positives."""
        return batch[0]


class ClassesTap(BatchTap):
    """SupCon: positives are all views of the class, negatives those of other classes."""

    def positives(self, batch: Batch) -> Tensor:
        return batch[2]


class KeysTap(HookedTap):
    """MoCo v3: the negatives are the other images' keys in the global batch."""

    parts = ("predictor", "momentum_projector")

    def pools(self, batch: Batch, choose: Chooser) -> list[Pool]:
        indexes, _, targets = batch
        queries, keys = (self.outputs[name] for name in self.parts)
        pools = []
        for query, key in zip(queries, reversed(keys), strict=True):
            query, mine = normalize(query.float(), dim=1), normalize(key.float(), dim=1)
            rows = choose(len(query))
            own = rows + len(query) * get_rank()
            everybodys = gather(mine)
            similarity = query[rows] @ everybodys.T
            itself = torch.zeros_like(similarity, dtype=torch.bool)
            itself.scatter_(1, own[:, None], True)
            pool = full_pool(
                similarity,
                query_labels=targets[rows],
                labels=gather(targets),
                query_indexes=indexes[rows],
                indexes=gather(indexes),
                positive=(query[rows] * mine[rows]).sum(dim=1),
            )
            pools.append(pool.without(itself, count=similarity.shape[1] - 1).offer())
        return pools


class QueueTap(HookedTap):
    """The host's MoCo v2+: the negatives are its queue, as it was before the step.

    The host's queue doesn't say whose keys it holds, so their classes and dataset indexes are taken
    down here, after every step. The random vectors that it starts with are nobody's keys.
    """

    parts = ("projector", "momentum_projector")

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        length = module.queue.shape[2]
        unknown = torch.full((length,), -1, dtype=torch.long, device=module.queue.device)
        self.labels, self.indexes = unknown, unknown.clone()
        # A run that is resumed without a state of ours has filled the slots up to the pointer, or,
        # once round, all of them; with whose keys, nobody knows.
        self.pointer = int(module.queue_ptr)
        steps = module.trainer.global_step * module.trainer.accumulate_grad_batches
        keys = steps * module.trainer.world_size * module.cfg.optimizer.batch_size
        self.filled = min(keys, length)
        self._queue: Tensor | None = None

    def open(self) -> None:
        super().open()
        self._queue = self.module.queue.clone()  # the step writes to it

    def close(self) -> None:
        super().close()
        self._queue = None

    def pools(self, batch: Batch, choose: Chooser) -> list[Pool]:
        if self.filled == 0 or self._queue is None:
            return []
        indexes, _, targets = batch
        queries, keys = (self.outputs[name] for name in self.parts)
        length = self._queue.shape[2]
        seen: list[Pool] = []
        # A query meets the queue of the view that its key is of.
        for view, query, key in zip((1, 0), queries, reversed(keys), strict=True):
            rows = choose(len(query))
            mocov2plus_loss_func(
                normalize(query[rows], dim=1),
                normalize(key[rows], dim=1),
                self._queue[view, :, : self.filled],
                self.temperature,
                query_labels=targets[rows],
                queue_labels=self.labels[: self.filled],
                query_indexes=indexes[rows],
                queue_indexes=self.indexes[: self.filled],
                queue_age=ring.ages(self.pointer, self.filled, length, query.device),
                observe=seen.append,
            )
        return seen

    def after_step(self, batch: Batch) -> None:
        indexes, _, targets = batch
        length = len(self.labels)
        labels, images = gather(torch.stack([targets, indexes], dim=1)).unbind(dim=1)
        slots = ring.next_slots(self.pointer, len(labels), length, self.labels.device)
        self.labels[slots] = labels.to(self.labels)
        self.indexes[slots] = images.to(self.indexes)
        self.pointer = (self.pointer + len(labels)) % length
        self.filled = min(self.filled + len(labels), length)

    def state(self) -> dict[str, Any]:
        return {
            "labels": self.labels.cpu(),
            "indexes": self.indexes.cpu(),
            "pointer": self.pointer,
            "filled": self.filled,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if len(state["labels"]) == len(self.labels) and state["pointer"] == self.pointer:
            self.labels, self.indexes = (
                state[name].to(self.labels) for name in ("labels", "indexes")
            )
            self.filled = state["filled"]


# The host's methods whose negatives can be had, by name. Of the others, some have none (BYOL and
# its kin), and some have them between vectors that no hook sees (NNCLR, ReSSL).
_TAPS: dict[str, type[Tap]] = {
    "mocov2plus": QueueTap,
    "simclr": BatchTap,
    "supcon": ClassesTap,
    "mocov3": KeysTap,
}
KNOWN = ("mocov2_banded", "mocov2_sscl", "simclr_banded", "simclr_sscl", *_TAPS)


def make_tap(module: Any, method: str) -> Tap | None:
    """The tap for a method; ``None`` where its negatives can't be had."""
    if hasattr(module, "observers"):
        return OwnTap(module)
    kind = _TAPS.get(method)
    return None if kind is None else kind(module)
