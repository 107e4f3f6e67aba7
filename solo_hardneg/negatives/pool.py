"""The pool: the negatives of each query, and what is known about them.

A verb maps a pool to a pool. It doesn't depend on where the negatives come from, a queue or the
batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from solo_hardneg.errors import ConfigError

_PER_QUERY = (
    "similarity",
    "present",
    "reserve",
    "query_labels",
    "query_indexes",
    "query",
    "log_weight",
    "dropped",
    "positive",
    "threshold",
    "offered",
)


@dataclass(frozen=True)
class Pool:
    """N queries and M candidates.

    Attributes:
        similarity: (N, M) float, q·n in [-1, 1], the difficulty; differentiable.
        present: (N, M) bool, which candidates are negatives of each query.
        count: Number of negatives of every query; ``None`` if it differs between queries, or only
            the device has it.
        reserve: (N, M) bool, older keys that aren't negatives but may replace dropped ones;
            ``None`` without a reserve.
        query_labels: (N,) int, classes of the queries; -1 where unknown.
        labels: (M,) int, classes of the candidates; -1 where unknown.
        query_indexes: (N,) int, dataset indexes of the queries.
        indexes: (M,) int, dataset indexes of the candidates.
        age: (M,) int, 0 for the newest key of the queue; ``None`` without a queue.
        query: (N, D) unit vectors; needed by ``mix``.
        vectors: (M, D) unit vectors of the candidates, without the synthetic ones, which are the
            last columns of ``similarity``; needed by ``mix``.
        log_weight: (N, M) float, unnormalised log wᵢⱼ, added to the weights of ``beta``; ``None``
            for 0.
        beta: β of the weights wᵢⱼ ∝ exp(β·sᵢⱼ/τ) over the negatives present.
        tau_plus: τ⁺, the probability that a negative is of the query's class.
        hard_share: (M,) share of the queries for which each candidate is among the hardest;
            ``None`` if no verb asks.
        dropped: (N,) int, number of negatives dropped so far; ``None`` for none.
        positive: (N,) similarity of each query to its positive, or the mean over several; ``None``
            if not given.
        threshold: (N,) learned threshold of each query's image; ``None`` if not given.
        offered: (N, M) bool, the negatives before any verb; ``None`` if not recorded.
        made: Number of synthetic candidates, the last columns.
        notes: (N,) values to log, by name.
    """

    similarity: Tensor
    present: Tensor
    count: int | None = None
    reserve: Tensor | None = None
    query_labels: Tensor | None = None
    labels: Tensor | None = None
    query_indexes: Tensor | None = None
    indexes: Tensor | None = None
    age: Tensor | None = None
    query: Tensor | None = None
    vectors: Tensor | None = None
    log_weight: Tensor | None = None
    beta: float = 0.0
    tau_plus: float = 0.0
    hard_share: Tensor | None = None
    dropped: Tensor | None = None
    positive: Tensor | None = None
    threshold: Tensor | None = None
    offered: Tensor | None = None
    made: int = 0
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def counts(self) -> Tensor:
        """(N,) int, number of negatives of each query."""
        return self.present.sum(dim=1)

    def rows(self, which: slice | Tensor) -> Pool:
        """Returns the pool of some queries: a slice, or their (n,) places."""
        known: dict[str, Any] = {name: getattr(self, name) for name in _PER_QUERY}
        return replace(
            self,
            **{name: value[which] for name, value in known.items() if value is not None},
            notes={name: values[which] for name, values in self.notes.items()},
        )

    def without(self, mask: Tensor, count: int | None = None) -> Pool:
        """Drops candidates, also from the reserve.

        Args:
            mask: (N, M) bool, candidates to drop.
            count: Number of negatives left to every query, if it is one number and known.
        """
        lost = (self.present & mask).sum(dim=1)
        return replace(
            self,
            present=self.present & ~mask,
            reserve=None if self.reserve is None else self.reserve & ~mask,
            count=count,
            dropped=lost if self.dropped is None else self.dropped + lost,
        )

    def only(self, mask: Tensor, count: int | None = None) -> Pool:
        """Drops all candidates but those in ``mask``; see :meth:`without`."""
        return self.without(~mask, count)

    def offer(self) -> Pool:
        """Records the negatives present now as those before any verb."""
        return replace(self, offered=self.present, dropped=None)

    def plus(self, similarity: Tensor, present: Tensor, count: int | None = None) -> Pool:
        """Adds k synthetic candidates per query, of no class and no image, and of age 0.

        Args:
            similarity: (N, k) similarities to the query.
            present: (N, k) bool, which of them are negatives.
            count: Number of negatives of every query then, if it is one number and known.
        """
        extra = similarity.shape[1]

        def padded(known: Tensor | None, value: float) -> Tensor | None:
            return None if known is None else pad(known, (0, extra), value=value)

        return replace(
            self,
            similarity=torch.cat([self.similarity, similarity], dim=1),
            present=torch.cat([self.present, present], dim=1),
            count=count,
            reserve=padded(self.reserve, False),
            offered=padded(self.offered, False),
            made=self.made + extra,
            labels=padded(self.labels, -1),
            indexes=padded(self.indexes, -1),
            age=padded(self.age, 0),
            log_weight=padded(self.log_weight, 0.0),
        )

    def note(self, **values: Tensor) -> Pool:
        """Adds (N,) values to log."""
        return replace(self, notes={**self.notes, **values})

    def same_class(self) -> Tensor:
        """(N, M) bool, candidates of the query's class; an unknown class equals no other.

        Raises:
            ConfigError: The pool has no labels.
        """
        query, other = self._pair("labels", "the classes of query and negatives")
        return (query[:, None] == other[None, :]) & (query[:, None] >= 0)

    def different_class(self) -> Tensor:
        """(N, M) bool, candidates of another class than the query's, both known.

        Raises:
            ConfigError: The pool has no labels.
        """
        query, other = self._pair("labels", "the classes of query and negatives")
        known = (query[:, None] >= 0) & (other[None, :] >= 0)
        return (query[:, None] != other[None, :]) & known

    def same_image(self) -> Tensor:
        """(N, M) bool, candidates that are views of the query's image.

        Raises:
            ConfigError: The pool has no indexes.
        """
        query, other = self._pair("indexes", "the dataset indexes of query and negatives")
        return (query[:, None] == other[None, :]) & (query[:, None] >= 0)

    def known_positive(self) -> Tensor:
        """(N,) similarity of each query to its positive, without gradient.

        Raises:
            ConfigError: The pool has none.
        """
        if self.positive is None:
            raise ConfigError(
                "This policy compares negatives with the positive (margin), and this pool has "
                "none. Give it positive=."
            )
        return self.positive.detach()

    def _pair(self, name: str, meaning: str) -> tuple[Tensor, Tensor]:
        query, other = getattr(self, f"query_{name}"), getattr(self, name)
        if query is None or other is None:
            raise ConfigError(
                f"This policy needs {meaning}. Pass query_{name}= (and for a queue, queue_{name}=) "
                "to the loss, or choose a policy that doesn't need them."
            )
        return query, other


def full_pool(similarity: Tensor, **known: Tensor | None) -> Pool:
    """Returns a pool in which every candidate is a negative of every query.

    Args:
        similarity: (N, M).
        known: Other attributes of :class:`Pool`.
    """
    present = torch.ones_like(similarity, dtype=torch.bool)
    return Pool(similarity, present, count=similarity.shape[1], **known)  # type: ignore[arg-type]
