"""Composing configs and launching cells restore the Hydra state of the caller's program."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from solo_hardneg.reproduce import launch
from solo_hardneg.reproduce.overrides import compose_config
from solo_hardneg.study.analyze import read_analyze_config


@pytest.fixture
def outer() -> Iterator[None]:
    """A program that uses Hydra, and can still use it at the end."""
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        hydra, handlers = GlobalHydra.instance().hydra, logging.getLogger().handlers[:]
        config, level = HydraConfig.instance().cfg, logging.getLogger().level
        yield
        assert GlobalHydra.instance().hydra is hydra
        assert HydraConfig.instance().cfg is config
        assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
        assert compose("simclr", ["data=digits"]).method == "simclr"


@pytest.mark.usefixtures("outer")
def test_composing_configs() -> None:
    assert compose_config("simclr", ["data=digits", "seed=7"]).seed == 7
    assert read_analyze_config(["queries=7"]).queries == 7


@pytest.mark.usefixtures("outer")
def test_launching_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(launch, "launch_cell", lambda plan, name: ran.append(name))
    argv = sys.argv
    launch.launch_cells(tmp_path / "plans" / "plan.json", ["a", "b"], [])
    assert ran == ["a", "b"]
    assert sys.argv is argv
    assert not logging.getLogger("solo_hardneg.kernels.dispatch").disabled
