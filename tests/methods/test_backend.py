"""The setting ``backend``: what it chooses, what it refuses, and that no queue is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from solo_hardneg.errors import ConfigError
from solo_hardneg.methods import moco as moco_module
from solo_hardneg.negatives import registry
from solo_hardneg.negatives.pool import Pool

Maker = Callable[..., Any]
MIX = {"mix": {"hardest": 2, "pairs": 3}}


@pytest.fixture(autouse=True)
def somebody_elses_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))

    @registry.register("upside_down", summary="a policy of somebody else's")
    class UpsideDown:
        def __call__(self, pool: Pool) -> Pool:
            return pool


@pytest.mark.parametrize(
    ("method", "negatives"),
    [
        ("mocov2_sscl", {"keep": {"band": [0.5, 1.0]}, **MIX, "reweight": 0.2}),
        ("simclr_sscl", {**MIX, "reweight": 1.0, "debias": 0.1}),
    ],
)
def test_training_is_the_same_by_each_and_whether_it_is_shown_or_not(
    model: Maker, fit: Maker, method: str, negatives: dict[str, Any]
) -> None:
    def trained(backend: str, shown: bool) -> Any:
        ours = model(f"++backend={backend}", method=method, negatives=negatives)
        if not shown:
            ours.observers.clear()
        fit(ours, epochs=2)
        return ours

    dense, chunked, hidden = (
        trained(*how) for how in (("dense", True), ("chunked", True), ("chunked", False))
    )
    torch.testing.assert_close(chunked.losses, dense.losses, rtol=1e-4, atol=1e-5)
    for one, other in zip(chunked.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for one, other in zip(chunked.pools, dense.pools, strict=True):
        assert torch.equal(one.present, other.present)
    assert hidden.losses == chunked.losses
    assert not hidden.pools
    for one, other in zip(hidden.parameters(), chunked.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("backend", "symmetric"), [("dense", False), ("chunked", True)])
def test_the_queue_is_not_copied_and_the_gradient_is_right(
    model: Maker,
    batch: Maker,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    symmetric: bool,
) -> None:
    chosen = f"backend={backend}", f"method_kwargs.symmetric={symmetric}", "negatives=all"
    gradients = []
    for copied in (False, True):
        torch.manual_seed(0)
        ours = model(*chosen)
        given: list[Tensor] = []
        loss_of = moco_module.mocov2plus_loss_func

        def watched(
            query: Tensor,
            key: Tensor,
            *,
            queue: Tensor,
            loss_of: Any = loss_of,
            given: list[Tensor] = given,
            copied: bool = copied,
            **how: Any,
        ) -> Tensor:
            given.append(queue)
            return loss_of(query, key, queue=queue.clone() if copied else queue, **how)

        with monkeypatch.context() as patch:
            patch.setattr(moco_module, "mocov2plus_loss_func", watched)
            ours.training_step(batch(), 0)
            loss = ours.training_step(batch(), 1)
        before = ours.queue.clone()
        ours.enqueue(torch.ones(before.shape[0], 4, 8), torch.zeros(4), torch.zeros(4))
        assert not torch.equal(ours.queue, before)  # it is written to before the backward pass
        loss.backward()
        assert all(queue.untyped_storage().data_ptr() == _memory(ours.queue) for queue in given)
        gradients.append([p.grad for p in ours.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_a_key_of_the_queue_lies_in_one_piece(model: Maker) -> None:
    moco = model()
    assert moco.queue.shape == (1, 8, 12)
    assert moco.queue[0].T.is_contiguous()
    moco.load_state_dict({**moco.state_dict(), "queue": torch.ones(1, 8, 12)})
    assert moco.queue[0].T.is_contiguous()
    assert moco.double().queue[0].T.is_contiguous()


@pytest.mark.parametrize("chosen", ["auto", "chunked"])
def test_it_is_said_once_for_each(
    model: Maker, fit: Maker, capsys: pytest.CaptureFixture[str], chosen: str
) -> None:
    fit(model(f"backend={chosen}", "negatives=all"), epochs=2)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Backend")]
    dense = f"Backend of the loss: dense (backend={chosen})"  # of the queue that is still empty
    other = [] if chosen == "auto" else ["Backend of the loss: chunked (backend=chunked)"]
    assert said == [dense, *other]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backend=chunkd"], "backend: unknown backend 'chunkd'.*Did you mean 'chunked'"),
        (
            ["backend=chunked", "+negatives.upside_down={}"],
            "backend=chunked: negatives.upside_down is a policy that only backend=dense can follow",
        ),
        (["backend=triton", "+negatives.keep.label=same"], r"backend=triton: .*Set backend=auto"),
        (["backend=numba", "+negatives.fill=older"], "backend=numba: knows no reserve"),
        (["+bakend=chunked"], "bakend: is not read by anything. Did you mean 'backend'"),
    ],
)
def test_impossible_choices_end_at_the_start(
    model: Maker, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model(*overrides)


def test_a_scheduled_verb_is_checked_in_its_epoch(model: Maker) -> None:
    late = "+negatives.upside_down={from_epoch: 3}"
    with pytest.raises(ConfigError, match="upside_down is a policy that only"):
        model("backend=chunked", late)
    assert model("backend=auto", late).backend == "auto"


def test_a_config_from_before_has_none(model: Maker) -> None:
    assert model("~backend").backend == "auto"
