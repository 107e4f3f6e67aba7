"""A real run, studied by the command as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration_helpers import run_python

from solo_hardneg.analysis.study import load


@pytest.mark.full
def test_a_run_of_the_standalone_host_is_studied_from_the_command_line(tmp_path: Path) -> None:
    alone = {"SOLO_HARDNEG_HOST": "standalone"}
    small = ["data=digits", "max_epochs=1", "+limit_train_batches=4", "+limit_val_batches=1"]
    train = ["pretrain", "--config-name", "mocov2_banded", *small, "optimizer.batch_size=32"]
    train += ["method_kwargs.queue_size=64", "checkpoint.dir=runs", "accelerator=cpu"]
    run_python("-m", "solo_hardneg", *train, cwd=tmp_path, env=alone).ok()
    (folder,) = (tmp_path / "runs" / "mocov2_banded").iterdir()
    settings = ["queries=100", "negatives=200", "percentiles=20", "device=cpu"]
    done = run_python("-m", "solo_hardneg", "analyze", folder, *settings, cwd=tmp_path).ok()
    assert "MoCo v2: hardest_5" in done.out
    one = load(folder / "analysis" / "study.npz")
    # even an untrained network finds like digits alike
    assert one.scalars["same_class/hardest_5"] > 2 * one.scalars["same_class/easiest_95"]
    assert one.info["projector"] is True
    wrong = run_python("-m", "solo_hardneg", "analyze", folder, "querys=1", cwd=tmp_path)
    assert wrong.code == 1
    assert (
        wrong.err.strip()
        .splitlines()[-1]
        .startswith("ConfigError: analyze: unknown setting 'querys'.")
    )
