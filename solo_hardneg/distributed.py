"""Collectives, and errors and numbers shared among the ranks of a distributed run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from solo_hardneg import errors

T = TypeVar("T")


def get_world_size() -> int:
    """Returns the number of processes of the distributed run; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Returns this process's rank; 0 without a distributed run."""
    return dist.get_rank() if get_world_size() > 1 else 0


def keep_out_of_broadcast(module: nn.Module, buffers: Iterable[str]) -> None:
    """Excludes buffers from those that DDP broadcasts from rank 0 before each forward pass.

    They must be equal on all ranks by construction. ``DistributedDataParallel`` reads this private
    attribute of the wrapped module, in all PyTorch versions that we support.
    """
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    module._ddp_params_and_buffers_to_ignore = sorted(ignored | set(buffers))  # type: ignore[assignment]


class _Gather(torch.autograd.Function):
    """Differentiable all-gather; the backward pass sums the gradient over all ranks.

    ``torch.distributed.nn.functional.all_gather`` is deprecated, and its successor is missing in
    the oldest version that we support.
    """

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        context.rows = len(tensor)
        return _all_gather(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[get_rank() * context.rows :][: context.rows]


def gather(tensor: Tensor) -> Tensor:
    """Concatenates the tensors of all ranks along dimension 0, in rank order.

    Each rank's part gets the gradient summed over all ranks. The tensors must have equal shapes.
    Without a distributed run, returns the tensor itself.
    """
    if get_world_size() == 1:
        return tensor
    return _Gather.apply(tensor) if tensor.requires_grad else _all_gather(tensor)


def _all_gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor.contiguous()) for _ in range(get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim=0)


def gather_objects(value: T) -> list[T]:
    """Returns one object per rank, the same list on all. All ranks must call it together."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_or_none(work: Callable[[], T]) -> T:
    """Returns the result of ``work``, or raises on all ranks if it fails on any.

    If one rank raised alone, the others would wait in their next collective, with NCCL for half an
    hour. All ranks must call it together; ``work`` must contain no collective.

    Raises:
        HardnegError: The error of the first rank that failed, of the same class and text on all
            ranks; it names the rank unless all failed alike.
        Exception: The rank's own error, if it isn't one of this package's.
    """
    if get_world_size() == 1:
        return work()
    result: Any = None
    own: Exception | None = None
    try:
        result = work()
    except Exception as error:
        own = error
    reports = gather_objects(None if own is None else _class_and_text(own))
    failed = [(rank, report) for rank, report in enumerate(reports) if report is not None]
    if not failed:
        return result
    if own is not None and not isinstance(own, errors.HardnegError):
        raise own
    rank, (name, text) = failed[0]
    if len(set(reports)) > 1:
        text = f"Rank {rank}: {text}"
    raise getattr(errors, name)(text) from own


def _class_and_text(error: Exception) -> tuple[str, str]:
    """The error that other ranks raise: the name of a class of :mod:`.errors`, and the text."""
    names = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
    return (names[0], str(error)) if names else ("HardnegError", f"{type(error).__name__}: {error}")


def check_equal_on_ranks(what: str, tensors: Mapping[str, Tensor], epoch: int) -> None:
    """Compares tensors that must be equal on all ranks, by a digest; all must call it together.

    Args:
        what: What they are, in the singular, for the message.
        tensors: The tensors by name.
        epoch: The current epoch, for the message.

    Raises:
        RanksDifferError: Names the ranks that differ from rank 0.
    """
    if get_world_size() == 1:
        return
    digests = gather(torch.stack([digest(tensor) for tensor in tensors.values()])[None])
    different = {
        rank: [name for name, differs in zip(tensors, row, strict=True) if differs]
        for rank, row in enumerate((digests != digests[0]).tolist())
        if any(row)
    }
    if different:
        found = "; ".join(f"rank {r}: {', '.join(names)}" for r, names in different.items())
        raise errors.RanksDifferError(
            f"Epoch {epoch}: {what} differs between ranks. Different from rank 0's are, on "
            f"{found}. Resume from the last checkpoint, which gives all ranks those of rank 0; if "
            "it happens again, look for a faulty device, or for code of yours that writes to them "
            "on some ranks."
        )


def digest(tensor: Tensor) -> Tensor:
    """An int64 scalar of all bits of a tensor and of their places in its last dimension.

    Integer sums are exact in whatever order the device adds.
    """
    bits = tensor
    if tensor.is_floating_point():
        bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    above = tuple(range(bits.ndim - 1))
    sums = bits.sum(dim=above, dtype=torch.int64) if above else bits.long()
    places = 2 * torch.arange(len(sums), device=sums.device) + 1
    return (sums.remainder(1_000_003) * places).sum()  # stays below 2⁶³ up to a million slots


class StepReport:
    """A step's values, gathered from all ranks and copied to the CPU in the background.

    Creating one doesn't wait for the device. :meth:`read` waits for the forward pass only, if it
    is called while the backward pass runs.

    Args:
        values: This rank's tensors by name, on the device, of any shape; their means are gathered.
            The names must be equal on all ranks.

    Attributes:
        by_rank: (ranks, names) float32, on the device.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.names = tuple(values)
        means = torch.stack([value.detach().float().mean() for value in values.values()])
        self.by_rank = gather(means[None])
        cuda = self.by_rank.is_cuda  # other devices have no event for the end of the copy
        self._on_cpu = self.by_rank.to("cpu", non_blocking=cuda)
        self._copied: torch.cuda.Event | None = None
        if cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self.by_rank.device))

    def everywhere(self, *names: str) -> Tensor:
        """Returns a bool on the device: whether these values are above 0 on all ranks."""
        columns = [self.names.index(name) for name in names]
        return torch.stack([self.by_rank[:, column] for column in columns]).amin() > 0

    @property
    def means(self) -> dict[str, Tensor]:
        """Means over all ranks by name, on the device."""
        return dict(zip(self.names, self.by_rank.mean(dim=0).unbind(), strict=True))

    def read(self) -> dict[str, list[float]]:
        """Returns the values by name, one per rank. Waits until they are on the CPU."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self.names, self._on_cpu.T.tolist(), strict=True))
