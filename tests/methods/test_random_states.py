"""A resumed run draws the same numbers and gives the same losses as an uninterrupted one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from solo_hardneg.host import MoCoV2Plus, SimCLR
from solo_hardneg.methods import random_states

Maker = Callable[..., Any]
STEPS = 4  # per epoch

MIX = {"hardest": 3, "pairs": 4, "queries": 2}
LEARNED = {"above": "learned", "share": 0.3, "rate": 0.4, "from_epoch": 1}
EVERYTHING = {
    "keep": {"band": [{"from": 0.0, "to": 0.6, "epochs": [0.5, 3.5], "curve": "cosine"}, 1.0]},
    "mix": {**MIX, "until_epoch": 3.5},
    "reweight": {"beta": {"from": 0.0, "to": 1.0, "epochs": [0, 4]}},
    "debias": {"tau_plus": 0.01, "from_epoch": 2.25},
}


@pytest.mark.parametrize(
    ("method", "overrides", "negatives"),
    [
        ("mocov2_banded", [], {"drop": {"label": "same"}, "fill": "older"}),
        ("mocov2_sscl", ["symmetric=true"], {"retain": 1.0, **EVERYTHING}),
        ("simclr_sscl", [], EVERYTHING),
        ("simclr_banded", [], {"drop": LEARNED}),
        ("mocov2_banded", [], {"drop": {**LEARNED, "label": "same"}, "fill": "older"}),
    ],
)
@pytest.mark.filterwarnings("ignore:negatives.fill")
def test_resumed_run_gives_the_same_losses(
    model: Maker,
    fit: Maker,
    tmp_path: Path,
    method: str,
    overrides: list[str],
    negatives: dict[str, Any],
) -> None:
    overrides = [f"method_kwargs.{override}" for override in overrides]
    # The schedule has four epochs; the checkpoint is from the end of the second.
    whole = model(*overrides, method=method, negatives=negatives)
    checkpoint = tmp_path / "half.ckpt"
    whole.on_train_epoch_end = lambda: (
        whole.trainer.save_checkpoint(checkpoint) if whole.trainer.current_epoch == 1 else None
    )
    fit(whole, epochs=4)
    assert len(set(whole.losses)) == len(whole.losses) == 4 * STEPS

    resumed = model(*overrides, method=method, negatives=negatives)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    fit(resumed, epochs=4, ckpt_path=str(checkpoint))
    assert resumed.batches == whole.batches[2 * STEPS :]
    assert resumed.losses == whole.losses[2 * STEPS :]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_random_states_of_another_number_of_processes_are_ignored(
    model: Maker, fit: Maker, tmp_path: Path
) -> None:
    path = tmp_path / "one.ckpt"
    fit(model()).save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    batches = []
    for count in (0, 1, 2):
        torch.save({**stored, "solo_hardneg_rng": stored["solo_hardneg_rng"] * count}, path)
        resumed = model()
        fit(resumed, epochs=2, ckpt_path=str(path))
        batches.append(resumed.batches)
    assert batches[0] == batches[2] != batches[1]


def test_states_are_restored() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(),
                torch.rand(1).item()]  # fmt: skip

    random.gauss(0, 1), np.random.randn()  # both cache the second number of a pair
    saved = random_states.current_state()
    expected = draw()
    assert draw() != expected
    random_states.set_state(saved)
    assert draw() == expected
    assert random_states.states_of_all_ranks()[0].keys() == saved.keys()


@pytest.mark.parametrize(
    ("epoch", "restarting", "resuming", "expected"),
    [
        (1, False, False, True),
        (2, False, None, True),
        (0, False, False, False),
        (1, True, False, False),
        (1, False, True, False),
        (1, True, None, False),
    ],
)
def test_makes_iterator(
    epoch: int, restarting: bool, resuming: bool | None, expected: bool
) -> None:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(restarting=restarting))
    if resuming is not None:  # older versions of Lightning have no such attribute
        loop.is_resuming = resuming
    trainer = SimpleNamespace(current_epoch=epoch, fit_loop=loop)
    assert random_states.makes_iterator(trainer) is expected


def test_momentum_resumes_at_the_trainers_step(
    model: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """solo-learn would start from step 0."""
    monkeypatch.setattr(MoCoV2Plus, "on_train_start", lambda self: setattr(self, "last_step", 0))
    moco = model("momentum.base_tau=0.5", "momentum.final_tau=1.0")
    moco.trainer = SimpleNamespace(
        global_step=7,
        estimated_stepping_batches=14,
        num_training_batches=4,
        fit_loop=SimpleNamespace(),
    )
    moco.on_train_start()
    assert moco.last_step == 7
    assert moco.momentum_updater.cur_tau == pytest.approx(0.75)


@pytest.mark.parametrize("method", ["mocov2_banded", "simclr_banded"])
def test_host_hooks_are_called(
    model: Maker, fit: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    hooks = ["setup", "on_train_epoch_start", "on_save_checkpoint", "on_load_checkpoint"]
    called: list[str] = []
    for hook in hooks:
        host = MoCoV2Plus if method == "mocov2_banded" else SimCLR
        run = lambda self, *_, hook=hook: called.append(hook)  # noqa: E731
        monkeypatch.setattr(host, hook, run, raising=False)
    fit(model(method=method, negatives={})).save_checkpoint(tmp_path / "one.ckpt")
    fit(model(method=method, negatives={}), epochs=2, ckpt_path=str(tmp_path / "one.ckpt"))
    assert [*dict.fromkeys(called)] == hooks
    assert [called.count(hook) for hook in hooks] == [2, 2, 1, 1]
