"""The rows of a rank, and random mixing that doesn't depend on the rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from solo_hardneg.negatives import mix


def rows(rank: int, world: int, images: int, views: int = 2) -> Tensor:
    """A rank's rows of a batch that holds all first views, then all second views."""
    per_rank = images // world
    mine = rank * per_rank + torch.arange(per_rank)
    return torch.cat([mine + view * images for view in range(views)])


@contextmanager
def draws_by_identity(identity: Tensor) -> Iterator[None]:
    """Makes ``mix`` draw for each query what belongs to its identity, on whatever rank it is."""

    def uniform(kinds: int, width: int, available: Tensor) -> Tensor:
        asking = identity[: len(available)]  # a policy is tried on a single query, too
        generator = torch.Generator().manual_seed(width)
        return torch.rand(64, kinds, width, generator=generator)[asking].transpose(0, 1)

    def pairs(available: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second, alpha = uniform(3, drawn.shape[2], available)
        count = available[:, None]
        a = (first * count).long()
        return a, (a + 1 + (second * (count - 1)).long()) % count, alpha

    def partners(available: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        first, gamma = uniform(2, drawn.shape[2], available)
        return (first * available[:, None]).long(), gamma / 2

    with (
        mock.patch.object(mix, "draw_pairs", pairs),
        mock.patch.object(mix, "draw_partners", partners),
    ):
        yield
