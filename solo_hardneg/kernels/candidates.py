"""The queries and candidates of one loss, before their similarities are computed.

A backend decides whether a pool holds all N×M similarities or those of a block of queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from solo_hardneg import devices
from solo_hardneg.distributed import gather, get_rank
from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives.pool import Pool, full_pool

ALL = slice(None)


@dataclass(frozen=True)
class Candidates(ABC):
    """N queries and M candidates.

    Attributes:
        query: (N, D) unit vectors of the queries.
        vectors: (M, D) unit vectors of the candidates.
        query_labels, labels: (N,) and (M,) int classes; -1 where unknown.
        query_indexes, indexes: (N,) and (M,) int dataset indexes.
        query_thresholds: (N,) learned thresholds of the queries' images.
    """

    query: Tensor
    vectors: Tensor
    query_labels: Tensor | None = None
    labels: Tensor | None = None
    query_indexes: Tensor | None = None
    indexes: Tensor | None = None
    query_thresholds: Tensor | None = None

    @abstractmethod
    def pool(self, similarity: Tensor, rows: slice = ALL) -> Pool:
        """Returns the pool of a block of queries, before any policy.

        Args:
            similarity: (n, M) similarities of these queries.
            rows: The block.
        """

    @property
    def positive_count(self) -> Tensor | float:
        """(N,) or one number of positives per query."""
        return 1.0

    def to(self, dtype: torch.dtype) -> Self:
        """Casts queries and candidates."""
        return replace(self, query=self.query.to(dtype), vectors=self.vectors.to(dtype))

    def whole_pool(self, positive: Tensor | None) -> Pool:
        """Returns the pool of all queries, vectors included.

        Args:
            positive: (N,) similarities of the positives; ``None`` if they are candidates.
        """
        pool = self.add_positive(self.pool(self.query @ self.vectors.T), positive)
        return replace(pool, query=self.query, vectors=self.vectors)

    def add_positive(self, pool: Pool, positive: Tensor | None, rows: slice = ALL) -> Pool:
        """Adds the similarities of the positives to the pool of a block of queries.

        Args:
            pool: The pool before any policy.
            positive: (N,) similarities of the positives; ``None`` if they are candidates.
            rows: The block.
        """
        return replace(pool, positive=None if positive is None else positive[rows])

    def joint_positive(
        self, similarity: Tensor, temperature: float, positive: Tensor | None
    ) -> Tensor:
        """Returns (N,) similarities of the positives.

        Several positives of a query are combined into τ·log Σ exp(s/τ).
        """
        if positive is None:
            raise ValueError("positive=None: these candidates contain no positives; pass them.")
        return positive

    def _unfiltered_pool(self, similarity: Tensor, rows: slice, age: Tensor | None = None) -> Pool:
        def of_block(known: Tensor | None) -> Tensor | None:
            return None if known is None else known[rows]

        return full_pool(
            similarity,
            query_labels=of_block(self.query_labels),
            labels=self.labels,
            query_indexes=of_block(self.query_indexes),
            indexes=self.indexes,
            threshold=of_block(self.query_thresholds),
            age=age,
        )


@dataclass(frozen=True)
class QueueCandidates(Candidates):
    """MoCo's queue: all keys are negatives, except a reserve of older ones.

    Attributes:
        age: (M,) int, 0 for the newest key, counting up without gaps.
        queue_size: K, number of newest keys that are negatives; ``None`` for all.
    """

    age: Tensor | None = None
    queue_size: int | None = None

    @property
    def all_are_negatives(self) -> bool:
        """Whether the queue has no reserve."""
        return self.queue_size is None or self.queue_size >= len(self.vectors)

    def pool(self, similarity: Tensor, rows: slice = ALL) -> Pool:
        pool = self._unfiltered_pool(similarity, rows, self.age)
        if self.queue_size is None or self.all_are_negatives:
            return pool.offer()
        if self.age is None:
            raise ConfigError(
                f"queue_size={self.queue_size}: is less than the {len(self.vectors)} keys in the "
                "queue, and their ages are unknown. Pass queue_age= too."
            )
        older = (self.age >= self.queue_size)[None, :].expand_as(pool.present)
        present = pool.present & ~older
        return replace(pool, present=present, reserve=older, count=self.queue_size).offer()


@dataclass(frozen=True, kw_only=True)
class BatchCandidates(Candidates):
    """SimCLR's global batch: views of other images are negatives.

    Attributes:
        images: (N,) int, the image (or class) of each query.
        all_images: (M,) int, the image (or class) of each candidate.
        sizes: (N,) int, number of candidates of the query's image, itself included.
        count: Number of negatives per query; ``None`` if it varies, or if reading it would wait
            for the device.
    """

    images: Tensor
    all_images: Tensor
    sizes: Tensor
    count: int | None

    def same_image(self, rows: slice = ALL) -> Tensor:
        """Returns (n, M) bool, the candidates of each query's image, itself included."""
        return self.images[rows, None] == self.all_images[None, :]

    def partners(self, rows: slice = ALL) -> Tensor:
        """Returns (n, M) bool, the positives of each query."""
        partner = self.same_image(rows)
        partner.diagonal((rows.start or 0) + len(self.query) * get_rank()).fill_(False)
        return partner

    def own_columns(self) -> tuple[Tensor, Tensor]:
        """Returns the candidates of each query's image, if all images have v views.

        Returns:
            (N, v) int64, their columns in ascending order; and (N, v) bool, which of them is the
            query itself.
        """
        views = len(self.all_images) - (self.count or 0)
        order = self.all_images.argsort(stable=True)
        first = torch.searchsorted(self.all_images[order], self.images)
        columns = order[first[:, None] + torch.arange(views, device=order.device)]
        itself = torch.arange(len(self.query), device=order.device) + len(self.query) * get_rank()
        return columns, columns == itself[:, None]

    @property
    def positive_count(self) -> Tensor:
        """(N,) number of positives per query, at least 1, for a mean over them."""
        return (self.sizes - 1).clamp(min=1).to(self.query.dtype)

    def pool(self, similarity: Tensor, rows: slice = ALL) -> Pool:
        pool = self._unfiltered_pool(similarity, rows)
        return replace(pool, present=~self.same_image(rows), count=self.count).offer()

    def add_positive(self, pool: Pool, positive: Tensor | None, rows: slice = ALL) -> Pool:
        of_partners = pool.similarity.masked_fill(~self.partners(rows), 0.0)
        return replace(pool, positive=of_partners.sum(dim=1) / self.positive_count[rows])

    def joint_positive(
        self, similarity: Tensor, temperature: float, positive: Tensor | None
    ) -> Tensor:
        # As solo-learn's loss treats more than two views.
        scaled = (similarity / temperature).masked_fill(~self.partners(), -torch.inf)
        return torch.logsumexp(scaled, dim=1) * temperature


def batch_candidates(
    z: Tensor,
    images: Tensor,
    query_labels: Tensor | None,
    query_thresholds: Tensor | None = None,
) -> BatchCandidates:
    """Gathers the vectors of all ranks as candidates for the queries of this rank.

    Args:
        z: (N, D) unit vectors of this rank's views.
        images: (N,) int, the image of each view.
        query_labels: (N,) int classes; ``None`` if unknown.
        query_thresholds: (N,) learned thresholds of the images; ``None`` without.
    """
    known = [images] if query_labels is None else [images, query_labels.to(images)]
    all_images, *all_labels = gather(torch.stack(known, dim=1)).unbind(dim=1)
    ordered = all_images.sort().values
    first, past = (torch.searchsorted(ordered, images, right=right) for right in (False, True))
    sizes = past - first
    count: int | None = None
    # The sizes differ if a batch has an image twice.
    if devices.reads_are_free(sizes) and bool((sizes == sizes[0]).all()):
        count = len(all_images) - int(sizes[0])
    return BatchCandidates(
        query=z,
        vectors=gather(z),
        query_labels=query_labels,
        labels=all_labels[0] if all_labels else None,
        query_indexes=images,
        indexes=all_images,
        query_thresholds=query_thresholds,
        images=images,
        all_images=all_images,
        sizes=sizes,
        count=count,
    )
