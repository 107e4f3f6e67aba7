"""Thresholds that our methods learn during training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from solo_hardneg.errors import CheckpointError

Maker = Callable[..., Any]
METHODS = ("mocov2_banded", "simclr_banded")
RATE = 0.4


def learned(**more: Any) -> dict[str, Any]:
    return {"drop": {"above": "learned", "share": 0.3, "rate": RATE, **more}}


@pytest.mark.parametrize("method", METHODS)
def test_each_image_has_its_own_threshold(model: Maker, fit: Maker, method: str) -> None:
    ours = model(method=method, negatives=learned())
    trainer = fit(ours, epochs=4, count=18)  # two images are left out of each epoch
    seen = torch.zeros(18)
    for batch in ours.batches:
        seen[batch] += 1
    if method.startswith("moco"):  # at the first step the queue is empty
        seen[ours.batches[0]] -= 1
    assert torch.equal(ours.threshold_moments[2], seen)
    assert len(ours.thresholds.unique()) > 4
    logged = trainer.callback_metrics
    assert 0 < logged["negatives/above_threshold"] < 1
    # A query lost those above the threshold that its image had before the step.
    last = ours.pools[-1]
    above = (
        (last.similarity > last.threshold[:, None]) & last.offered & (last.threshold < 1)[:, None]
    )
    assert torch.equal(last.dropped, above.sum(dim=1))
    assert last.dropped.sum() > 0


def test_thresholds_start_at_an_epoch(model: Maker, fit: Maker) -> None:
    ours = model(method="simclr_banded", negatives=learned(from_epoch=2))
    fit(ours, epochs=2)
    assert ours.get_buffer("thresholds").tolist() == [1.0] * 16
    ours = model(method="simclr_banded", negatives=learned(from_epoch=2))
    fit(ours, epochs=3)
    torch.testing.assert_close(ours.get_buffer("thresholds"), torch.full((16,), 1 - RATE))


def test_a_checkpoint_of_another_dataset_is_refused(
    model: Maker, fit: Maker, tmp_path: Path
) -> None:
    path = tmp_path / "one.ckpt"
    fit(model(negatives=learned())).save_checkpoint(path)
    with pytest.raises(CheckpointError, match="thresholds of 16 images, and this dataset has 20"):
        fit(model(negatives=learned()), epochs=2, ckpt_path=str(path), count=20)
    other = model("data.dataset=cifar10", negatives=learned())
    with pytest.raises(CheckpointError, match='dataset: "digits" there, "cifar10" here'):
        fit(other, epochs=2, ckpt_path=str(path))
