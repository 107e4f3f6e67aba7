"""What is checked of a run's config before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import DictConfig

from solo_hardneg import host, plugin
from solo_hardneg.errors import ConfigError, DataError, HostError
from solo_hardneg.methods import settings
from solo_hardneg.standalone import run

Maker = Callable[..., DictConfig]


def folders(config: Maker, train: Path, val: Path | None = None) -> DictConfig:
    return config("data=custom", f"data.train_path={train}", f"data.val_path={val or 'null'}")


@pytest.fixture
def in_solo_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NAME", "solo")


@pytest.mark.usefixtures("in_solo_learn")
def test_folders_that_are_not_there(config: Maker, tmp_path: Path) -> None:
    settings.check_folders(folders(config, tmp_path))
    with pytest.raises(DataError, match=r"data.train_path=.*/none: is not there\. Point"):
        settings.check_folders(folders(config, tmp_path / "none"))
    with pytest.raises(DataError, match=r"data.val_path=.*/none: is not there"):
        settings.check_folders(folders(config, tmp_path, tmp_path / "none"))
    settings.check_folders(config("data=cifar10", "data.train_path=none"))  # it may be downloaded


@pytest.mark.usefixtures("in_solo_learn")
def test_a_layout_that_solo_learn_reads_as_one_class(config: Maker, tmp_path: Path) -> None:
    (tmp_path / "val_annotations.txt").touch()
    with pytest.raises(ConfigError, match=r"data.val_path=.*TinyImageNet's own layout"):
        settings.check_folders(folders(config, tmp_path.parent, tmp_path))


def test_the_standalone_host_reads_that_layout(config: Maker, tmp_path: Path) -> None:
    (tmp_path / "val_annotations.txt").touch()
    settings.check_folders(folders(config, tmp_path.parent, tmp_path))


def test_a_baseline_refuses_negatives_that_it_would_not_read(config: Maker) -> None:
    with pytest.raises(ConfigError, match=r"negatives=.*method=mocov2plus reads none"):
        run.pretrain(config("method=mocov2plus", "~method_kwargs.symmetric"))


def test_solo_learns_programs_refuse_the_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.register()
    monkeypatch.setitem(sys.modules, "solo.methods", ModuleType("solo.methods"))
    with pytest.raises(HostError, match=r"SOLO_HARDNEG_HOST=standalone: .*solo-hardneg pretrain"):
        plugin.register()


def test_no_negatives_and_none_at_all(config: Maker) -> None:
    default = {"keep": {"band": [0.5, 1.0]}}
    assert settings.read_policy(config("~negatives"), default).config == default
    cfg = config()
    cfg.negatives = None  # "negatives: null" in a config: the user wants all of them
    assert settings.read_policy(cfg, default).config == {}
