"""Which verbs of third parties the kernels follow, by their descriptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_helpers import moco
from torch import Tensor

from solo_hardneg.errors import ConfigError
from solo_hardneg.kernels import dispatch
from solo_hardneg.kernels.compile import compile_policy
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import LossStats, Pool, Verb, build, register
from solo_hardneg.negatives.select import Keep

pytestmark = pytest.mark.usefixtures("scratch")


class Sharpen(Verb):
    """A described verb."""

    described = True
    beta = 0.5

    def __call__(self, pool: Pool) -> Pool:
        return replace(pool, beta=pool.beta + self.beta)


class HardestTenth(Keep):
    """Inherits its description from ``Keep``."""

    def __init__(self, band: Any = (0.9, 1.0)) -> None:
        super().__init__(band=band)


class KeepPositive(Keep):
    """Overrides ``__call__`` alone, so the description of ``Keep`` isn't its own."""

    def __call__(self, pool: Pool) -> Pool:
        return pool.only(pool.similarity > 0)


class DropNegative:
    """A plain callable."""

    def __call__(self, pool: Pool) -> Pool:
        return pool.only(pool.similarity > 0)


def loss_and_gradient(config: dict[str, Any], backend: str) -> tuple[Tensor, Tensor, str]:
    """The loss, its gradient by the queries, and the backend that computed it."""
    query, key, queue = moco(n=9, m=200, d=8)
    query.requires_grad_()
    stats: list[LossStats] = []
    loss = mocov2plus_loss_func(
        query, key, queue, 0.2, policy=build(config), backend=backend, report=stats.append
    )
    loss.backward()
    assert query.grad is not None
    return loss.detach(), query.grad, stats[0].backend


@pytest.mark.parametrize("factory", [Sharpen, HardestTenth])
@pytest.mark.parametrize("backend", ["chunked", "numba"])
def test_kernels_follow_a_described_verb(factory: Callable[..., Verb], backend: str) -> None:
    register("mine")(factory)
    expected, expected_gradient, _ = loss_and_gradient({"mine": {}}, "dense")
    loss, gradient, used = loss_and_gradient({"mine": {}}, backend)
    assert used == backend
    assert loss != loss_and_gradient({}, "dense")[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_a_subclass_that_inherits_its_description_is_followed_by_rank() -> None:
    register("mine")(HardestTenth)
    compiled = compile_policy(build({"mine": {}}))
    assert compiled.by_rank
    assert compiled.ranks(200) == [(180, 200)]


@pytest.mark.parametrize("factory", [KeepPositive, DropNegative])
def test_only_dense_follows_a_verb_without_description(
    factory: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    register("mine")(factory)
    monkeypatch.setattr(dispatch, "_SMALL", 0)  # so that auto prefers a kernel
    config = {"mine": {"band": [0.9, 1.0]} if factory is KeepPositive else {}}
    loss, _, used = loss_and_gradient(config, "auto")
    assert used == "dense"
    assert loss < loss_and_gradient({}, "dense")[0]
    assert loss_and_gradient({}, "auto")[2] != "dense"
    with pytest.raises(ConfigError, match="backend=chunked: negatives.mine .*backend=dense"):
        loss_and_gradient(config, "chunked")
