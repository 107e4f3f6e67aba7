"""The queries of one loss and the candidates among which their negatives are.

A pool of all of them holds N×M numbers; one of a block of queries, fewer. Which of the two is made
is the backend's business, so what is known of queries and candidates is kept apart from their
similarities here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from solo_hardneg import sync
from solo_hardneg.distributed import gather, get_rank
from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives.pool import Pool, full_pool

ALL = slice(None)


@dataclass(frozen=True)
class Candidates(ABC):
    """N queries and M candidates.

    Attributes:
        query: (N, D), and
        vectors: (M, D) unit vectors.
        query_labels, labels: (N,) and (M,) int, classes; -1 where unknown.
        query_indexes, indexes: (N,) and (M,) int, places in the dataset.
    """

    query: Tensor
    vectors: Tensor
    query_labels: Tensor | None = None
    labels: Tensor | None = None
    query_indexes: Tensor | None = None
    indexes: Tensor | None = None

    @abstractmethod
    def pool(self, similarity: Tensor, rows: slice = ALL) -> Pool:
        """The pool of some queries (n,), from their similarities (n, M), before any policy."""

    @property
    def positives(self) -> Tensor | float:
        """(N,) or one number, how many positives each query has."""
        return 1.0

    def to(self, dtype: torch.dtype) -> Self:
        """The same vectors in another type."""
        return replace(self, query=self.query.to(dtype), vectors=self.vectors.to(dtype))

    def whole_pool(self, positive: Tensor | None) -> Pool:
        """The pool of all queries, with the vectors in it; ``positive`` (N,) if it is known."""
        pool = self.pool(self.query @ self.vectors.T)
        return replace(pool, query=self.query, vectors=self.vectors, positive=positive)

    def together(self, similarity: Tensor, temperature: float, positive: Tensor | None) -> Tensor:
        """(N,) the similarity of the positive; several of a query count together."""
        if positive is None:
            raise ValueError("positive=None: no positives are among these candidates; pass them.")
        return positive

    def _full(self, similarity: Tensor, rows: slice, age: Tensor | None = None) -> Pool:
        def some(known: Tensor | None) -> Tensor | None:
            return None if known is None else known[rows]

        return full_pool(
            similarity,
            query_labels=some(self.query_labels),
            labels=self.labels,
            query_indexes=some(self.query_indexes),
            indexes=self.indexes,
            age=age,
        )


@dataclass(frozen=True)
class QueueCandidates(Candidates):
    """MoCo's: all candidates are negatives, but for a reserve of older ones.

    Attributes:
        age: (M,) int, 0 for the newest key, counting up without gaps.
        queue_size: K, how many of the newest keys are negatives; ``None`` for all.
    """

    age: Tensor | None = None
    queue_size: int | None = None

    @property
    def all_are_negatives(self) -> bool:
        """Whether every key is a negative of every query, before any policy."""
        return self.queue_size is None or self.queue_size >= len(self.vectors)

    def pool(self, similarity: Tensor, rows: slice = ALL) -> Pool:
        pool = self._full(similarity, rows, self.age)
        if self.queue_size is None or self.all_are_negatives:
            return pool.offer()
        if self.age is None:
            raise ConfigError(
                f"queue_size={self.queue_size}: is less than the {len(self.vectors)} keys in the "
                "queue, and which of them are the newest is not known. Pass queue_age= too."
            )
        older = (self.age >= self.queue_size)[None, :].expand_as(pool.present)
        present = pool.present & ~older
        return replace(pool, present=present, reserve=older, count=self.queue_size).offer()


@dataclass(frozen=True, kw_only=True)
class BatchCandidates(Candidates):
    """SimCLR's: the candidates are the global batch, the negatives those of other images.

    Attributes:
        images: (N,) and
        all_images: (M,) int, which image (or class) each query and each candidate is of.
        sizes: (N,) int, how many candidates are of the query's, itself included.
        count: how many negatives each query has, where that is one number and known without
            waiting for the device.
    """

    images: Tensor
    all_images: Tensor
    sizes: Tensor
    count: int | None

    def same(self, rows: slice = ALL) -> Tensor:
        """(n, M) bool, which candidates are of the query's image, itself included."""
        return self.images[rows, None] == self.all_images[None, :]

    def partners(self, rows: slice = ALL) -> Tensor:
        """(n, M) bool, which candidates are the query's positives."""
        partner = self.same(rows)
        partner.diagonal((rows.start or 0) + len(self.query) * get_rank()).fill_(False)
        return partner

    def own(self) -> tuple[Tensor, Tensor]:
        """The candidates of each query's image, where all images come equally often.

        Returns:
            (N, v) int, their columns in ascending order; and (N, v) bool, where the query is.
        """
        views = len(self.all_images) - (self.count or 0)
        order = self.all_images.argsort(stable=True)
        first = torch.searchsorted(self.all_images[order], self.images)
        columns = order[first[:, None] + torch.arange(views, device=order.device)]
        itself = torch.arange(len(self.query), device=order.device) + len(self.query) * get_rank()
        return columns, columns == itself[:, None]

    @property
    def positives(self) -> Tensor:
        """(N,) how many positives each query has; at least 1, by which to divide."""
        return (self.sizes - 1).clamp(min=1).to(self.query.dtype)

    def pool(self, similarity: Tensor, rows: slice = ALL) -> Pool:
        pool = self._full(similarity, rows)
        return replace(pool, present=~self.same(rows), count=self.count).offer()

    def whole_pool(self, positive: Tensor | None) -> Pool:
        pool = super().whole_pool(positive)
        of_partners = pool.similarity.masked_fill(~self.partners(), 0.0)
        return replace(pool, positive=of_partners.sum(dim=1) / self.positives)

    def together(self, similarity: Tensor, temperature: float, positive: Tensor | None) -> Tensor:
        # More than two views: as in the host.
        scaled = (similarity / temperature).masked_fill(~self.partners(), -torch.inf)
        return torch.logsumexp(scaled, dim=1) * temperature


def batch_candidates(z: Tensor, images: Tensor, query_labels: Tensor | None) -> BatchCandidates:
    """All ranks' vectors as candidates of this rank's, (N, D) unit vectors."""
    known = [images] if query_labels is None else [images, query_labels.to(images)]
    all_images, *all_labels = gather(torch.stack(known, dim=1)).unbind(dim=1)
    ordered = all_images.sort().values
    # The places before and behind all candidates of an image.
    before, behind = (torch.searchsorted(ordered, images, right=right) for right in (False, True))
    sizes = behind - before
    count: int | None = None
    if sync.is_free(sizes) and bool((sizes == sizes[0]).all()):  # not so where an image came twice
        count = len(all_images) - int(sizes[0])
    return BatchCandidates(
        query=z,
        vectors=gather(z),
        query_labels=query_labels,
        labels=all_labels[0] if all_labels else None,
        query_indexes=images,
        indexes=all_images,
        images=images,
        all_images=all_images,
        sizes=sizes,
        count=count,
    )
