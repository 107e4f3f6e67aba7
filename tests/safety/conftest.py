"""Small runs of the standalone host in this process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from integration_helpers import CLASSES, PER_CLASS, Images, write_images
from omegaconf import DictConfig
from safety_runs import Watch, small
from torch import nn

from solo_hardneg import plugin, standalone
from solo_hardneg.safety.signals import SIGNALS


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watch]:
    """``watched(...)`` adds a :class:`Watch` to all trainers from now on."""
    callbacks = plugin.callbacks

    def make(*arguments: Any, **more: Any) -> Watch:
        watch = Watch(*arguments, **more)
        monkeypatch.setattr(plugin, "callbacks", lambda: [*callbacks(), watch])
        return watch

    return make


def build_tiny(*_: Any) -> tuple[nn.Module, int]:
    layers = [nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6)]
    return nn.Sequential(*layers), 6


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uses a tiny backbone and the signal handlers of a program in a terminal."""
    monkeypatch.setattr("solo_hardneg.standalone.base.build_backbone", build_tiny)
    monkeypatch.setattr("solo_hardneg.standalone.run.build_backbone", build_tiny)
    monkeypatch.setattr("solo_hardneg.host.METHODS", dict(standalone.METHODS))
    # A shell ignores SIGINT for tests in the background.
    background = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before
    signal.signal(signal.SIGINT, background)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """``config("simclr", "optimizer.lr=1", ...)`` composes the config of a small run."""

    def make(name: str, *overrides: str) -> DictConfig:
        with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
            return compose(name, [*small(name, tmp_path / "runs"), *overrides])

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    train = write_images(folder / "train", PER_CLASS, CLASSES)
    return Images(train, write_images(folder / "val", 1, CLASSES), train)
