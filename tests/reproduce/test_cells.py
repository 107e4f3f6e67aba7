"""Cells: what a scale changes, what the user's overrides win over, and the fingerprint."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.reproduce.cells import Cell, Images, make_cells
from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.overrides import composed, quoted, told_apart, what_counts


def cells(
    name: str, scale: str, *arguments: str, images: int = 50_000, seeds: int = 1
) -> list[Cell]:
    experiment = load_experiment(name)
    told = told_apart(arguments)
    return make_cells(
        experiment, load_scale(scale), experiment.rows, range(seeds), told, Images(images)
    )


def cell(name: str, row: str, scale: str, *arguments: str, images: int = 50_000) -> Cell:
    experiment, told = load_experiment(name), told_apart(arguments)
    rows = [experiment.row(row)]
    return make_cells(experiment, load_scale(scale), rows, [0], told, Images(images))[0]


def test_arguments_are_told_apart() -> None:
    told = told_apart(
        [
            "data=cifar10",
            "+data.train_path=/d",
            "optimizer.lr=1",
            "linear.optimizer.lr=2",
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
            "accelerator=gpu",
            "++negatives.drop.image=same",
        ]
    )
    shared = ("+data.train_path=/d",)
    assert told.data == "cifar10"
    assert told.hydra == ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert told.linear == (*shared, "optimizer.lr=2", "accelerator=gpu")
    assert told.pretrain == (
        *shared,
        "optimizer.lr=1",
        "accelerator=gpu",
        "++negatives.drop.image=same",
    )


@pytest.mark.parametrize("argument", ["cifar10", "-scale", "--scale=day", "=1"])
def test_what_is_no_override_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match="neither an option nor KEY=VALUE"):
        told_apart([argument])


def test_at_the_papers_scale_nothing_is_changed() -> None:
    for one in cells("sscl_table3", "paper", "data=cifar100"):
        assert one.changed == ()
    sscl = cell("sscl_table3", "sscl", "paper", "data=cifar100")
    cfg = composed(sscl.config, sscl.pretrain)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs, cfg.optimizer.batch_size) == (200, 20, 256)
    assert cfg.negatives.mix == {"hardest": 32, "pairs": 8}
    linear = composed("linear", sscl.linear)
    assert (linear.max_epochs, linear.optimizer.lr, linear.optimizer.weight_decay) == (100, 10, 0)
    assert linear.backbone.name == "resnet18"


def test_cai_evaluates_as_moco_does() -> None:
    hardest = cell("cai_figure2", "hardest_5", "paper")
    linear = composed("linear", hardest.linear)
    assert (linear.optimizer.lr, linear.scheduler.name, linear.max_epochs) == (30, "step", 100)
    assert linear.scheduler.lr_decay_steps == [60, 80]
    assert linear.data.dataset == "imagenet"
    assert linear.backbone.name == "resnet50"


def test_a_smaller_scale_keeps_proportions() -> None:
    sscl = cell("sscl_table3", "sscl", "minute", images=50_000)
    cfg = composed(sscl.config, sscl.pretrain)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs) == (5, 0.5)  # a tenth, as 20 of 200
    assert cfg.data.fraction == pytest.approx(0.1)
    assert cfg.optimizer.batch_size == 128
    assert cfg.negatives.mix == {"hardest": 16, "pairs": 4}  # B/8 and B/32
    mochi = cell("sscl_table3", "mochi", "minute")
    cfg = composed(mochi.config, mochi.pretrain)
    assert cfg.method_kwargs.queue_size == 1024
    assert cfg.negatives.mix == {"hardest": 64, "pairs": 64, "queries": 8}  # K/16, K/16, K/128
    linear = composed("linear", cell("cai_table1", "all_warm", "minute").linear)
    assert (linear.max_epochs, linear.scheduler.lr_decay_steps) == (5, [3, 4])
    assert linear.data.fraction == pytest.approx(5000 / 50_000)


def test_a_small_dataset_isnt_cut() -> None:
    cfg = composed("simclr", cell("sscl_table3", "simclr", "minute", images=4000).pretrain)
    assert "fraction" not in cfg.data


def test_what_the_user_says_wins() -> None:
    asked = ("max_epochs=3", "backbone.name=resnet18", "linear.max_epochs=4", "data.fraction=0.5")
    one = cell(
        "sscl_table3", "simclr", "minute", *(f"++{a}" if "fraction" in a else a for a in asked)
    )
    cfg = composed(one.config, one.pretrain)
    assert (cfg.max_epochs, cfg.backbone.name, cfg.data.fraction) == (3, "resnet18", 0.5)
    linear = composed("linear", one.linear)
    assert (linear.max_epochs, linear.backbone.name, linear.data.fraction) == (4, "resnet18", 0.5)


def test_an_override_that_cant_be_used_is_an_error_that_shows_it() -> None:
    with pytest.raises(ConfigError, match="nosuch_key"):
        cells("sscl_table3", "minute", "nosuch_key=1")
    with pytest.raises(ConfigError, match="data=cifar1000"):
        cells("sscl_table3", "minute", "data=cifar1000")


def test_seeds_are_outermost_and_named() -> None:
    made = cells("sscl_table5", "minute", seeds=2)
    assert [c.name for c in made[:5]] == [
        "mocov2-seed0",
        "synthesis-seed0",
        "sampling-seed0",
        "sscl-seed0",
        "mocov2-seed1",
    ]
    assert made[0].fingerprint == made[4].fingerprint
    assert "seed=1" in made[4].pretrain
    assert "seed=1" in made[4].linear


def test_paths_and_speed_are_left_out_of_what_counts() -> None:
    left_out = [
        "data.train_path=/x",
        "++data.num_workers=1",
        "accelerator=gpu",
        "hardness.enabled=1",
    ]
    kept = ["data=cifar100", "seed=1", "++data.fraction=0.1", "negatives=hcl"]
    assert what_counts([*left_out, *kept]) == kept


def test_the_fingerprint_is_of_what_counts() -> None:
    def prints(*arguments: str) -> str:
        return cell("sscl_table3", "sscl", "minute", *arguments).fingerprint

    plain = prints()
    for same in ("data.train_path=/x", "data.num_workers=9", "accelerator=gpu", "++backend=dense"):
        assert prints(same) == plain, same
    for other in (
        "optimizer.lr=9",
        "linear.optimizer.lr=9",
        "negatives.reweight.beta=2",
        "precision=16",
    ):
        assert prints(other) != plain, other
    rows = cells("sscl_table3", "minute")
    assert len({one.fingerprint for one in rows}) == len(rows)


def test_proportions_are_kept_to_what_the_user_says() -> None:
    one = cell("sscl_table3", "sscl", "hour", "max_epochs=50")
    assert composed(one.config, one.pretrain).scheduler.warmup_epochs == 5
    big = cell("sscl_table3", "sscl", "minute", "optimizer.batch_size=512")
    assert composed(big.config, big.pretrain).negatives.mix == {"hardest": 32, "pairs": 8}
    long = cell("sscl_table3", "mochi", "minute", "method_kwargs.queue_size=16384")
    cfg = composed(long.config, long.pretrain)
    assert cfg.negatives.mix == {"hardest": 1024, "pairs": 1024, "queries": 128}
    linear = cell("cai_table1", "all_warm", "hour", "linear.max_epochs=50").linear
    assert composed("linear", linear).scheduler.lr_decay_steps == [30, 40]
    asked = cell("sscl_table3", "sscl", "minute", "++check_val_every_n_epoch=1")
    assert composed(asked.config, asked.pretrain).check_val_every_n_epoch == 1


def test_what_the_user_changes_is_told() -> None:
    asked = ("optimizer.lr=3", "data.train_path=/x", "linear.optimizer.lr=1")
    one = cell("sscl_table3", "sscl", "paper", *asked)
    assert one.changed == ("optimizer.lr=3", "linear.optimizer.lr=1")
    one = cell("cai_table1", "all_warm", "minute")
    steps = "++linear.scheduler.lr_decay_steps=[3,4]"
    assert steps in one.changed
    assert told_apart([steps]).linear == ("++scheduler.lr_decay_steps=[3,4]",)


def test_an_override_that_would_undo_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"negatives=all: the row hcl sets it.*Choose other rows"):
        cell("sscl_table3", "hcl", "minute", "negatives=all")
    for seed in ("seed=7", "linear.seed=7"):
        with pytest.raises(ConfigError, match=r"each cell has its own. Say how many: --seeds N"):
            told_apart([seed])


def test_other_images_of_ones_own_are_another_fingerprint() -> None:
    experiment, told = load_experiment("sscl_table3"), told_apart([])
    rows, scale = [experiment.row("sscl")], load_scale("minute")
    prints = {
        make_cells(experiment, scale, rows, [0], told, Images(5000, identity))[0].fingerprint
        for identity in ("", "a", "b")
    }
    assert len(prints) == 3


texts = st.text(st.sampled_from("ab \\'\"${}[](),=:%#~.é"), min_size=1, max_size=12)


@given(text=texts)
def test_any_text_can_be_quoted(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    # What is left of an interpolation's escape, OmegaConf takes away.
    value = OmegaConf.create({"key": override.value()})
    assert value.key == text
