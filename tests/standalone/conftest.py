"""Small configs, a backbone that takes no time, and made-up image folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from PIL import Image
from torch import nn

from solo_hardneg import standalone

FEATURES = 6


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """``config("simclr", "optimizer.lr=1", ...)`` composes a config at the size of these tests."""

    def make(name: str, *overrides: str) -> DictConfig:
        small = [
            "data=digits",
            "optimizer.batch_size=16",
            "optimizer.lr=0.1",
            "max_epochs=2",
            "scheduler.warmup_epochs=0",
            "accelerator=cpu",
            f"checkpoint.dir={tmp_path}/runs",
            "+enable_progress_bar=false",
            "+enable_model_summary=false",
        ]
        if name != "linear":
            small += ["method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4"]
            small += ["++limit_train_batches=3", "++limit_val_batches=2"]
        if name == "mocov2plus":
            small.append("method_kwargs.queue_size=64")
        with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            return compose(name, [*small, *overrides])

    return make


def build_tiny(*_: Any) -> tuple[nn.Module, int]:
    """In the place of ``build_backbone``: a linear map of 8 x 8 pixels with batch statistics."""
    layers = [nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, FEATURES)]
    return nn.Sequential(*layers, nn.BatchNorm1d(FEATURES)), FEATURES


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backbone is the tiny one, and the host is the standalone one."""
    monkeypatch.setattr("solo_hardneg.standalone.base.build_backbone", build_tiny)
    monkeypatch.setattr("solo_hardneg.standalone.run.build_backbone", build_tiny)
    monkeypatch.setattr("solo_hardneg.host.METHODS", dict(standalone.METHODS))


@pytest.fixture
def write_images() -> Callable[[Path, Mapping[str, int]], Path]:
    """``write_images(root, {"cat": 3, ...})`` writes so many small PNGs into each folder."""

    def write(root: Path, counts: Mapping[str, int]) -> Path:
        generator = np.random.default_rng(0)
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{name.replace('/', '_')}{i}.png")
        return root

    return write
