"""What we do with Hydra leaves the Hydra of a caller's program or notebook as it was."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from solo_hardneg.analysis.analyze import read_settings
from solo_hardneg.reproduce import sweep
from solo_hardneg.reproduce.overrides import composed


@pytest.fixture
def outer() -> Iterator[None]:
    """A program that uses Hydra; at the end, it still can."""
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        hydra, handlers = GlobalHydra.instance().hydra, logging.getLogger().handlers[:]
        config, level = HydraConfig.instance().cfg, logging.getLogger().level
        yield
        assert GlobalHydra.instance().hydra is hydra
        assert HydraConfig.instance().cfg is config
        assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
        assert compose("simclr", ["data=digits"]).method == "simclr"


@pytest.mark.usefixtures("outer")
def test_configs_are_composed() -> None:
    assert composed("simclr", ["data=digits", "seed=7"]).seed == 7
    assert read_settings(["queries=7"]).queries == 7


@pytest.mark.usefixtures("outer")
def test_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(sweep, "run_cell", lambda plan, name: ran.append(name))
    typed = sys.argv
    sweep.sweep(tmp_path / "plans" / "plan.json", ["a", "b"], [])
    assert ran == ["a", "b"]
    assert sys.argv is typed
