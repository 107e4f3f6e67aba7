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

# Its linear evaluation has steps of decay, as MoCo's; the other experiment's has none.
STEPPED = ("cai_table1", "all_warm")


def cell(name: str, row: str, scale: str, *arguments: str, images: int = 50_000) -> Cell:
    experiment, told = load_experiment(name), told_apart(arguments)
    rows = [experiment.row(row)]
    return make_cells(experiment, load_scale(scale), rows, [0], told, Images(images))[0]


def sscl(*arguments: str, row: str = "sscl", scale: str = "minute") -> Cell:
    return cell("sscl_table3", row, scale, *arguments)


def test_arguments_are_told_apart() -> None:
    own = ["optimizer.lr=1", "++negatives.drop.image=same"]
    shared = ["+data.train_path=/d", "accelerator=gpu"]
    hydra = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    told = told_apart(["data=cifar10", *own, *shared, *hydra, "++linear.optimizer.lr=2"])
    assert told.data == "cifar10"
    assert told.hydra == tuple(hydra)
    assert told.pretrain == (*own, *shared)
    assert told.linear == (*shared, "++optimizer.lr=2")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cifar10", "neither an option nor KEY=VALUE"),
        ("--scale=day", "neither an option nor KEY=VALUE"),
        ("=1", "neither an option nor KEY=VALUE"),
        ("linear.seed=7", "each cell has its own. Say how many: --seeds N"),
    ],
)
def test_what_is_no_override_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        told_apart([argument])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nosuch_key=1", "nosuch_key"),
        ("data=cifar1000", "data=cifar1000"),
        ("negatives=all", r"negatives=all: the row sscl sets it.*Choose other rows"),
    ],
)
def test_an_override_that_cant_be_used_is_an_error_that_shows_it(
    argument: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sscl(argument)


def test_at_the_papers_scale_nothing_is_changed() -> None:
    paper = sscl(scale="paper")
    assert paper.changed == ()
    cfg, linear = composed(paper.config, paper.pretrain), composed("linear", paper.linear)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs, cfg.optimizer.batch_size) == (200, 20, 256)
    assert cfg.negatives.mix == {"hardest": 32, "pairs": 8}
    assert (linear.max_epochs, linear.optimizer.lr, linear.optimizer.weight_decay) == (100, 10, 0)
    assert linear.backbone.name == "resnet18"

    moco = composed("linear", cell(*STEPPED, "paper").linear)
    assert (moco.optimizer.lr, moco.scheduler.name, moco.max_epochs) == (30, "step", 100)
    assert moco.scheduler.lr_decay_steps == [60, 80]
    assert (moco.data.dataset, moco.backbone.name) == ("imagenet", "resnet50")


def test_a_smaller_scale_keeps_proportions() -> None:
    small = sscl()
    cfg = composed(small.config, small.pretrain)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs) == (5, 0.5)  # a tenth, as 20 of 200
    assert cfg.data.fraction == pytest.approx(0.1)
    assert cfg.optimizer.batch_size == 128
    assert cfg.negatives.mix == {"hardest": 16, "pairs": 4}  # B/8 and B/32
    mochi = sscl(row="mochi")
    cfg = composed(mochi.config, mochi.pretrain)
    assert cfg.method_kwargs.queue_size == 1024
    assert cfg.negatives.mix == {"hardest": 64, "pairs": 64, "queries": 8}  # K/16, K/16, K/128
    stepped = cell(*STEPPED, "minute")
    linear = composed("linear", stepped.linear)
    assert (linear.max_epochs, linear.scheduler.lr_decay_steps) == (5, [3, 4])
    assert linear.data.fraction == pytest.approx(5000 / 50_000)
    steps = "++linear.scheduler.lr_decay_steps=[3,4]"
    assert steps in stepped.changed  # as one would type it
    assert told_apart([steps]).linear == ("++scheduler.lr_decay_steps=[3,4]",)


def test_a_small_dataset_isnt_cut() -> None:
    small = cell("sscl_table3", "sscl", "minute", images=4000)
    assert "fraction" not in composed(small.config, small.pretrain).data


def test_what_the_user_says_wins_and_proportions_are_kept_to_it() -> None:
    own = ("max_epochs=50", "optimizer.batch_size=512", "linear.max_epochs=10")
    both = ("backbone.name=resnet18", "++data.fraction=0.5")
    asked = sscl(*own, *both, "++check_val_every_n_epoch=1", "data.train_path=/x")
    cfg, linear = composed(asked.config, asked.pretrain), composed("linear", asked.linear)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs) == (50, 5)
    assert (cfg.optimizer.batch_size, cfg.negatives.mix) == (512, {"hardest": 32, "pairs": 8})
    assert cfg.check_val_every_n_epoch == 1
    assert linear.max_epochs == 10
    for each in (cfg, linear):
        assert (each.backbone.name, each.data.fraction) == ("resnet18", 0.5)
    assert {*own, *both} <= set(asked.changed)
    assert not any("train_path" in change for change in asked.changed)

    long = sscl("method_kwargs.queue_size=16384", row="mochi")
    mix = composed(long.config, long.pretrain).negatives.mix
    assert mix == {"hardest": 1024, "pairs": 1024, "queries": 128}
    stepped = cell(*STEPPED, "minute", "linear.max_epochs=50").linear
    assert composed("linear", stepped).scheduler.lr_decay_steps == [30, 40]


def test_seeds_are_outermost_and_named() -> None:
    experiment, told = load_experiment("sscl_table5"), told_apart([])
    rows = experiment.rows[:2]
    made = make_cells(experiment, load_scale("minute"), rows, range(2), told, Images(50_000))
    names = ["mocov2-seed0", "synthesis-seed0", "mocov2-seed1", "synthesis-seed1"]
    assert [one.name for one in made] == names
    assert made[0].fingerprint == made[2].fingerprint
    assert "seed=1" in made[2].pretrain
    assert "seed=1" in made[2].linear


def test_the_fingerprint_is_of_what_counts() -> None:
    plain = sscl().fingerprint
    speed = ("data.train_path=/x", "data.num_workers=9", "accelerator=gpu", "++backend=dense")
    assert what_counts(["data=cifar100", *speed, "seed=1"]) == ["data=cifar100", "seed=1"]
    assert sscl(*speed).fingerprint == plain
    experiment, told = load_experiment("sscl_table3"), told_apart([])
    others = [
        sscl("optimizer.lr=9"),
        sscl("linear.optimizer.lr=9"),
        sscl(row="hcl"),
        *make_cells(
            *(experiment, load_scale("minute"), [experiment.row("sscl")]),
            *([0], told, Images(50_000, "other images")),
        ),
    ]
    assert len({plain, *(other.fingerprint for other in others)}) == 5


@given(text=st.text(st.sampled_from("ab \\'\"${}[](),=:%#~.é"), min_size=1, max_size=12))
def test_any_text_can_be_quoted(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    # What is left of an interpolation's escape, OmegaConf takes away.
    assert OmegaConf.create({"key": override.value()}).key == text
