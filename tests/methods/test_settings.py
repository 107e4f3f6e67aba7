"""Checks of a run's config before anything is built, and before the first step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from omegaconf import DictConfig

from solo_hardneg import host, plugin
from solo_hardneg.errors import ConfigError, DataError, HostError
from solo_hardneg.methods import OUR_METHODS, MoCoV2Banded, settings
from solo_hardneg.negatives import build
from solo_hardneg.standalone import run

Maker = Callable[..., DictConfig]


def folders(config: Maker, train: Path, val: Path | None = None) -> DictConfig:
    return config("data=custom", f"data.train_path={train}", f"data.val_path={val or 'null'}")


def check_in_solo_learn(cfg: DictConfig) -> None:
    """Checks as in solo-learn; patched late, because composing the config registers the host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "NAME", "solo")
        settings.check_folders(cfg)


def test_missing_folders_are_refused(config: Maker, tmp_path: Path) -> None:
    check_in_solo_learn(folders(config, tmp_path))
    with pytest.raises(DataError, match=r"data.train_path=.*/none: does not exist\. Point"):
        check_in_solo_learn(folders(config, tmp_path / "none"))
    with pytest.raises(DataError, match=r"data.val_path=.*/none: does not exist"):
        check_in_solo_learn(folders(config, tmp_path, tmp_path / "none"))
    cfg = folders(config, tmp_path, tmp_path / "none")
    cfg.data.train_path = None
    with pytest.raises(DataError, match=r"data.val_path=.*/none: does not exist"):
        check_in_solo_learn(cfg)
    check_in_solo_learn(config("data=cifar10", "data.train_path=none"))  # it may be downloaded


def test_tinyimagenets_own_layout_is_refused_in_solo_learn(config: Maker, tmp_path: Path) -> None:
    (tmp_path / "val_annotations.txt").touch()
    with pytest.raises(ConfigError, match=r"data.val_path=.*TinyImageNet's own layout"):
        check_in_solo_learn(folders(config, tmp_path.parent, tmp_path))


def test_tinyimagenets_own_layout_is_accepted_in_standalone(config: Maker, tmp_path: Path) -> None:
    (tmp_path / "val_annotations.txt").touch()
    settings.check_folders(folders(config, tmp_path.parent, tmp_path))


def test_baseline_refuses_negatives(config: Maker) -> None:
    with pytest.raises(ConfigError, match=r"negatives=.*method=mocov2plus reads none"):
        run.pretrain(config("method=mocov2plus", "~method_kwargs.symmetric"))


def test_standalone_host_is_refused_in_solo_learns_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin.register()
    monkeypatch.setitem(sys.modules, "solo.methods", ModuleType("solo.methods"))
    with pytest.raises(HostError, match=r"SOLO_HARDNEG_HOST=standalone: .*solo-hardneg pretrain"):
        plugin.register()


def test_absent_negatives_use_the_default_and_null_uses_all(config: Maker) -> None:
    default = {"keep": {"band": [0.5, 1.0]}}
    assert settings.read_policy(config("~negatives"), default).config == default
    cfg = config()
    cfg.negatives = None  # "negatives: null" in a config: all negatives
    assert settings.read_policy(cfg, default).config == {}


@pytest.mark.parametrize(
    ("name", "refused"),
    [("negatiz", True), ("negatizz", False), ("hardness", False)],
)
def test_misspelled_key_is_refused(config: Maker, name: str, refused: bool) -> None:
    cfg = config()
    cfg[name] = {}
    if not refused:
        settings.read_policy(cfg, {})
        return
    with pytest.raises(ConfigError, match=f"{name}: nothing reads .* Did you mean 'negatives'"):
        settings.read_policy(cfg, {})


def test_policy_needs_that_the_data_meet(config: Maker) -> None:
    labels, indexes = {"drop": {"label": "same"}}, {"drop": {"image": "same"}}
    for overrides, negatives in (
        (["+data.no_labels=false"], labels),
        (["+data.no_labels=true"], indexes),
        (["data.format=dali", "dali.encode_indexes_into_labels=false"], labels),
        (["data.format=h5"], indexes),
        (["~data.format"], indexes),
        (["data.format=dali"], indexes),
    ):
        policy = settings.read_policy(config(*overrides, negatives=negatives), {})
        assert policy.config == negatives


def test_our_keys_are_checked_even_if_the_host_accepts_them(
    config: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """solo-learn accepts any temperature and any folder."""
    unchecked = staticmethod(lambda cfg: cfg)
    for method in (host.SimCLR, host.MoCoV2Plus):
        monkeypatch.setattr(method, "add_and_assert_specific_cfg", unchecked)
    checked: list[DictConfig] = []
    monkeypatch.setattr(settings, "check_folders", checked.append)
    for name, method in OUR_METHODS.items():
        cfg = config(method=name, negatives={})
        assert method.add_and_assert_specific_cfg(cfg) is cfg
        assert checked.pop() is cfg
        cfg.method_kwargs.temperature = 0.0
        with pytest.raises(ConfigError, match=r"^method_kwargs.temperature=0.0: must be above 0"):
            method.add_and_assert_specific_cfg(cfg)


# ---------------------------------------------------------------- MoCo


@pytest.mark.parametrize(
    ("large", "small", "views"), [(2, 1, 3), (1, 0, 1), (1, 1, 2), (None, None, 2), (3, None, 3)]
)
def test_moco_needs_two_views(
    config: Maker, large: int | None, small: int | None, views: int
) -> None:
    cfg = config()
    for name, value in (("num_large_crops", large), ("num_small_crops", small)):
        del cfg.data[name]
        if value is not None:
            cfg.data[name] = value
    if views == 2:
        MoCoV2Banded.check_family(cfg, build({}))
        return
    with pytest.raises(ConfigError, match=rf"^augmentations={views} views: MoCo takes exactly two"):
        MoCoV2Banded.check_family(cfg, build({}))


def test_momentum_classifier_needs_the_symmetric_loss(config: Maker) -> None:
    cfg = config("+momentum.classifier=true", "method_kwargs.symmetric=true")
    MoCoV2Banded.check_family(cfg, build({}))
    cfg.method_kwargs.symmetric = False
    text = "momentum.classifier=True: needs method_kwargs.symmetric=true.*Change one of the two"
    with pytest.raises(ConfigError, match=text):
        MoCoV2Banded.check_family(cfg, build({}))
    cfg.momentum.classifier = False
    MoCoV2Banded.check_family(cfg, build({}))


# ---------------------------------------------------------------- with a trainer


def test_too_few_images_are_refused(model: Maker) -> None:
    ours = model(negatives={})
    text = "optimizer.batch_size=4: there are fewer images .*data.train_path=builtin. Lower optim"
    for steps, batches in ((0, 3), (3, 0)):
        ours.trainer = SimpleNamespace(
            estimated_stepping_batches=steps, num_training_batches=batches
        )
        with pytest.raises(DataError, match=text):
            ours.configure_optimizers()
    ours.trainer = SimpleNamespace(estimated_stepping_batches=1, num_training_batches=1)
    assert ours.configure_optimizers()


def test_queue_must_hold_whole_global_batches(
    model: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent of the host: solo-learn's own check has no message."""
    monkeypatch.setattr(host.MoCoV2Plus, "setup", lambda self, stage: None)
    moco = model()
    for world_size in (1, 3):
        moco.trainer = SimpleNamespace(world_size=world_size)
        moco.setup("fit")
    moco.trainer = SimpleNamespace(world_size=2)
    moco.setup("validate")
    with pytest.raises(ConfigError, match=r"queue_size=12: .* global batch of 8 images"):
        moco.setup("fit")
