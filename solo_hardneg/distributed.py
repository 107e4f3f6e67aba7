"""What losses and callbacks ask of a distributed run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from solo_hardneg import errors

T = TypeVar("T")


def get_world_size() -> int:
    """How many processes the distributed run has; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """This process's rank; 0 without a distributed run."""
    return dist.get_rank() if get_world_size() > 1 else 0


def keep_out_of_broadcast(module: nn.Module, buffers: Iterable[str]) -> None:
    """Keeps buffers of a module out of those that DDP sends from rank 0 before each forward pass.

    They must be equal on all ranks by construction. ``DistributedDataParallel`` reads this
    attribute of the module that it wraps, in all versions of PyTorch that we support.
    """
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    module._ddp_params_and_buffers_to_ignore = sorted(ignored | set(buffers))  # type: ignore[assignment]


class _Gather(torch.autograd.Function):
    """All ranks' tensors, concatenated; back flows the sum of all ranks' gradients of one's own.

    PyTorch's function for it (``torch.distributed.nn.functional.all_gather``) is deprecated, and
    its successor is not in the oldest version that we support.
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
    """Concatenates the tensors of all ranks along dimension 0, in the order of the ranks.

    Gradient flows back to every rank's part, summed over the ranks that use it. The tensors must
    have the same shape everywhere. Without a distributed run it is the tensor itself.
    """
    if get_world_size() == 1:
        return tensor
    return _Gather.apply(tensor) if tensor.requires_grad else _all_gather(tensor)


def _all_gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor.contiguous()) for _ in range(get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim=0)


def gather_objects(mine: T) -> list[T]:
    """One object per rank, the same list on every rank. All ranks must call it together."""
    if get_world_size() == 1:
        return [mine]
    everyones: list[Any] = [None] * get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


def all_or_none(work: Callable[[], T]) -> T:
    """Returns what ``work`` returns, or raises on all ranks if it fails on any.

    A rank that raised alone would leave the others waiting in their next collective, with NCCL for
    half an hour. All ranks must call it together; ``work`` must contain no collective.

    Raises:
        HardnegError: the error of the first rank that failed, of the same class and with the same
            text on all ranks; it names the rank unless all failed alike.
        Exception: the rank's own, where that is none of this package's errors.
    """
    if get_world_size() == 1:
        return work()
    result: Any = None
    own: Exception | None = None
    try:
        result = work()
    except Exception as error:
        own = error
    told = gather_objects(None if own is None else _described(own))
    failed = [(rank, found) for rank, found in enumerate(told) if found is not None]
    if not failed:
        return result
    if own is not None and not isinstance(own, errors.HardnegError):
        raise own
    rank, (kind, text) = failed[0]
    if len(set(told)) > 1:
        text = f"Rank {rank}: {text}"
    raise getattr(errors, kind)(text) from own


def _described(error: Exception) -> tuple[str, str]:
    """What other ranks raise for an error: a class of :mod:`solo_hardneg.errors`, and the text."""
    ours = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
    return (ours[0], str(error)) if ours else ("HardnegError", f"{type(error).__name__}: {error}")
