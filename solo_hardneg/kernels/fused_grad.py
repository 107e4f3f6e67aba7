"""Losses whose gradient is computed in the forward pass.

The backward pass only scales that gradient, so it needs nothing else from the forward pass: no N×M
similarities, and no copy of a queue that is overwritten in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
Compute = Callable[[Sequence[bool]], tuple[Tensor, Gradients]]


class _FusedGrad(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, compute: Compute, *inputs: Tensor) -> Tensor:
        value, gradients = compute([tensor.requires_grad for tensor in inputs])
        context.wanted = [gradient is not None for gradient in gradients]
        context.save_for_backward(*(g for g in gradients if g is not None))
        return value

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "The gradient of this loss was computed in the forward pass, so it has no second "
                "derivative (create_graph=True). For second derivatives, call the function in "
                "solo_hardneg.losses yourself, with backend='dense'."
            )
        gradients = iter(context.saved_tensors)
        return None, *((upstream * next(gradients)) if w else None for w in context.wanted)


def with_fused_grad(compute: Compute, *inputs: Tensor) -> Tensor:
    """Returns a scalar computed together with its gradient.

    Args:
        compute: Takes whether each input needs a gradient; returns the scalar and, for each input,
            its gradient or ``None``. It runs without autograd.
        inputs: Tensors that the scalar depends on.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _FusedGrad.apply(compute, *inputs)
    with torch.no_grad():
        return compute([False] * len(inputs))[0]


def precompute_grad(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Returns the scalar ``function(*inputs)``, and lets PyTorch compute its gradient now.

    So the function may use tensors that are overwritten before the backward pass.
    """

    def compute(wanted: Sequence[bool]) -> tuple[Tensor, Gradients]:
        pairs = list(zip(inputs, wanted, strict=True))
        leaves = [tensor.detach().requires_grad_(want) for tensor, want in pairs]
        with torch.set_grad_enabled(any(wanted)):
            value = function(*leaves)
        sources = [leaf for leaf in leaves if leaf.requires_grad]
        if not sources or not value.requires_grad:
            return value.detach(), [None] * len(leaves)
        found = iter(torch.autograd.grad(value, sources, allow_unused=True))
        return value.detach(), [next(found) if leaf.requires_grad else None for leaf in leaves]

    return with_fused_grad(compute, *inputs)
