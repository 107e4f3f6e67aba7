"""SimCLR's loss, random mixing and gather: ranks together do what one process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from gloo_pool import GlooPool, WorkerError
from rows_of_ranks import draws_by_identity, rows
from torch import Tensor

from solo_hardneg import candidates, losses
from solo_hardneg.distributed import gather
from solo_hardneg.negatives import build, mix

IMAGES = 12  # 22 negatives each
MIX = {"mix": {"hardest": 8, "pairs": 3, "queries": 2, "detach": False}}
WEIGH = {"reweight": {"beta": 1.0}, "debias": {"tau_plus": 0.1}}
CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "band and label": {"keep": {"band": [0.5, 1.0], "label": "different"}},
    "easy band": {"drop": {"band": [0.8, 1.0]}},
    "mix": MIX,
    "weigh": WEIGH,
    "everything": {"keep": {"band": [0.4, 1.0]}, **MIX, **WEIGH},
}
TWICE = {f"{name}, an image twice": CASES[name] for name in ("all", "everything")}
CASES |= TWICE


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def fail(rank: int, world: int) -> None:
    """Rank 1 fails while the others wait for it."""
    if rank == 1:
        raise ValueError("no such luck")
    dist.barrier()


def test_a_failing_rank_fails_the_test_with_its_traceback(tmp_path: Any) -> None:
    with pytest.raises(WorkerError, match="(?s)rank 1 failed.*no such luck.*rank 0 did not end"):
        GlooPool(2, tmp_path).run(fail)


# ---------------------------------------------------------------- SimCLR's loss


def all_detached(tensor: Tensor) -> Tensor:
    """``gather`` without any gradient."""
    return gather(tensor.detach())


def others_detached(tensor: Tensor) -> Tensor:
    """``gather`` with gradient to the rank's own part only."""
    parts = list(gather(tensor.detach()).split(len(tensor)))
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


def simclr_loss(
    rank: int,
    world: int,
    case: str,
    dtype: torch.dtype = torch.float64,
    backend: str = "dense",
    gather_by: Any = gather,
) -> dict[str, Tensor]:
    """The loss of a rank's rows and its gradient with respect to them."""
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(IMAGES, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(2 * IMAGES, 6, generator=generator, dtype=torch.float64)
    z = 3 * image.repeat(2, 1) + 2 * noise
    indexes = torch.arange(IMAGES)
    if case in TWICE:  # once on the first rank, once on the last
        indexes[-1] = 0
    mine = rows(rank, world, IMAGES)
    leaf = z[mine].to(dtype).requires_grad_()
    with draws_by_identity(mine), mock.patch.object(candidates, "gather", gather_by):
        loss = losses.simclr_loss_func(
            leaf,
            indexes.repeat(2)[mine],
            0.5,
            policy=build(CASES[case]),
            labels=(torch.arange(IMAGES) % 3).repeat(2)[mine],
            backend=backend,
        )
        loss.backward()
    return {"loss": loss.detach(), "gradient": leaf.grad}


def together(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The ranks' mean loss, and its gradient with respect to the rows in one process's order."""
    gradient = torch.zeros(2 * IMAGES, 6, dtype=torch.float64)
    for rank, part in enumerate(found):
        gradient[rows(rank, len(found), IMAGES)] = part["gradient"].double() / len(found)
    return {"loss": torch.stack([part["loss"] for part in found]).mean(), "gradient": gradient}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "backend", "tolerance"),
    [
        (torch.float64, "dense", 1e-9),
        (torch.float32, "dense", 1e-5),
        (torch.float64, "chunked", 1e-9),
    ],
)
def test_simclr_of_all_ranks_is_that_of_one_process(
    pool: GlooPool, case: str, dtype: torch.dtype, backend: str, tolerance: float
) -> None:
    alone, found = (
        simclr_loss(0, 1, case, dtype),
        together(pool.run(simclr_loss, case, dtype, backend)),
    )
    close(found["loss"].double(), alone["loss"].double(), tolerance)
    close(found["gradient"], alone["gradient"].double(), tolerance)


@pytest.mark.parametrize("cut", [all_detached, others_detached])
def test_without_the_gradient_of_gather_it_would_not_be(
    pool: GlooPool, cut: Callable[[Tensor], Tensor]
) -> None:
    alone = simclr_loss(0, 1, "everything")
    found = together(pool.run(simclr_loss, "everything", torch.float64, "dense", cut))
    close(found["loss"], alone["loss"])
    assert (found["gradient"] - alone["gradient"]).abs().max() > 1e-3


def test_the_cases_differ_and_each_row_has_a_gradient() -> None:
    found = [simclr_loss(0, 1, case) for case in CASES]
    assert len({f["loss"].item() for f in found}) == len(CASES)
    assert min(f["gradient"].norm(dim=1).min() for f in found) > 1e-4


# ---------------------------------------------------------------- random mixing


def draw(rank: int, world: int, seed: int) -> tuple[Tensor, Tensor]:
    """What a rank draws with equal data and an equal seed, and the state that it leaves."""
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    policy = build({"mix": {"hardest": 6, "pairs": 5, "queries": 4}})
    drawn: list[Tensor] = []

    def watching(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> tuple[Tensor, ...]:
            drawn.extend(made := function(*arguments))
            return made

        return watched

    with (
        mock.patch.object(mix, "draw_pairs", watching(mix.draw_pairs)),
        mock.patch.object(mix, "draw_partners", watching(mix.draw_partners)),
    ):
        torch.manual_seed(seed)
        for _ in range(2):
            losses.simclr_loss_func(
                z, torch.arange(4 * rank, 4 * rank + 4).repeat(2), policy=policy
            )
    return torch.cat([d.double() for d in drawn], dim=1), torch.get_rng_state()


def test_ranks_draw_apart_reproducibly_and_stay_in_step(pool: GlooPool) -> None:
    first, again, other = (pool.run(draw, seed) for seed in (5, 5, 6))
    for (mine, state), (same, _), (another, _) in zip(first, again, other, strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(mine, another)
        assert torch.equal(state, first[0][1])
    assert len({tuple(drawn.flatten().tolist()) for drawn, _ in first}) == pool.world


# ---------------------------------------------------------------- gather


def weights_of_use(rank: int, world: int) -> Tensor:
    """How much a rank makes of each row that it gathers: nobody uses those of rank 0."""
    return (rank + 1.0) * torch.arange(world, dtype=torch.float64).repeat_interleave(2)[:, None]


def part_of(rank: int) -> Tensor:
    return torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * rank


def gathered(rank: int, world: int) -> dict[str, Tensor]:
    """Tensors of all kinds, gathered, and the gradients that come back."""
    leaf, turned = part_of(rank).requires_grad_(), part_of(rank).requires_grad_()
    (weights_of_use(rank, world) * gather(leaf) ** 2).sum().backward()
    (gather(turned.T) ** 2).sum().backward()
    return {
        "values": gather(leaf).detach(),
        "gradient": leaf.grad,
        "turned gradient": turned.grad,
        "every other column": gather(part_of(rank)[:, ::2]),
        "integers": gather(torch.arange(3) + 3 * rank),
        "short integers, turned": gather((part_of(rank) > 12).to(torch.uint8).T),
        "truths": gather(part_of(rank)[:, 0] > 12),
    }


def test_gather_returns_values_of_all_and_gradient_to_whoever_is_used(pool: GlooPool) -> None:
    parts = [part_of(rank) for rank in range(pool.world)]
    uses = sum(weights_of_use(rank, pool.world) for rank in range(pool.world))
    expected = (uses * 2 * torch.cat(parts)).split(2)
    for rank, found in enumerate(pool.run(gathered)):
        close(found["gradient"], expected[rank])
        close(found["turned gradient"], 2 * pool.world * parts[rank])
        for name, value in {
            "values": torch.cat(parts),
            "every other column": torch.cat([p[:, ::2] for p in parts]),
            "integers": torch.arange(3 * pool.world),
            "short integers, turned": torch.cat([(p > 12).to(torch.uint8).T for p in parts]),
            "truths": torch.cat([p[:, 0] > 12 for p in parts]),
        }.items():
            assert torch.equal(found[name], value), name
