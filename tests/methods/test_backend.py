"""The key ``backend``: equal training, refusals, and no copy of the queue."""

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
def third_party_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))

    @registry.register("upside_down", summary="a third party's verb")
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
def test_training_is_equal_for_each_backend_and_with_or_without_observers(
    model: Maker, fit: Maker, method: str, negatives: dict[str, Any]
) -> None:
    def train(backend: str, observed: bool) -> Any:
        ours = model(f"++backend={backend}", method=method, negatives=negatives)
        if not observed:
            ours.observers.clear()
        fit(ours, epochs=2)
        return ours

    dense, chunked = train("dense", observed=True), train("chunked", observed=True)
    unobserved = train("chunked", observed=False)
    torch.testing.assert_close(chunked.losses, dense.losses, rtol=1e-4, atol=1e-5)
    for one, other in zip(chunked.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for one, other in zip(chunked.pools, dense.pools, strict=True):
        assert torch.equal(one.present, other.present)
    assert unobserved.losses == chunked.losses
    assert not unobserved.pools
    for one, other in zip(unobserved.parameters(), chunked.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("backend", "symmetric"), [("dense", False), ("chunked", True)])
def test_queue_is_not_copied_and_the_gradient_is_correct(
    model: Maker,
    batch: Maker,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    symmetric: bool,
) -> None:
    overrides = f"backend={backend}", f"method_kwargs.symmetric={symmetric}", "negatives=all"
    gradients = []
    for copied in (False, True):
        torch.manual_seed(0)
        ours = model(*overrides)
        queues: list[Tensor] = []
        loss_func = moco_module.mocov2plus_loss_func

        def record(
            query: Tensor,
            key: Tensor,
            *,
            queue: Tensor,
            loss_func: Any = loss_func,
            queues: list[Tensor] = queues,
            copied: bool = copied,
            **kwargs: Any,
        ) -> Tensor:
            queues.append(queue)
            return loss_func(query, key, queue=queue.clone() if copied else queue, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(moco_module, "mocov2plus_loss_func", record)
            ours.training_step(batch(), 0)
            loss = ours.training_step(batch(), 1)
        before = ours.queue.clone()
        ours.key_queue.enqueue(torch.ones(before.shape[0], 4, 8), torch.zeros(4), torch.zeros(4))
        assert not torch.equal(ours.queue, before)  # overwritten before the backward pass
        loss.backward()
        assert {queue.untyped_storage().data_ptr() for queue in queues} == {
            ours.queue.untyped_storage().data_ptr()
        }
        gradients.append([p.grad for p in ours.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_each_key_of_the_queue_is_contiguous(model: Maker) -> None:
    moco = model()
    assert moco.queue.shape == (1, 8, 12)
    assert moco.queue[0].T.is_contiguous()
    moco.load_state_dict({**moco.state_dict(), "queue": torch.ones(1, 8, 12)})
    assert moco.queue[0].T.is_contiguous()
    assert moco.double().queue[0].T.is_contiguous()


@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_each_backend_is_printed_once(
    model: Maker, fit: Maker, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    fit(model(f"backend={backend}", "negatives=all"), epochs=2)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Backend")]
    dense = f"Backend of the loss: dense (backend={backend})"  # while the queue is empty
    other = [] if backend == "auto" else ["Backend of the loss: chunked (backend=chunked)"]
    assert printed == [dense, *other]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backend=chunkd"], "backend: unknown backend 'chunkd'.*Did you mean 'chunked'"),
        (
            ["backend=chunked", "+negatives.upside_down={}"],
            "backend=chunked: negatives.upside_down is a policy that only backend=dense can follow",
        ),
        (["backend=triton", "+negatives.keep.label=same"], r"backend=triton: .*Set backend=auto"),
        (["backend=numba", "+negatives.fill=older"], "backend=numba: supports no reserve"),
        (["+bakend=chunked"], "bakend: nothing reads this key. Did you mean 'backend'"),
    ],
)
def test_unsupported_backend_is_refused(model: Maker, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(*overrides)


def test_scheduled_verb_is_checked_in_its_epoch(model: Maker) -> None:
    late = "+negatives.upside_down={from_epoch: 3}"
    with pytest.raises(ConfigError, match="upside_down is a policy that only"):
        model("backend=chunked", late)
    assert model("backend=auto", late).backend == "auto"


def test_config_without_backend_uses_auto(model: Maker) -> None:
    assert model("~backend").backend == "auto"
