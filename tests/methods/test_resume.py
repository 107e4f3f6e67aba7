"""Saving in the middle and going on: the same losses, or a refusal that says why."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solo_hardneg.errors import CheckpointError
from solo_hardneg.methods import fingerprint, rng

Maker = Callable[..., Any]
STEPS = 4


@pytest.mark.parametrize(
    "overrides",
    [
        ["negatives=hardest_5", "negatives.keep.band=[0.5,1.0]"],
        ["negatives=drop_same_class", "method_kwargs.symmetric=true"],
    ],
)
def test_a_resumed_run_gives_the_losses_it_would_have_given(
    model: Maker, fit: Maker, tmp_path: Path, overrides: list[str]
) -> None:
    whole = model(*overrides)
    fit(whole, epochs=4)
    assert len(set(whole.losses)) == len(whole.losses)

    # A scheduler that knows of four epochs; stopped after two.
    first = model(*overrides)
    checkpoint = tmp_path / "half.ckpt"
    first.on_train_epoch_end = lambda: (
        first.trainer.save_checkpoint(checkpoint) if first.trainer.current_epoch == 1 else None
    )
    fit(first, epochs=4)
    second = model(*overrides)
    random.seed(99), np.random.seed(99)
    fit(second, epochs=4, ckpt_path=str(checkpoint))
    assert second.batches == whole.batches[2 * STEPS :]
    assert second.losses == whole.losses[2 * STEPS :]
    assert torch.equal(second.queue, whole.queue)


def test_without_the_random_states_it_would_not(model: Maker, fit: Maker, tmp_path: Path) -> None:
    """The test above can fail."""
    whole = model()
    whole.on_train_epoch_end = lambda: (
        whole.trainer.save_checkpoint(tmp_path / "half.ckpt")
        if whole.trainer.current_epoch == 1
        else None
    )
    fit(whole, epochs=4)
    second = model()
    second.on_load_checkpoint = lambda checkpoint: None
    fit(second, epochs=4, ckpt_path=str(tmp_path / "half.ckpt"))
    assert second.batches != whole.batches[2 * STEPS :]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["negatives=easiest_95"], r'negatives: .*"band": \[0.95, 1.0\]\}\} there, .*0.0, 0.95'),
        (["method_kwargs.symmetric=true"], "symmetric: false there, true here"),
        (["method_kwargs.temperature=0.07"], "temperature: 0.2 there, 0.07 here"),
        (["method_kwargs.queue_size=16"], "queue_size: 12 there, 16 here"),
    ],
)  # fmt: skip
def test_another_policys_checkpoint_is_refused_with_the_way_out(
    model: Maker, fit: Maker, tmp_path: Path, other: list[str], message: str
) -> None:
    path = tmp_path / "one.ckpt"
    fit(model()).save_checkpoint(path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=message) as refused:
        fit(model(*other), epochs=2, ckpt_path=str(path))
    assert "name=" in str(refused.value)
    assert "auto_resume.enabled=False" in str(refused.value)
    assert path.read_bytes() == before


def test_the_order_of_the_verbs_is_part_of_the_identity() -> None:
    drop, keep = {"drop": {"band": [0.8, 1.0]}}, {"keep": {"band": [0.5, 1.0]}}
    checkpoint: dict[str, Any] = {}
    fingerprint.write(checkpoint, {"negatives": drop | keep})
    fingerprint.verify(checkpoint, {"negatives": drop | keep})
    with pytest.raises(CheckpointError, match=r'\{"drop": .* there, \{"keep": .* here'):
        fingerprint.verify(checkpoint, {"negatives": keep | drop})


def test_checkpoints_without_identity_or_of_another_format(
    model: Maker, fit: Maker, tmp_path: Path
) -> None:
    path = tmp_path / "one.ckpt"
    fit(model()).save_checkpoint(path)
    stored = torch.load(path, weights_only=True)  # tensors and plain values only
    stored["solo_hardneg"]["version"] = 99
    torch.save(stored, path)
    with pytest.raises(CheckpointError, match="version 99"):
        fit(model(), epochs=2, ckpt_path=str(path))
    del stored["solo_hardneg"]
    torch.save(stored, path)
    with pytest.raises(CheckpointError, match="not one of a solo-hardneg method"):
        fit(model(), epochs=2, ckpt_path=str(path))


def test_random_states_come_back() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(),
                torch.rand(1).item()]  # fmt: skip

    random.gauss(0, 1), np.random.randn()  # both keep the second half of a pair
    saved = rng.state()
    drawn = draw()
    assert draw() != drawn
    rng.restore(saved)
    assert draw() == drawn
    assert rng.states_of_all_ranks()[0].keys() == saved.keys()


def test_the_momentum_goes_on_where_it_was(model: Maker, fit: Maker, tmp_path: Path) -> None:
    moco = model("momentum.base_tau=0.5", "momentum.final_tau=1.0")
    fit(moco).save_checkpoint(tmp_path / "one.ckpt")
    resumed = model("momentum.base_tau=0.5", "momentum.final_tau=1.0")
    taus: list[float] = []
    step = resumed.momentum_updater.update
    resumed.momentum_updater.update = lambda *pair: (
        taus.append(resumed.momentum_updater.cur_tau),
        step(*pair),
    )
    fit(resumed, epochs=2, ckpt_path=str(tmp_path / "one.ckpt"))
    assert min(taus) == pytest.approx(0.75)  # half of the way from 0.5 to 1 by a cosine
