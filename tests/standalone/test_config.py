"""Parsing a config: defaults, scaled learning rates, refused values."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.standalone import MoCoV2Plus
from solo_hardneg.standalone.config import parse_linear, parse_pretrain

DELETED = object()


def test_parsing_twice_scales_the_learning_rates_once(config):
    cfg = config("simclr", "optimizer.lr=0.4", "optimizer.classifier_lr=0.8")
    for _ in range(2):
        parsed = parse_pretrain(cfg)
        assert parsed.optimizer.lr == pytest.approx(0.4 * 16 / 256)
        assert parsed.optimizer.classifier_lr == pytest.approx(0.8 * 16 / 256)
    assert cfg.optimizer.lr == 0.4


@pytest.mark.parametrize(("devices", "count"), [("3", 3), ("[0,1]", 2), ("'1'", 1), ("'0'", 1)])
def test_learning_rates_scale_with_the_number_of_devices(config, devices, count):
    cfg = parse_pretrain(config("simclr", "optimizer.lr=1", f"devices={devices}", "+num_nodes=2"))
    assert cfg.optimizer.lr == pytest.approx(16 * count * 2 / 256)


def test_defaults_equal_solo_learns(config):
    cfg = parse_pretrain(config("simclr", "~auto_resume", "~checkpoint", "~knn_eval", "~wandb"))
    saving = {"enabled": False, "dir": "trained_models", "frequency": 1, "keep_prev": False}
    assert cfg.checkpoint == saving
    assert cfg.auto_resume == {"enabled": False, "max_hours": 36}
    assert cfg.optimizer.kwargs == {"momentum": 0.9}
    assert cfg.data.fraction == -1
    assert (cfg.data.num_large_crops, cfg.data.num_small_crops, cfg.data.num_classes) == (2, 0, 10)
    assert cfg.resume_from_checkpoint is None
    assert cfg.knn_eval.k == 20


def test_defaults_of_the_optimizers(config):
    lars = parse_pretrain(config("simclr", "optimizer.name=lars", "+optimizer.kwargs.eta=0.02"))
    given = {"momentum": 0.9, "eta": 0.02, "clip_lr": False, "exclude_bias_n_norm": False}
    assert lars.optimizer.kwargs == given
    assert parse_pretrain(config("simclr", "optimizer.name=adam")).optimizer.kwargs == {}


def test_keys_of_dali_are_ignored(config):
    keys = ("dali.device=tpu", "dali.encode_indexes_into_labels=false")
    assert parse_pretrain(config("simclr", *keys)).data.format == "image_folder"


def test_a_plain_dict_is_accepted(config):
    plain = OmegaConf.to_container(config("simclr"), resolve=True)
    assert parse_pretrain(plain).data.num_classes == 10


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.batch_size", 0, r"optimizer\.batch_size=0: must be at least 1"),
        ("optimizer.batch_size", 2.5, r"optimizer\.batch_size=2\.5: must be a whole number"),
        ("optimizer.batch_size", True, r"optimizer\.batch_size=True: must be a whole number"),
        ("max_epochs", "???", r"max_epochs: is not set.*Add max_epochs=\.\.\. to the command"),
        ("max_epochs", DELETED, r"max_epochs: is not set"),
        ("optimizer.lr", 0, r"optimizer\.lr=0: must be above 0"),
        ("optimizer.lr", float("nan"), r"optimizer\.lr=nan: must be"),
        ("optimizer.weight_decay", -1, r"optimizer\.weight_decay=-1: must be at least 0"),
        ("optimizer.name", "sdg", r"optimizer\.name: unknown .*'sdg'\. Did you mean 'sgd'"),
        ("optimizer", "sgd", r"optimizer=sgd: must hold several keys.*Write optimizer\.name=sgd"),
        ("scheduler.name", "cosine", r"'cosine'.*Known: none, step, warmup_cosine"),
        ("scheduler.name", "step", r"scheduler\.lr_decay_steps=None: must be a list of epochs"),
        ("scheduler.interval", "day", r"scheduler\.interval: unknown interval 'day'"),
        ("data.dataset", "cifar", r"data\.dataset: unknown .*'cifar'.*Known: cifar10, cifar100"),
        ("data.format", "h5", r"data\.format=h5: must be image_folder or resident"),
        ("data.format", "dali", r"data\.format=dali: must be .* DALI and HDF5 need solo-learn"),
        ("data.fraction", 1.5, r"data\.fraction=1\.5: must lie between 0 and 1"),
        ("data.no_labels", "nope", r"data\.no_labels=nope: must be true or false"),
        (
            "data.val_path",
            "???",
            r"data\.val_path=\?\?\?: must be set\. Set it to a folder",
        ),
        ("seed", -1, r"seed=-1: must be at least 0"),
        ("devices", "0,1", r"devices=0,1: must be a list such as \[0,1\].*rate is scaled"),
        ("devices", -1, r"devices=-1: must be a list"),
        ("name", "a/b", r"name=a/b: must hold no slash"),
        ("augmentations.0.num_crops", 3, r"augmentations=.*must give two views.*multi-crop is in"),
        (
            "augmentations.0.num_crops",
            "x",
            r"augmentations\.0\.num_crops=x: must be a whole",
        ),
        ("augmentations", None, r"augmentations: is not set"),
        ("augmentations", "strong", r"augmentations=strong: must be a list of pipelines"),
        ("backbone.name", "${gone}", r"backbone\.name: can't be resolved\..*gone"),
        ("backbone.kwargs", 3, r"backbone\.kwargs=3: must hold several keys"),
        ("knn_eval.distance_func", "cos", r"unknown distance_func 'cos'.*cosine, euclidean"),
    ],
)
def test_refused_values_in_pretraining(config, key, value, message):
    cfg = config("simclr")
    OmegaConf.set_struct(cfg, False)
    if value is DELETED:
        parent, _, last = key.rpartition(".")
        del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
    else:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(ConfigError, match=message):
        parse_pretrain(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+finetune=true", r"finetune=True: only solo-learn has it"),
        ("+mixup=0.8", r"mixup=0\.8: only solo-learn has it\. Leave it out"),
        ("data.val_path=null", r"data\.val_path: is not set"),
        ("+data.no_labels=true", r"data\.no_labels=True: a classifier needs labels"),
        ("pretrained_feature_extractor=null", r"pretrained_feature_extractor: is not set"),
        ("+data.augmentations.crop_size=0", r"augmentations\.crop_size=0: must be at least 1"),
        ("knn_eval.k=0", r"knn_eval\.k=0: must be at least 1"),
    ],
)
def test_refused_values_in_linear_evaluation(config, override, message):
    with pytest.raises(ConfigError, match=message):
        parse_linear(config("linear", "pretrained_feature_extractor=x.ckpt", override))


def test_default_crop_size_of_linear_evaluation(config):
    given = config("linear", "pretrained_feature_extractor=x.ckpt")
    assert parse_linear(given).data.augmentations.crop_size == 8
    OmegaConf.set_struct(given, False)
    del given.data.suggest.crop_size
    assert parse_linear(given).data.augmentations.crop_size == 224
    assert parse_linear(given).optimizer.lr == pytest.approx(0.1 * 16 / 256)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method_kwargs.temperature=0", r"method_kwargs\.temperature=0: must be above 0"),
        ("method_kwargs.queue_size=1.5", r"method_kwargs\.queue_size=1\.5: must be a whole"),
        ("momentum.base_tau=1.2", r"momentum\.base_tau=1\.2: must be at most 1"),
    ],
)
def test_refused_values_of_the_method(config, override, message):
    cfg = parse_pretrain(config("mocov2plus", override))
    with pytest.raises(ConfigError, match=message):
        MoCoV2Plus.add_and_assert_specific_cfg(cfg)
