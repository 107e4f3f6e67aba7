"""NaN and infinity, in an image, a weight or the loss: said where, and kept out of the queue."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from solo_hardneg.errors import DivergedError, HardnegError
from solo_hardneg.methods import finite

Maker = Callable[..., Any]
FAMILIES = ["mocov2_banded", "simclr_banded"]
BAD = [float("nan"), float("inf"), float("-inf")]


class Spoil(Callback):
    """Before a step: puts a value into a weight, or into an image of the batch."""

    def __init__(self, step: int, value: float, what: str) -> None:
        self.step, self.value, self.what = step, value, what
        self.seen: list[int] = []
        self.before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step:
            return
        self.before = copy.deepcopy(module.state_dict())
        if self.what == "image":
            batch[1][1][2, 0, 3, 3] = self.value
            self.seen = batch[0].tolist()
        else:
            with torch.no_grad():
                dict(module.named_parameters())[self.what].view(-1)[0] = self.value


def spoiled(fit: Maker, model: Any, spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> str:
    callbacks = lambda: [spoil]  # noqa: E731
    monkeypatch.setattr("solo_hardneg.plugin.callbacks", callbacks)
    module = "lightning.pytorch.trainer.connectors.callback_connector"
    monkeypatch.setattr(f"{module}._load_external_callbacks", lambda group: callbacks())
    with pytest.raises(DivergedError) as raised:
        fit(model)
    assert isinstance(raised.value, HardnegError)
    return str(raised.value)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("method", FAMILIES)
def test_an_image(
    model: Maker, fit: Maker, monkeypatch: pytest.MonkeyPatch, method: str, value: float
) -> None:
    ours, spoil = model(method=method, negatives={}), Spoil(2, value, "image")
    told = spoiled(fit, ours, spoil, monkeypatch)
    assert told.startswith(
        "Step 2: not all that was computed is finite. rank 0: 1 of its 4 images hold NaN or "
        f"infinity (indexes {spoil.seen[2]}). Nothing of this step is kept"
    )
    assert len(ours.losses) == 2
    unchanged(ours, spoil)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("method", FAMILIES)
def test_a_weight(
    model: Maker, fit: Maker, monkeypatch: pytest.MonkeyPatch, method: str, value: float
) -> None:
    ours, spoil = model(method=method, negatives={}), Spoil(1, value, "projector.0.weight")
    told = spoiled(fit, ours, spoil, monkeypatch)
    # Infinity may vanish in a ReLU, and come back as a gradient.
    found = re.match(
        r"Step (\d): .* rank 0: its images are finite, its weights are not \((.*?)\)\.", told
    )
    assert found is not None
    if value != value or found[1] == "1":
        assert found.groups() == ("1", "projector.0.weight")
        unchanged(ours, spoil)


def unchanged(ours: Any, spoil: Spoil) -> None:
    """The queue, where there is one, is as it was before the step, and finite."""
    for name, value in ours.state_dict().items():
        if name.startswith("queue"):
            assert torch.equal(value, spoil.before[name]), name
            assert value.isfinite().all()


def test_many_names_are_cut_short(model: Maker) -> None:
    ours = model(negatives={})
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"\(\S+, \S+, \S+, \S+, \S+, ... \d+ in all\)"):
        finite.check_weights(ours.state_dict(), 3)


def test_a_checkpoint_is_not_replaced_by_one_that_is_not_finite(
    model: Maker, fit: Maker, tmp_path: Path
) -> None:
    ours = model(negatives={})
    trainer = fit(ours)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    good = (tmp_path / "one.ckpt").read_bytes()
    with torch.no_grad():
        ours.classifier.weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"Step 4, rank 0: .*\(classifier.weight\), and no"):
        trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert (tmp_path / "one.ckpt").read_bytes() == good


@pytest.mark.parametrize("value", BAD)
def test_a_loss(value: float) -> None:
    finite.check_loss(torch.tensor([0.0, 1e30]), 5)
    with pytest.raises(DivergedError, match=r"Step 5, rank 0: the loss is .*finite. Raise method_"):
        finite.check_loss(torch.tensor([0.0, value]), 5)


def test_finite_outputs_pass() -> None:
    batch = [torch.arange(2), [torch.zeros(2, 3, 4, 4)], torch.zeros(2)]
    zero, module = torch.tensor(0.0), torch.nn.Linear(1, 1)
    finite.check_outputs(module, batch, [torch.zeros(2), torch.tensor(1e38)], zero, 0)
    with pytest.raises(DivergedError, match="what the network makes of them is not"):
        finite.check_outputs(module, batch, [torch.tensor(torch.inf)], zero, 0)


def test_the_classifiers_loss_counts_where_there_are_labels() -> None:
    """solo-learn's is NaN where there are none."""
    module, nothing = torch.nn.Linear(1, 1), torch.tensor(torch.nan)
    for targets, counts in ([-1, -1], False), ([-1, 0], True):
        batch = [torch.arange(2), [torch.zeros(2, 3, 4, 4)], torch.tensor(targets)]
        if counts:
            with pytest.raises(DivergedError):
                finite.check_outputs(module, batch, [torch.zeros(2)], nothing, 0)
        else:
            finite.check_outputs(module, batch, [torch.zeros(2)], nothing, 0)
