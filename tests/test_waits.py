"""``watch`` against operations that are known to wait for a GPU, or not to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from waits import watch

from solo_hardneg import devices

CPU = torch.device("cpu")  # as in x.device


def _set(tensor: Tensor, index: Any, value: Any) -> None:
    tensor[index] = value


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "masked write of values": lambda x: _set(x, x > 0, torch.ones_like(x)[x.bool()]),
    "host index": lambda x: x[torch.tensor([0, 1])],
    "number at places": lambda x: _set(x, torch.arange(2, device=CPU), 0.0),
    "new from numbers": lambda x: torch.tensor([1, 2], device=x.device),
    "as_tensor": lambda x: torch.as_tensor(3.0, device=x.device),
    "new_tensor": lambda x: x.new_tensor([3.0]),
    "to the device": lambda x: torch.arange(3).to(x.device),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.new_ones(3, dtype=torch.long)),
    "fill by a tensor": lambda x: x.masked_fill(x > 0, x[0, 0]),
    "where with a host scalar": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
    "copy": lambda x: x.copy_(torch.rand(3, 4)),
    "host and device": lambda x: x + torch.rand(3, 4),
}
FREE: dict[str, Callable[[Tensor], Any]] = {
    "seed": lambda x: int(torch.randint(2**62, ())),
    "host arithmetic": lambda x: (torch.arange(3) * 2 + 1).tolist(),
    "sample on the host": lambda x: torch.rand(3, device="cpu").nonzero().tolist(),
    "device to itself": lambda x: x.to(x.device).to(x).to(torch.float64),
    "numbers in operations": lambda x: torch.where(x > 0, x * 2, 0.0).masked_fill(x < 0, 1.0),
    "host scalar as argument": lambda x: x * torch.tensor(2.0) + torch.as_tensor(1.0).log(),
    "factories on the device": lambda x: x + torch.arange(4, device=x.device) + x.new_ones(4),
    "number in a mask": lambda x: _set(x, x > 0, 0.0),
    "slices": lambda x: _set(x, (slice(None), slice(1)), x[:, 1:2]),
    "device index": lambda x: x[torch.arange(3, device=x.device), x.argmax(dim=1)],
    "sorting": lambda x: x.sort(dim=1, stable=True).values.topk(2).values.cumsum(dim=1),
}


@pytest.mark.parametrize("case", WAITS)
def test_waits_are_recorded_with_their_line(case: str) -> None:
    x = torch.rand(3, 4) + 0.5
    with watch() as seen:
        WAITS[case](x)
    assert seen.waits
    assert {event.where.split(":")[0] for event in seen.waits} == {"tests/test_waits.py"}
    assert not seen.collectives


@pytest.mark.parametrize("case", FREE)
def test_free_operations_are_not_recorded(case: str) -> None:
    x = torch.rand(3, 4)
    with watch() as seen:
        FREE[case](x)
    assert not seen.waits, str(seen)


def test_waits_of_the_backward_pass_are_recorded() -> None:
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            assert gradient.tolist()
            return gradient * float(gradient.sum())

    loss = Reading.apply(torch.ones(3, requires_grad=True)).sum()
    with watch() as seen:
        loss.backward()
    assert [event.what for event in seen.waits] == ["tolist", "_local_scalar_dense"]
    assert all("(backward)" in event.where for event in seen.waits)


def test_reads_are_free_for_host_tensors_only() -> None:
    x = torch.rand(3)
    with watch():
        assert not devices.reads_are_free(x * 2)
        assert devices.reads_are_free(torch.rand(3) * 2)
    assert devices.reads_are_free(x)


def test_pytorch_is_restored() -> None:
    before = torch.rand, torch.tensor, torch.Tensor.to, torch.Tensor.tolist
    with watch():
        pass
    assert (torch.rand, torch.tensor, torch.Tensor.to, torch.Tensor.tolist) == before


def test_collectives_are_recorded_with_line_and_size(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    x = torch.rand(3, 4)
    try:
        with watch() as seen:
            dist.all_reduce(x)
            dist.all_gather([torch.empty_like(x)], x)
            dist.broadcast(x[0], 0)
            dist._broadcast_coalesced(dist.group.WORLD, [x], 1000, 0)
            dist.barrier()
        with watch() as objects:
            dist.all_gather_object([None], "text")
    finally:
        dist.destroy_process_group()
    names = [event.what.rstrip("_") for event in seen.collectives]
    assert names == ["allreduce", "allgather", "broadcast", "broadcast", "barrier"]
    assert [event.numbers for event in seen.collectives][:4] == [12, 24, 4, 12]
    assert all(event.where.startswith("tests/test_waits.py:") for event in seen.collectives)
    assert not seen.waits
    assert len(objects.collectives) == 2
    assert objects.waits
