"""The pool: the negatives of each query, and what is known of them.

Everything in this package maps a pool to a pool. A policy never sees where the negatives come
from (a queue, or the other images of the batch), only the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from solo_hardneg.errors import ConfigError

# The fields with a row for each query, beside the similarities and which candidates are present.
_OF_QUERIES = (
    *("reserve", "query_labels", "query_indexes", "query", "log_weight", "dropped"),
    *("positive", "offered"),
)


@dataclass(frozen=True)
class Pool:
    """N queries and M columns of candidates.

    Attributes:
        similarity: (N, M) float, q·n in [-1, 1], the difficulty; gradient flows through it.
        present: (N, M) bool, which candidates are negatives of which query.
        count: how many negatives each query has where that is the same number for all of them and
            known without asking the device; otherwise ``None``.
        reserve: (N, M) bool, older keys that are no negatives but may take a dropped one's place;
            ``None`` where there are none.
        query_labels: (N,) int, the queries' classes; -1 where unknown.
        labels: (M,) int, the candidates' classes; -1 where unknown.
        query_indexes: (N,) int, the queries' places in the dataset.
        indexes: (M,) int, the candidates' places in the dataset.
        age: (M,) int, 0 for the newest key of the queue; ``None`` where there is no queue.
        query: (N, D) unit vectors, and
        vectors: (M, D) unit vectors of the candidates, for policies that make new ones. Synthetic
            candidates have columns in ``similarity`` behind these M, and no vector here.
        log_weight: (N, M) float, unnormalised log wᵢⱼ that a policy adds to those of ``beta``;
            ``None`` for 0 everywhere.
        beta: β, the hardness of the weights wᵢⱼ ∝ exp(β·sᵢⱼ/τ) over the negatives present.
        tau_plus: τ⁺, the probability that a negative is of the query's class.
        hard_share: (M,) float, of how many of the queries each candidate is among the hardest;
            ``None`` where no policy asks.
        dropped: (N,) int, how many each query has lost so far; ``None`` for none.
        positive: (N,) the similarity of each query to its positive, where the loss says so; the
            mean over several positives.
        offered: (N, M) bool, which candidates were negatives before any policy; ``None`` where
            nobody took that down.
        made: how many of the last columns are synthetic.
        notes: (N,) values worth logging, by name.
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
    offered: Tensor | None = None
    made: int = 0
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def counts(self) -> Tensor:
        """(N,) int, how many negatives each query has."""
        return self.present.sum(dim=1)

    def rows(self, which: slice | Tensor) -> Pool:
        """The pool of some of the queries: a slice, or (n,) their numbers."""

        def some(known: Tensor | None) -> Tensor | None:
            return None if known is None else known[which]

        of_queries: dict[str, Any] = {name: some(getattr(self, name)) for name in _OF_QUERIES}
        return replace(
            self,
            similarity=self.similarity[which],
            present=self.present[which],
            **of_queries,
            notes={name: values[which] for name, values in self.notes.items()},
        )

    def without(self, mask: Tensor, count: int | None = None) -> Pool:
        """Takes the candidates in ``mask`` (N, M) away, from the reserve too.

        ``count`` is how many negatives each query has left, where the caller knows it.
        """
        lost = (self.present & mask).sum(dim=1)
        return replace(
            self,
            present=self.present & ~mask,
            reserve=None if self.reserve is None else self.reserve & ~mask,
            count=count,
            dropped=lost if self.dropped is None else self.dropped + lost,
        )

    def offer(self) -> Pool:
        """Takes down that the negatives of now are those before any policy."""
        return replace(self, offered=self.present, dropped=None)

    def only(self, mask: Tensor, count: int | None = None) -> Pool:
        """Takes away everything but the candidates in ``mask`` (N, M)."""
        return self.without(~mask, count)

    def plus(self, similarity: Tensor, present: Tensor, count: int | None = None) -> Pool:
        """Adds k synthetic candidates for each query, with their similarity and presence (N, k).

        They are of no class and of no image, and as new as can be.
        """
        extra = similarity.shape[1]

        def longer(known: Tensor | None, value: float) -> Tensor | None:
            return None if known is None else pad(known, (0, extra), value=value)

        return replace(
            self,
            similarity=torch.cat([self.similarity, similarity], dim=1),
            present=torch.cat([self.present, present], dim=1),
            count=count,
            reserve=longer(self.reserve, False),
            offered=longer(self.offered, False),
            made=self.made + extra,
            labels=longer(self.labels, -1),
            indexes=longer(self.indexes, -1),
            age=longer(self.age, 0),
            log_weight=longer(self.log_weight, 0.0),
        )

    def note(self, **values: Tensor) -> Pool:
        """Adds values (N,) worth logging."""
        return replace(self, notes={**self.notes, **values})

    def same_class(self) -> Tensor:
        """(N, M) bool, which candidates are of the query's class; unknown classes match nothing."""
        query, other = self._both("labels", "the classes of query and negatives")
        return (query[:, None] == other[None, :]) & (query[:, None] >= 0)

    def different_class(self) -> Tensor:
        """(N, M) bool, which candidates are of another class; an unknown class is none."""
        query, other = self._both("labels", "the classes of query and negatives")
        known = (query[:, None] >= 0) & (other[None, :] >= 0)
        return (query[:, None] != other[None, :]) & known

    def same_image(self) -> Tensor:
        """(N, M) bool, which candidates come from the query's own image."""
        query, other = self._both("indexes", "the dataset indexes of query and negatives")
        return (query[:, None] == other[None, :]) & (query[:, None] >= 0)

    def _both(self, what: str, meaning: str) -> tuple[Tensor, Tensor]:
        query, other = getattr(self, f"query_{what}"), getattr(self, what)
        if query is None or other is None:
            raise ConfigError(
                f"This policy needs {meaning}. Pass query_{what}= (and of a queue, queue_{what}=) "
                "to the loss, or choose a policy that does without."
            )
        return query, other


def full_pool(similarity: Tensor, **known: Tensor | None) -> Pool:
    """A pool in which every candidate is a negative of every query."""
    present = torch.ones_like(similarity, dtype=torch.bool)
    return Pool(similarity, present, count=similarity.shape[1], **known)  # type: ignore[arg-type]
