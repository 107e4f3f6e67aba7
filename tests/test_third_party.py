"""A package of somebody else's brings a policy: installed, listed, checked and trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration_helpers import Result, run_python

pytestmark = pytest.mark.full

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "random-negatives"
version = "1.0"

[project.entry-points."solo_hardneg.policies"]
random_negatives = "random_negatives"

[tool.setuptools]
py-modules = ["random_negatives"]
"""

MODULE = '''
import torch
from solo_hardneg import negatives


@negatives.register("drop_random", source="nobody's paper")
class DropRandom:
    """All negatives but a random share."""

    def __init__(self, share: float):
        self.share = share

    def __call__(self, pool):
        return pool.without(torch.rand_like(pool.similarity) < self.share)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tiny package is installed in."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "random_negatives.py").write_text(MODULE)
    alone = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    run_python("-m", "pip", "install", *alone, "--target", site, source, cwd=source).ok()
    (source / "random_negatives.py").unlink()
    return site


def command(site: Path, folder: Path, *arguments: str) -> Result:
    env = {"PYTHONPATH": str(site), "SOLO_HARDNEG_HOST": "standalone"}
    return run_python("-m", "solo_hardneg", *arguments, cwd=folder, env=env)


def test_it_is_listed(site: Path, tmp_path: Path) -> None:
    listed = command(site, tmp_path, "policies").ok().out
    row = next(line for line in listed.splitlines() if "drop_random" in line)
    for part in ("share", "All negatives but a random share", "nobody's paper"):
        assert part in row
    assert "drop_random" not in run_python("-m", "solo_hardneg", "policies", cwd=tmp_path).ok().out


def test_it_trains_with_schedules_and_epochs_that_it_knows_nothing_of(
    site: Path, tmp_path: Path
) -> None:
    small = [
        *("--config-name", "simclr_banded", "data=digits", "optimizer.batch_size=16"),
        *("max_epochs=1", "++limit_train_batches=4", "++limit_val_batches=1", "negatives=all"),
        *("++enable_progress_bar=false", "++log_every_n_steps=1", "backbone.name=resnet18"),
    ]
    share = "{from: 0.0, to: 0.8, epochs: [0, 1]}"
    run = command(site, tmp_path, "pretrain", *small, f"+negatives.drop_random.share={share}").ok()
    (metrics,) = Path(tmp_path).rglob("metrics.csv")
    header, *rows = (line.split(",") for line in metrics.read_text().splitlines())
    column = header.index("negatives/present_step")
    present = [float(row[column]) for row in rows if row[column]]
    assert present[0] == 30  # of 2 * 16 - 2 negatives, none is dropped at first
    assert present == sorted(present, reverse=True)
    assert 8 < present[-1] < 16  # 60 % are at three quarters of the epoch
    assert "Run folder" in run.text


def test_what_it_refuses_names_its_arguments(site: Path, tmp_path: Path) -> None:
    arguments = ["--config-name", "simclr_banded", "data=digits", "negatives=all"]
    run = command(site, tmp_path, "pretrain", *arguments, "+negatives.drop_random.shares=0.5")
    assert run.code != 0
    known = "Known: from_epoch, share, until_epoch"
    assert f"negatives.drop_random: unknown argument 'shares'. Did you mean 'share'? {known}" in (
        run.err
    )
