"""Gradients computed in the forward pass."""

from __future__ import annotations

import torch

from solo_hardneg.kernels.fused_grad import precompute_grad


def square(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).sin().sum()


def test_value_and_gradient() -> None:
    one, other = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *both: 3 * precompute_grad(square, *both), (one, other))
    assert precompute_grad(square, one, other) == square(one, other)


def test_inputs_may_change_afterwards() -> None:
    one, other = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    loss = precompute_grad(lambda x: (x * other).square().sum(), one)
    other.zero_()
    loss.backward()
    assert one.grad.tolist() == [8.0] * 3


def test_only_inputs_that_require_a_gradient_get_one() -> None:
    one, other = torch.ones(3, requires_grad=True), torch.ones(3)
    precompute_grad(square, one, other).backward()
    assert one.grad is not None
    assert other.grad is None
    assert not precompute_grad(square, other, other).requires_grad
    with torch.no_grad():
        assert not precompute_grad(square, one, other).requires_grad


def test_unused_input() -> None:
    one, other = (torch.ones(3, requires_grad=True) for _ in range(2))
    precompute_grad(lambda x, y: x.sum(), one, other).backward()
    assert one.grad.tolist() == [1.0] * 3
    assert other.grad is None


def test_constant_loss() -> None:
    one = torch.ones(3, requires_grad=True)
    loss = precompute_grad(lambda x: torch.zeros(()), one)
    loss.backward()  # as with an empty queue
    assert one.grad is None
