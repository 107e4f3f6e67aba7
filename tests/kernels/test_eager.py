"""Gradients that are taken at once."""

from __future__ import annotations

import torch

from solo_hardneg.kernels.eager import at_once


def square(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).sin().sum()


def test_value_and_gradient_are_the_same() -> None:
    one, other = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *both: 3 * at_once(square, *both), (one, other))
    assert at_once(square, one, other) == square(one, other)


def test_what_changes_afterwards_doesnt_matter() -> None:
    one, kept = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    loss = at_once(lambda x: (x * kept).square().sum(), one)
    kept.zero_()
    loss.backward()
    assert one.grad.tolist() == [8.0] * 3


def test_only_who_wants_a_gradient_gets_one() -> None:
    one, other = torch.ones(3, requires_grad=True), torch.ones(3)
    at_once(square, one, other).backward()
    assert one.grad is not None
    assert other.grad is None
    assert not at_once(square, other, other).requires_grad
    with torch.no_grad():
        assert not at_once(square, one, other).requires_grad


def test_an_input_that_is_not_used() -> None:
    one, other = (torch.ones(3, requires_grad=True) for _ in range(2))
    at_once(lambda x, y: x.sum(), one, other).backward()
    assert one.grad.tolist() == [1.0] * 3
    assert other.grad is None


def test_a_constant() -> None:
    one = torch.ones(3, requires_grad=True)
    loss = at_once(lambda x: torch.zeros(()), one)
    loss.backward()  # as an empty queue's loss
    assert one.grad is None
