"""Cells: what a scale and the user's overrides change, and what the fingerprint covers."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from solo_hardneg.errors import ConfigError
from solo_hardneg.reproduce.experiment import load_experiment, load_scale
from solo_hardneg.reproduce.grid import Cell, make_cells
from solo_hardneg.reproduce.overrides import compose_config, drop_ignored, quote, sort_overrides

# Its linear evaluation has decay steps; that of sscl_table3 has none.
STEPPED = ("cai_table1", "all_warm")


def make_cell(
    name: str, row: str, scale: str, *arguments: str, images: int = 50_000, digest: str = ""
) -> Cell:
    experiment, user = load_experiment(name), sort_overrides(arguments)
    rows = [experiment.rows[row]]
    return make_cells(experiment, load_scale(scale), rows, [0], user, images, digest)[0]


def sscl(*arguments: str, row: str = "sscl", scale: str = "minute", digest: str = "") -> Cell:
    return make_cell("sscl_table3", row, scale, *arguments, digest=digest)


def test_overrides_are_sorted_by_program() -> None:
    own = ["optimizer.lr=1", "++negatives.drop.image=same"]
    shared = ["+data.train_path=/d", "accelerator=gpu"]
    hydra = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    user = sort_overrides(["data=cifar10", *own, *shared, *hydra, "++linear.optimizer.lr=2"])
    assert user.data == "cifar10"
    assert user.hydra == tuple(hydra)
    assert user.pretrain == (*own, *shared)
    assert user.linear == (*shared, "++optimizer.lr=2")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cifar10", "cifar10: must be an option or KEY=VALUE"),
        ("--scale=day", "must be an option or KEY=VALUE"),
        ("=1", "must be an option or KEY=VALUE"),
        ("linear.seed=7", "linear.seed=7: each cell has its own seed.*--seeds N"),
    ],
)
def test_other_arguments_are_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sort_overrides([argument])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nosuch_key=1", "nosuch_key"),
        ("data=cifar1000", "data=cifar1000"),
        ("negatives=all", r"negatives=all: the row sscl sets this key. Choose other rows"),
    ],
)
def test_an_override_that_cant_be_applied_is_named(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sscl(argument)


def test_the_papers_scale_changes_nothing() -> None:
    paper = sscl(scale="paper")
    assert paper.changed == ()
    cfg = compose_config(paper.config, paper.pretrain)
    linear = compose_config("linear", paper.linear)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs, cfg.optimizer.batch_size) == (200, 20, 256)
    assert cfg.negatives.mix == {"hardest": 32, "pairs": 8}
    assert (linear.max_epochs, linear.optimizer.lr, linear.optimizer.weight_decay) == (100, 10, 0)
    assert linear.backbone.name == "resnet18"

    moco = compose_config("linear", make_cell(*STEPPED, "paper").linear)
    assert (moco.optimizer.lr, moco.scheduler.name, moco.max_epochs) == (30, "step", 100)
    assert moco.scheduler.lr_decay_steps == [60, 80]
    assert (moco.data.dataset, moco.backbone.name) == ("imagenet", "resnet50")


def test_a_smaller_scale_keeps_proportions() -> None:
    small = sscl()
    cfg = compose_config(small.config, small.pretrain)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs) == (5, 0.5)  # a tenth, as 20 of 200
    assert cfg.data.fraction == pytest.approx(0.1)
    assert cfg.optimizer.batch_size == 128
    assert cfg.negatives.mix == {"hardest": 16, "pairs": 4}  # B/8 and B/32
    mochi = sscl(row="mochi")
    cfg = compose_config(mochi.config, mochi.pretrain)
    assert cfg.method_kwargs.queue_size == 1024
    assert cfg.negatives.mix == {"hardest": 64, "pairs": 64, "queries": 8}  # K/16, K/16, K/128
    stepped = make_cell(*STEPPED, "minute")
    linear = compose_config("linear", stepped.linear)
    assert (linear.max_epochs, linear.scheduler.lr_decay_steps) == (5, [3, 4])
    assert linear.data.fraction == pytest.approx(5000 / 50_000)
    steps = "++linear.scheduler.lr_decay_steps=[3,4]"
    assert steps in stepped.changed  # as on the command line
    assert sort_overrides([steps]).linear == ("++scheduler.lr_decay_steps=[3,4]",)


def test_a_small_dataset_is_used_whole() -> None:
    small = make_cell("sscl_table3", "sscl", "minute", images=4000)
    assert "fraction" not in compose_config(small.config, small.pretrain).data


def test_the_users_overrides_win_and_other_settings_follow_them() -> None:
    own = ("max_epochs=50", "optimizer.batch_size=512", "linear.max_epochs=10")
    both = ("backbone.name=resnet18", "++data.fraction=0.5")
    cell = sscl(*own, *both, "++check_val_every_n_epoch=1", "data.train_path=/x")
    cfg = compose_config(cell.config, cell.pretrain)
    linear = compose_config("linear", cell.linear)
    assert (cfg.max_epochs, cfg.scheduler.warmup_epochs) == (50, 5)
    assert (cfg.optimizer.batch_size, cfg.negatives.mix) == (512, {"hardest": 32, "pairs": 8})
    assert cfg.check_val_every_n_epoch == 1
    assert linear.max_epochs == 10
    for each in (cfg, linear):
        assert (each.backbone.name, each.data.fraction) == ("resnet18", 0.5)
    assert {*own, *both} <= set(cell.changed)
    assert not any("train_path" in change for change in cell.changed)

    long = sscl("method_kwargs.queue_size=16384", row="mochi")
    mix = compose_config(long.config, long.pretrain).negatives.mix
    assert mix == {"hardest": 1024, "pairs": 1024, "queries": 128}
    stepped = make_cell(*STEPPED, "minute", "linear.max_epochs=50").linear
    assert compose_config("linear", stepped).scheduler.lr_decay_steps == [30, 40]


def test_seeds_are_the_outer_loop() -> None:
    experiment, user = load_experiment("sscl_table5"), sort_overrides([])
    rows = experiment.select_rows(["mocov2", "synthesis"])
    cells = make_cells(experiment, load_scale("minute"), rows, range(2), user, 50_000)
    names = ["mocov2-seed0", "synthesis-seed0", "mocov2-seed1", "synthesis-seed1"]
    assert [cell.name for cell in cells] == names
    assert cells[0].fingerprint == cells[2].fingerprint
    assert "seed=1" in cells[2].pretrain
    assert "seed=1" in cells[2].linear


def test_the_fingerprint_covers_what_changes_a_result() -> None:
    plain = sscl().fingerprint
    ignored = ("data.train_path=/x", "data.num_workers=9", "accelerator=gpu", "++backend=dense")
    assert drop_ignored(["data=cifar100", *ignored, "seed=1"]) == ["data=cifar100", "seed=1"]
    assert sscl(*ignored).fingerprint == plain
    others = [
        sscl("optimizer.lr=9"),
        sscl("linear.optimizer.lr=9"),
        sscl(row="hcl"),
        sscl(digest="other images"),
    ]
    assert len({plain, *(other.fingerprint for other in others)}) == 5


@given(text=st.text(st.sampled_from("ab \\'\"${}[](),=:%#~.é"), min_size=1, max_size=12))
def test_any_text_can_be_quoted(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={quote(text)}")
    # OmegaConf removes the backslash that escapes an interpolation.
    assert OmegaConf.create({"key": override.value()}).key == text
