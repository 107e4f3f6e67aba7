"""An installed package of somebody else's brings a policy: it is listed, checked, trained with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from tiny_backbone import use_tiny

from solo_hardneg import negatives
from solo_hardneg.errors import ConfigError
from solo_hardneg.negatives import registry
from solo_hardneg.standalone.run import pretrain

SUMMARY = "All negatives but a random share."
MODULE = '''
import torch
from solo_hardneg import negatives


@negatives.register("drop_random", source="nobody's paper")
class DropRandom:
    """SUMMARY"""

    def __init__(self, share: float):
        self.share = share

    def __call__(self, pool):
        return pool.without(torch.rand_like(pool.similarity) < self.share)
'''.replace("SUMMARY", SUMMARY)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is in this process, which forgets it afterwards."""
    info = tmp_path / "site" / "random_negatives-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: random-negatives\nVersion: 1.0\n")
    points = "[solo_hardneg.policies]\nrandom_negatives = random_negatives\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "site" / "random_negatives.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()


@pytest.mark.usefixtures("installed")
def test_it_trains_with_a_schedule_that_it_knows_nothing_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny(monkeypatch)
    small = [
        *("data=digits", "data.val_path=null", "optimizer.batch_size=16", "max_epochs=1"),
        *("++limit_train_batches=4", "++enable_progress_bar=false", "++log_every_n_steps=1"),
        *("accelerator=cpu", f"checkpoint.dir={tmp_path}", "negatives=all"),
    ]
    verb = "+negatives.drop_random"
    share = f"{verb}.share={{from: 0.0, to: 0.8, epochs: [0, 1]}}"
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        cfg = compose("simclr_banded", [*small, share])
        misspelt = compose("simclr_banded", [*small, f"{verb}.shares=0.5"])
    listed = negatives.available()["drop_random"]
    assert (listed.summary, listed.source) == (SUMMARY, "nobody's paper")
    run = pretrain(cfg)
    header, *rows = (line.split(",") for line in (run.folder / "metrics.csv").open())
    column = header.index("negatives/present_step")
    present = [float(row[column]) for row in rows if row[column]]
    assert present[0] == 30  # of 2 * 16 - 2 negatives, none is dropped at first
    assert present == sorted(present, reverse=True)
    assert 8 < present[-1] < 16  # 60 % are at three quarters of the epoch

    message = r"negatives\.drop_random: unknown argument 'shares'\. Did you mean 'share'\? Known: "
    with pytest.raises(ConfigError, match=f"{message}from_epoch, share, until_epoch"):
        pretrain(misspelt)
