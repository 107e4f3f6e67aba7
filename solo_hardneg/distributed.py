"""The two things a contrastive loss asks of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """This process's rank; 0 without a distributed run."""
    return dist.get_rank() if _world() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """Concatenates the tensors of all ranks along dimension 0, in the order of the ranks.

    Gradient flows back to every rank's part, summed over the ranks that use it. The tensors must
    have the same shape everywhere. Without a distributed run it is the tensor itself.
    """
    if _world() == 1:
        return tensor
    if tensor.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(tuple(all_gather(tensor.contiguous())), dim=0)
    parts = [torch.empty_like(tensor) for _ in range(_world())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim=0)
