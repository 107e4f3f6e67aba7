"""NaN and infinity in an image, a weight or the loss: located, and kept out of the queue."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from solo_hardneg import losses
from solo_hardneg.errors import DivergedError, HardnegError
from solo_hardneg.methods import finite

Maker = Callable[..., Any]
BAD = pytest.mark.parametrize(
    ("method", "value"), [("mocov2_banded", float("nan")), ("simclr_banded", float("-inf"))]
)


class Spoil(Callback):
    """Before a step, writes a value into a weight or into an image of the batch."""

    def __init__(self, step: int, value: float, what: str) -> None:
        self.step, self.value, self.what = step, value, what
        self.indexes: list[int] = []
        self.before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step:
            return
        self.before = copy.deepcopy(module.state_dict())
        if self.what == "image":
            batch[1][1][2, 0, 3, 3] = self.value
            self.indexes = batch[0].tolist()
        else:
            with torch.no_grad():
                dict(module.named_parameters())[self.what].view(-1)[0] = self.value


def error_of(fit: Maker, model: Any, spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> str:
    module = "lightning.pytorch.trainer.connectors.callback_connector"
    monkeypatch.setattr(f"{module}._load_external_callbacks", lambda group: [spoil])
    with pytest.raises(DivergedError) as raised:
        fit(model)
    assert isinstance(raised.value, HardnegError)
    return str(raised.value)


@BAD
def test_bad_image_is_named(
    model: Maker, fit: Maker, monkeypatch: pytest.MonkeyPatch, method: str, value: float
) -> None:
    ours, spoil = model(method=method, negatives={}), Spoil(2, value, "image")
    text = error_of(fit, ours, spoil, monkeypatch)
    assert text.startswith(
        "Step 2: not all outputs are finite. rank 0: 1 of its 4 images hold NaN or infinity "
        f"(indexes {spoil.indexes[2]}). Weights and queue are unchanged"
    )
    assert len(ours.losses) == 3  # found after the third step's backward pass
    check_unchanged(ours, spoil)


@BAD
def test_bad_weight_is_named(
    model: Maker, fit: Maker, monkeypatch: pytest.MonkeyPatch, method: str, value: float
) -> None:
    ours, spoil = model(method=method, negatives={}), Spoil(1, value, "projector.0.weight")
    text = error_of(fit, ours, spoil, monkeypatch)
    # Infinity may vanish in a ReLU and return as a gradient.
    found = re.match(
        r"Step (\d): .* rank 0: its images are finite, its weights are not \((.*?)\)\.", text
    )
    assert found is not None
    if value != value or found[1] == "1":
        assert found.groups() == ("1", "projector.0.weight")
        check_unchanged(ours, spoil)


def check_unchanged(ours: Any, spoil: Spoil) -> None:
    """Checks that the step changed neither queue nor weights."""
    trained = {name for name, parameter in ours.named_parameters()} - {spoil.what}
    for name, value in ours.state_dict().items():
        if name.startswith("queue"):
            assert value.isfinite().all()
        if name.startswith("queue") or name in trained:
            assert torch.equal(value, spoil.before[name]), name
    if hasattr(ours, "queue_filled"):
        assert ours.key_queue.filled == int(ours.queue_filled)


def test_long_lists_of_names_are_shortened(model: Maker) -> None:
    ours = model(negatives={})
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"\(\S+, \S+, \S+, \S+, \S+, ... \d+ in all\)"):
        finite.check_weights(ours.state_dict(), 3)


def test_last_finite_checkpoint_is_kept(model: Maker, fit: Maker, tmp_path: Path) -> None:
    ours = model(negatives={})
    trainer = fit(ours)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    good = (tmp_path / "one.ckpt").read_bytes()
    with torch.no_grad():
        ours.classifier.weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"Step 4, rank 0: .*\(classifier.weight\), and no"):
        trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert (tmp_path / "one.ckpt").read_bytes() == good


@BAD
def test_bad_loss_is_reported(
    model: Maker, fit: Maker, monkeypatch: pytest.MonkeyPatch, method: str, value: float
) -> None:
    ours, steps = model(method=method, negatives={}), []
    module = f"solo_hardneg.methods.{'moco' if method.startswith('moco') else 'simclr'}"
    name = "mocov2plus_loss_func" if method.startswith("moco") else "simclr_loss_func"
    loss_func = getattr(losses, name)

    def spoil(*args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(ours.global_step)
        loss = loss_func(*args, **kwargs)
        return loss + value if ours.global_step == 2 else loss

    monkeypatch.setattr(f"{module}.{name}", spoil)
    with pytest.raises(DivergedError, match=r"Step 2, rank 0: the loss is .*finite. Raise method_"):
        fit(ours)
    assert max(steps) == 2
    for name, tensor in ours.state_dict().items():
        assert tensor.isfinite().all(), name


def test_cause_is_the_network_if_images_and_weights_are_finite() -> None:
    batch = [torch.arange(2), [torch.zeros(2, 3, 4, 4)], torch.zeros(2)]
    module = torch.nn.Linear(1, 1)
    finite.check_outputs([1.0], module, batch, 0)
    with pytest.raises(DivergedError, match="the network's outputs are not"):
        finite.check_outputs([0.0], module, batch, 0)


@pytest.mark.parametrize(
    ("vectors", "class_loss", "targets", "expected"),
    [
        ([1e38, 0.0], 0.0, [0, 0], True),
        ([0.0, torch.inf], 0.0, [0, 0], False),
        ([0.0, 0.0], torch.nan, [-1, 0], False),
        ([0.0, 0.0], torch.nan, [-1, -1], True),  # solo-learn's loss without labels
    ],
)
def test_outputs_finite(vectors: Any, class_loss: float, targets: Any, expected: bool) -> None:
    tensors = [torch.tensor([v]) for v in vectors]
    found = finite.outputs_finite(tensors, torch.tensor(class_loss), torch.tensor(targets))
    assert bool(found) is expected
