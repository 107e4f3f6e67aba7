"""Probes: where the recorder gets a step's queries and negatives, without changing the method.

Our methods hand the pools of their losses to observers. For the host's methods, forward hooks keep
the projectors' outputs, and our loss functions, which equal the host's, rebuild the pools from
them. A probe is open during recorded steps only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from solo_hardneg.distributed import gather, get_rank
from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives.pool import Pool, full_pool
from solo_hardneg.negatives.queue import key_ages, next_slots

Batch = Sequence[Any]  # [indexes (B,), views, targets (B,)]
QuerySampler = Callable[[int], Tensor]  # number of queries -> (n,) those to record


class Probe:
    """Gives the pools of a step; this base class gives none."""

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def temperature(self) -> float:
        """τ; 1 for a loss without negatives, which has none."""
        return float(getattr(self.module, "temperature", 1.0))

    def open(self) -> None:
        """Called before a recorded step."""

    def close(self) -> None:
        """Called after a recorded step, also if it failed; leaves nothing behind in the method."""

    def pools(self, batch: Batch, sample: QuerySampler) -> list[Pool]:
        """The sampled queries of the step since :meth:`open`, one pool per direction of the loss.

        All ranks must call it together.
        """
        return []

    def after_step(self, batch: Batch) -> None:
        """Called after every step, recorded or not."""

    def state(self) -> dict[str, Any]:
        """State for resuming, as tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state` returned."""


class ObserverProbe(Probe):
    """Our methods: the very pools of their losses."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._pools: list[Pool] = []

    def open(self) -> None:
        self._pools.clear()
        self.module.observers.append(self._observe)

    def close(self) -> None:
        if self._observe in self.module.observers:
            self.module.observers.remove(self._observe)
        self._pools.clear()

    def _observe(self, pool: Pool) -> None:
        # The queue's labels and indexes are buffers, to which the same step still writes.
        labels, indexes = (
            None if values is None else values.clone() for values in (pool.labels, pool.indexes)
        )
        self._pools.append(replace(pool, labels=labels, indexes=indexes))

    def pools(self, batch: Batch, sample: QuerySampler) -> list[Pool]:
        # MoCo's queue may hold no key yet.
        return [p.rows(sample(len(p.similarity))) for p in self._pools if p.similarity.shape[1]]


class HookProbe(Probe):
    """A host's method: the outputs of some of its modules during a step, one per view."""

    hooked: Sequence[str] = ("projector",)

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._handles: list[Any] = []
        self.outputs: dict[str, list[Tensor]] = {}

    def open(self) -> None:
        self.outputs = {name: [] for name in self.hooked}
        for name, outputs in self.outputs.items():

            def keep(_: nn.Module, __: Any, output: Tensor, to: list[Tensor] = outputs) -> None:
                to.append(output.detach())

            self._handles.append(getattr(self.module, name).register_forward_hook(keep))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.outputs = {}


class BatchProbe(HookProbe):
    """SimCLR: the negatives are all other images' views in the global batch."""

    def pools(self, batch: Batch, sample: QuerySampler) -> list[Pool]:
        indexes, _, targets = batch
        views = self.outputs["projector"]
        images = indexes.repeat(len(views))
        observed: list[Pool] = []
        simclr_loss_func(
            torch.cat(views),
            self.positive_groups(batch).repeat(len(views)),
            self.temperature,
            query_labels=targets.repeat(len(views)),
            observe=observed.append,
        )
        pool = replace(observed[0], query_indexes=images, indexes=gather(images))
        return [pool.rows(sample(len(pool.similarity)))]

    def positive_groups(self, batch: Batch) -> Tensor:
        """(B,) values that are equal for a query and its positives: the images' indexes."""
        return batch[0]


class SupConProbe(BatchProbe):
    """SupCon: positives are all views of the query's class, negatives those of other classes."""

    def positive_groups(self, batch: Batch) -> Tensor:
        """(B,) the classes."""
        return batch[2]


class MoCoV3Probe(HookProbe):
    """MoCo v3: the negatives are the other images' keys in the global batch."""

    hooked = ("predictor", "momentum_projector")

    def pools(self, batch: Batch, sample: QuerySampler) -> list[Pool]:
        indexes, _, targets = batch
        queries, keys = (self.outputs[name] for name in self.hooked)
        pools = []
        for query, key in zip(queries, reversed(keys), strict=True):
            query, key = normalize(query.float(), dim=1), normalize(key.float(), dim=1)
            rows = sample(len(query))
            similarity = query[rows] @ gather(key).T
            is_positive = torch.zeros_like(similarity, dtype=torch.bool)
            is_positive.scatter_(1, (rows + len(query) * get_rank())[:, None], True)
            pool = full_pool(
                similarity,
                query_labels=targets[rows],
                labels=gather(targets),
                query_indexes=indexes[rows],
                indexes=gather(indexes),
                positive=(query[rows] * key[rows]).sum(dim=1),
                query=query[rows],
            )
            pools.append(pool.without(is_positive, count=similarity.shape[1] - 1).offer())
        return pools


class BYOLProbe(HookProbe):
    """BYOL: predictions and their targets, the positives; there are no negatives."""

    hooked = ("predictor", "momentum_projector")

    def pools(self, batch: Batch, sample: QuerySampler) -> list[Pool]:
        queries, keys = (self.outputs[name] for name in self.hooked)
        pools = []
        for query, key in zip(queries, reversed(keys), strict=False):  # small crops are no targets
            rows = sample(len(query))
            query, key = normalize(query[rows].float(), dim=1), normalize(key[rows].float(), dim=1)
            pool = full_pool(
                query.new_empty(len(rows), 0),
                query_indexes=batch[0][rows],
                positive=(query * key).sum(dim=1),
                query=query,
            )
            pools.append(pool)
        return pools


class QueueProbe(HookProbe):
    """The host's MoCo v2+: the negatives are its queue as it was before the step.

    The host does not store the labels and dataset indexes of its keys, so they are recorded here
    after every step. The random vectors that the queue starts with are left out.
    """

    hooked = ("projector", "momentum_projector")

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        size = module.queue.shape[2]
        unknown = torch.full((size,), -1, dtype=torch.long, device=module.queue.device)
        self.labels, self.indexes = unknown, unknown.clone()
        # A run that was resumed without our state has keys whose images are unknown.
        self.pointer = int(module.queue_ptr)
        steps = module.trainer.global_step * module.trainer.accumulate_grad_batches
        enqueued = steps * module.trainer.world_size * module.cfg.optimizer.batch_size
        self.filled = min(enqueued, size)
        self._queue: Tensor | None = None

    def open(self) -> None:
        super().open()
        self._queue = self.module.queue.clone()  # the step writes to it

    def close(self) -> None:
        super().close()
        self._queue = None

    def pools(self, batch: Batch, sample: QuerySampler) -> list[Pool]:
        if self.filled == 0 or self._queue is None:
            return []
        indexes, _, targets = batch
        queries, keys = (self.outputs[name] for name in self.hooked)
        size = self._queue.shape[2]
        observed: list[Pool] = []
        # A query is compared with the queue of the other view, whose key is its positive.
        for view, query, key in zip((1, 0), queries, reversed(keys), strict=True):
            rows = sample(len(query))
            mocov2plus_loss_func(
                normalize(query[rows], dim=1),
                normalize(key[rows], dim=1),
                self._queue[view, :, : self.filled],
                self.temperature,
                query_labels=targets[rows],
                queue_labels=self.labels[: self.filled],
                query_indexes=indexes[rows],
                queue_indexes=self.indexes[: self.filled],
                queue_age=key_ages(self.pointer, self.filled, size, query.device),
                observe=observed.append,
            )
        return observed

    def after_step(self, batch: Batch) -> None:
        indexes, _, targets = batch
        size = len(self.labels)
        labels, images = gather(torch.stack([targets, indexes], dim=1)).unbind(dim=1)
        slots = next_slots(self.pointer, len(labels), size, self.labels.device)
        self.labels[slots] = labels.to(self.labels)
        self.indexes[slots] = images.to(self.indexes)
        self.pointer = (self.pointer + len(labels)) % size
        self.filled = min(self.filled + len(labels), size)

    def state(self) -> dict[str, Any]:
        return {
            "labels": self.labels.cpu(),
            "indexes": self.indexes.cpu(),
            "pointer": self.pointer,
            "filled": self.filled,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if len(state["labels"]) == len(self.labels) and state["pointer"] == self.pointer:
            self.labels = state["labels"].to(self.labels)
            self.indexes = state["indexes"].to(self.indexes)
            self.filled = state["filled"]


# The host's methods that can be recorded. Others have no negatives, or negatives that no hook sees
# (NNCLR, ReSSL).
_HOST_PROBES: dict[str, type[Probe]] = {
    "mocov2plus": QueueProbe,
    "simclr": BatchProbe,
    "supcon": SupConProbe,
    "mocov3": MoCoV3Probe,
    "byol": BYOLProbe,
}
SUPPORTED = ("mocov2_banded", "mocov2_sscl", "simclr_banded", "simclr_sscl", *_HOST_PROBES)


def make_probe(module: Any, method: str) -> Probe | None:
    """The probe of a method; ``None`` if its negatives can't be recorded."""
    if hasattr(module, "observers"):
        return ObserverProbe(module)
    probe = _HOST_PROBES.get(method)
    return None if probe is None else probe(module)
