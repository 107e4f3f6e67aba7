"""What is checked of a run's config before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from solo_hardneg import host, plugin
from solo_hardneg.errors import ConfigError, DataError, HostError
from solo_hardneg.methods import OUR_METHODS, MoCoV2Banded, contrastive, settings
from solo_hardneg.negatives import build
from solo_hardneg.standalone import run

Maker = Callable[..., DictConfig]


def folders(config: Maker, train: Path, val: Path | None = None) -> DictConfig:
    return config("data=custom", f"data.train_path={train}", f"data.val_path={val or 'null'}")


def check_in_solo_learn(cfg: DictConfig) -> None:
    """The check that solo-learn's runs get; the host is named late, as composing registers it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "NAME", "solo")
        settings.check_folders(cfg)


def test_folders_that_are_not_there(config: Maker, tmp_path: Path) -> None:
    check_in_solo_learn(folders(config, tmp_path))
    with pytest.raises(DataError, match=r"data.train_path=.*/none: is not there\. Point"):
        check_in_solo_learn(folders(config, tmp_path / "none"))
    with pytest.raises(DataError, match=r"data.val_path=.*/none: is not there"):
        check_in_solo_learn(folders(config, tmp_path, tmp_path / "none"))
    cfg = folders(config, tmp_path, tmp_path / "none")
    cfg.data.train_path = None
    with pytest.raises(DataError, match=r"data.val_path=.*/none: is not there"):
        check_in_solo_learn(cfg)
    check_in_solo_learn(config("data=cifar10", "data.train_path=none"))  # it may be downloaded


def test_a_layout_that_solo_learn_reads_as_one_class(config: Maker, tmp_path: Path) -> None:
    (tmp_path / "val_annotations.txt").touch()
    with pytest.raises(ConfigError, match=r"data.val_path=.*TinyImageNet's own layout"):
        check_in_solo_learn(folders(config, tmp_path.parent, tmp_path))


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


@pytest.mark.parametrize(
    ("name", "refused"),
    [("negatiz", True), ("negatizz", False), ("hardness", False)],
)
def test_a_key_that_nobody_reads(config: Maker, name: str, refused: bool) -> None:
    cfg = config()
    cfg[name] = {}
    if not refused:
        settings.read_policy(cfg, {})
        return
    with pytest.raises(ConfigError, match=f"{name}: is not read .* Did you mean 'negatives'"):
        settings.read_policy(cfg, {})


def test_data_that_give_what_is_needed(config: Maker) -> None:
    labels, indexes = {"drop": {"label": "same"}}, {"drop": {"image": "same"}}
    for overrides, negatives in (
        (["+data.no_labels=false"], labels),
        (["+data.no_labels=true"], indexes),
        (["data.format=dali", "dali.encode_indexes_into_labels=false"], labels),
        (["data.format=h5"], indexes),
        (["~data.format"], indexes),
        (["data.format=dali"], indexes),
    ):
        read = settings.read_policy(config(*overrides, negatives=negatives), {})
        assert read.config == negatives


# ---------------------------------------------------------------- single keys


@pytest.mark.parametrize(
    ("value", "kind", "allowed"),
    [
        (0, int, "must be a whole number above 0"),
        (2.0, int, "must be a whole number above 0"),
        (True, int, "must be a whole number above 0"),
        (None, int, "must be a whole number above 0"),
        (0.0, float, "must be a number above 0"),
        (float("nan"), float, "must be a number above 0"),
        ("warm", float, "must be a number above 0"),
    ],
)
def test_numbers_that_are_refused(value: Any, kind: type, allowed: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings.check_number(OmegaConf.create({"a": {"b": value}}), "a.b", kind)
    assert str(refused.value) == f"a.b={value}: {allowed}."


def test_numbers_that_are_not() -> None:
    for value, kind in ((1, int), (1, float), (0.07, float)):
        settings.check_number(OmegaConf.create({"a": {"b": value}}), "a.b", kind)


@pytest.mark.parametrize("default", [False, True])
def test_a_choice_and_its_default(default: bool) -> None:
    for value in (False, True):
        cfg = OmegaConf.create({"a": {"b": value}})
        settings.check_choice(cfg, "a.b", default)
        assert cfg.a.b is value
    for absent in ({"a": {}}, {"a": {"b": None}}):
        cfg = OmegaConf.create(absent)
        settings.check_choice(cfg, "a.b", default)
        assert cfg.a.b is default
    for wrong in (1, "yes"):
        with pytest.raises(ConfigError, match=f"^a.b={wrong}: must be true or false.$"):
            settings.check_choice(OmegaConf.create({"a": {"b": wrong}}), "a.b", default)


def test_ours_is_checked_whatever_the_host_checks(
    config: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """solo-learn takes any temperature, and any folder."""
    as_it_is = staticmethod(lambda cfg: cfg)
    for method in (host.SimCLR, host.MoCoV2Plus):
        monkeypatch.setattr(method, "add_and_assert_specific_cfg", as_it_is)
    checked: list[DictConfig] = []
    monkeypatch.setattr(settings, "check_folders", checked.append)
    for name, method in OUR_METHODS.items():
        cfg = config(method=name, negatives={})
        assert method.add_and_assert_specific_cfg(cfg) is cfg
        assert checked.pop() is cfg
        cfg.method_kwargs.temperature = 0.0
        with pytest.raises(ConfigError, match=r"^method_kwargs.temperature=0.0: must be a number"):
            method.add_and_assert_specific_cfg(cfg)


# ---------------------------------------------------------------- MoCo's own


@pytest.mark.parametrize(
    ("large", "small", "views"), [(2, 1, 3), (1, 0, 1), (1, 1, 2), (None, None, 2), (3, None, 3)]
)
def test_moco_takes_two_views(
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


def test_a_momentum_classifier_needs_both_directions(config: Maker) -> None:
    cfg = config("+momentum.classifier=true", "method_kwargs.symmetric=true")
    MoCoV2Banded.check_family(cfg, build({}))
    cfg.method_kwargs.symmetric = False
    text = "momentum.classifier=True: needs method_kwargs.symmetric=true.*Set one of the two"
    with pytest.raises(ConfigError, match=text):
        MoCoV2Banded.check_family(cfg, build({}))
    cfg.momentum.classifier = False
    MoCoV2Banded.check_family(cfg, build({}))


# ---------------------------------------------------------------- what the trainer knows


def test_nothing_to_train_on(model: Maker) -> None:
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


def test_the_queue_holds_whole_steps_of_all_processes(
    model: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the host checks; solo-learn has no words for it."""
    monkeypatch.setattr(host.MoCoV2Plus, "setup", lambda self, stage: None)
    moco = model()
    for world_size in (1, 3):
        moco.trainer = SimpleNamespace(world_size=world_size)
        moco.setup("fit")
    moco.trainer = SimpleNamespace(world_size=2)
    moco.setup("validate")
    with pytest.raises(ConfigError, match=r"queue_size=12: .* global batch of 8 images"):
        moco.setup("fit")


@pytest.mark.parametrize(
    ("epoch", "restarting", "resuming", "expected"),
    [
        (1, False, False, True),
        (2, False, None, True),
        (0, False, False, False),
        (1, True, False, False),
        (1, False, True, False),
        (1, True, None, False),
    ],
)
def test_whether_the_epoch_makes_a_new_iterator(
    epoch: int, restarting: bool, resuming: bool | None, expected: bool
) -> None:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(restarting=restarting))
    if resuming is not None:  # older versions of Lightning have no such attribute
        loop.is_resuming = resuming
    trainer = SimpleNamespace(current_epoch=epoch, fit_loop=loop)
    assert contrastive._will_iterate(trainer) is expected
