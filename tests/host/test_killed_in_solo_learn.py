"""A killed run of solo-learn's script resumes from solo-learn's checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_helpers import CLASSES, PER_CLASS
from killing import check_resumed, draw

pytestmark = [pytest.mark.full, pytest.mark.host, pytest.mark.timeout(900)]

EPOCHS, BATCH = 3, 4
STEPS = CLASSES * PER_CLASS // BATCH


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is removed afterwards: checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_killed_run_resumes_with_the_same_losses(
    solo_learn: Path, small: list[str], folder: Path
) -> None:
    command = [
        *(solo_learn / "main_pretrain.py", "--config-name", "mocov2_banded", *small),
        *("negatives=all", "method_kwargs.queue_size=16"),
        "+negatives.keep.band=[{from:0.0,to:0.3,epochs:[0,2]},1.0]",
        "+negatives.retain={strength:1.0,band:[0.5,1.0]}",
        "+negatives.mix={hardest:4,pairs:4,queries:2}",
        *(f"optimizer.batch_size={BATCH}", f"max_epochs={EPOCHS}", "scheduler.warmup_epochs=0"),
        *("checkpoint.frequency=1", "accelerator=cpu", "+enable_progress_bar=false"),
    ]
    # In the first half of an epoch, when no checkpoint is being written.
    middle = [step for step in range(STEPS, EPOCHS * STEPS) if 1 <= step % STEPS <= STEPS // 2]
    check_resumed(folder, command, EPOCHS, STEPS, draw("solo-learn", middle))
