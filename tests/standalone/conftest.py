"""Small configs, methods with a tiny backbone, and generated image folders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from PIL import Image
from tiny_backbone import use_tiny

from solo_hardneg import standalone
from solo_hardneg.standalone.config import parse_pretrain


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    small = [
        *("data=digits", "optimizer.batch_size=16", "optimizer.lr=0.1", "max_epochs=2"),
        *("scheduler.warmup_epochs=0", "accelerator=cpu"),
        *("+enable_progress_bar=false", "+enable_model_summary=false"),
    ]
    if name != "linear":
        small += ["method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4"]
        small += ["++limit_train_batches=3", "++limit_val_batches=2"]
    if name == "mocov2plus":
        small.append("method_kwargs.queue_size=64")
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        return compose(name, [*small, *overrides])


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """``config("simclr", "optimizer.lr=1", ...)`` composes a small config."""

    def make(name: str, *overrides: str) -> DictConfig:
        cfg = copy.deepcopy(composed(name, *overrides))
        if "checkpoint" in cfg:
            cfg.checkpoint.dir = f"{tmp_path}/runs"
        return cfg

    return make


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny(monkeypatch)


@pytest.fixture
def build(config: Callable[..., DictConfig], tiny: None) -> Callable[..., Any]:
    """``build("mocov2plus", ...)`` builds a seeded method that logs to ``model.logged``."""

    def make(name: str, *overrides: str) -> Any:
        cfg = parse_pretrain(config(name, *overrides))
        torch.manual_seed(0)
        model: Any = standalone.METHODS[name](cfg)
        model.logged = {}
        model.log = lambda key, value, **_: model.logged.update({key: value})
        model.log_dict = lambda values, **_: model.logged.update(values)
        return model

    return make


@pytest.fixture
def write_images() -> Callable[[Path, Mapping[str, int]], Path]:
    """``write_images(root, {"cat": 3, ...})`` writes three PNGs to ``root/cat``, and so on."""

    def write(root: Path, counts: Mapping[str, int]) -> Path:
        generator = np.random.default_rng(0)
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{name.replace('/', '_')}{i}.png")
        return root

    return write
