"""A run killed at any step resumes from its checkpoint with the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import check_resumed, draw

EPOCHS, STEPS = 3, 4  # 143 of the digits, 32 at a time

SMALL = [
    "data=digits",
    "data.val_path=builtin",
    "+data.fraction=0.1",
    "+limit_val_batches=1",
    "optimizer.batch_size=32",
    f"max_epochs={EPOCHS}",
    "scheduler.warmup_epochs=0",
    "method_kwargs.proj_hidden_dim=32",
    "method_kwargs.proj_output_dim=16",
    "accelerator=cpu",
    "+enable_progress_bar=false",
]


ARGUMENTS = [
    "negatives=all",
    "method_kwargs.queue_size=128",
    "+negatives.retain={strength:1.0,band:[0.8,1.0]}",
    "+negatives.mix={hardest:16,pairs:16,queries:8}",
    "+negatives.debias.tau_plus=0.05",
]


@pytest.mark.full
def test_killed_run_resumes_with_the_same_losses(tmp_path: Path) -> None:
    method = "mocov2_banded"
    command = ["-m", "solo_hardneg", "pretrain", "--config-name", method, *SMALL, *ARGUMENTS]
    last = draw(method, range(STEPS + 1, (EPOCHS - 1) * STEPS + 1))
    check_resumed(tmp_path, command, EPOCHS, STEPS, last, SOLO_HARDNEG_HOST="standalone")
