"""Losses that know their gradient when they are made.

The backward pass then only scales it, so nothing of the forward pass has to be kept: no N×M
similarities, and no copy of a queue that is written to in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
Compute = Callable[[Sequence[bool]], tuple[Tensor, Gradients]]


class _GradientNow(torch.autograd.Function):
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
                "This loss took its gradient in the forward pass, so it has no second derivative "
                "(create_graph=True). For one, call solo_hardneg.losses' function yourself, with "
                "backend='dense'."
            )
        gradients = iter(context.saved_tensors)
        return None, *((upstream * next(gradients)) if w else None for w in context.wanted)


def with_gradient(compute: Compute, *inputs: Tensor) -> Tensor:
    """A scalar whose gradient to the inputs is made together with it.

    Args:
        compute: takes which of the inputs want a gradient, and gives the scalar and, for each
            input, its gradient or ``None``. It runs without recording.
        inputs: what the scalar depends on.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _GradientNow.apply(compute, *inputs)
    with torch.no_grad():
        return compute([False] * len(inputs))[0]


def at_once(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, a scalar, whose gradient PyTorch takes now instead of later.

    So the function may use what will have changed by the time of the backward pass.
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

    return with_gradient(compute, *inputs)
