"""Similarities to rank, and their ranking by plain sorting."""

from __future__ import annotations

import torch
from torch import Tensor


def ragged(rows: int = 5, width: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities with many ties, and 0 to 23 negatives per query."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(-3, 4, (rows, width), generator=generator) / 4
    present = torch.rand(rows, width, generator=generator) < 0.7
    present[1] = False
    return similarity, present


def hardest_last(similarity: Tensor, present: Tensor, row: int) -> list[int]:
    columns = [j for j in range(similarity.shape[1]) if present[row, j]]
    return sorted(columns, key=lambda j: (float(similarity[row, j]), j))
