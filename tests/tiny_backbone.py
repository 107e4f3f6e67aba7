"""A backbone that takes no time, for whole runs of the standalone host, and batches for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from solo_hardneg import standalone

FEATURES = 6


def build_tiny(*_: Any) -> tuple[nn.Module, int]:
    """In the place of ``build_backbone``: a linear map of 8 x 8 pixels with batch statistics."""
    layers = [nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, FEATURES)]
    return nn.Sequential(*layers, nn.BatchNorm1d(FEATURES)), FEATURES


def use_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backbone is the tiny one, and the host is the standalone one."""
    monkeypatch.setattr("solo_hardneg.standalone.base.build_backbone", build_tiny)
    monkeypatch.setattr("solo_hardneg.standalone.run.build_backbone", build_tiny)
    monkeypatch.setattr("solo_hardneg.host.METHODS", dict(standalone.METHODS))


def make_batch(size: int = 16, seed: int = 0) -> list[Any]:
    """A batch as the methods get it: indexes, two views of 8 x 8 pixels, labels."""
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(2)]
    return [torch.arange(size), views, torch.arange(size) % 10]
