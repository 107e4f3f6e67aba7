"""SimCLR's loss, random mixing and gather: several ranks equal one process."""

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

from solo_hardneg import losses
from solo_hardneg.distributed import gather
from solo_hardneg.kernels import candidates
from solo_hardneg.negatives import build, mix

IMAGES = 12  # 22 negatives each
MIX = {"mix": {"hardest": 8, "pairs": 3, "queries": 2, "detach": False}}
REWEIGHT = {"reweight": {"beta": 1.0}, "debias": {"tau_plus": 0.1}}
CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "band and label": {"keep": {"band": [0.5, 1.0], "label": "different"}},
    "easy band": {"drop": {"band": [0.8, 1.0]}},
    "mix": MIX,
    "reweight": REWEIGHT,
    "everything": {"keep": {"band": [0.4, 1.0]}, **MIX, **REWEIGHT},
}
REPEATED = {f"{name}, repeated image": CASES[name] for name in ("all", "everything")}
CASES |= REPEATED


def assert_close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def fail(rank: int, world: int) -> None:
    """Fails on rank 1 while the others wait for it."""
    if rank == 1:
        raise ValueError("failed on purpose")
    dist.barrier()


def test_failing_rank_fails_the_test_with_its_traceback(tmp_path: Any) -> None:
    with pytest.raises(
        WorkerError, match="(?s)rank 1 failed.*failed on purpose.*rank 0 did not end"
    ):
        GlooPool(2, tmp_path).run(fail)


# ---------------------------------------------------------------- SimCLR's loss


def all_detached(tensor: Tensor) -> Tensor:
    """``gather`` without any gradient."""
    return gather(tensor.detach())


def others_detached(tensor: Tensor) -> Tensor:
    """``gather`` with gradient for the rank's own part only."""
    parts = list(gather(tensor.detach()).split(len(tensor)))
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


def simclr_loss(
    rank: int,
    world: int,
    case: str,
    dtype: torch.dtype = torch.float64,
    backend: str = "dense",
    gather_function: Any = gather,
) -> dict[str, Tensor]:
    """The loss of a rank's rows and its gradient."""
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(IMAGES, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(2 * IMAGES, 6, generator=generator, dtype=torch.float64)
    z = 3 * image.repeat(2, 1) + 2 * noise
    indexes = torch.arange(IMAGES)
    if case in REPEATED:  # on the first and on the last rank
        indexes[-1] = 0
    own = rows(rank, world, IMAGES)
    leaf = z[own].to(dtype).requires_grad_()
    with draws_by_identity(own), mock.patch.object(candidates, "gather", gather_function):
        loss = losses.simclr_loss_func(
            leaf,
            indexes.repeat(2)[own],
            0.5,
            policy=build(CASES[case]),
            labels=(torch.arange(IMAGES) % 3).repeat(2)[own],
            backend=backend,
        )
        loss.backward()
    return {"loss": loss.detach(), "gradient": leaf.grad}


def combine_ranks(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean loss of the ranks and its gradient, with rows in the order of one process."""
    gradient = torch.zeros(2 * IMAGES, 6, dtype=torch.float64)
    for rank, part in enumerate(results):
        gradient[rows(rank, len(results), IMAGES)] = part["gradient"].double() / len(results)
    return {"loss": torch.stack([part["loss"] for part in results]).mean(), "gradient": gradient}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "backend", "tolerance"),
    [
        (torch.float64, "dense", 1e-9),
        (torch.float32, "dense", 1e-5),
        (torch.float64, "chunked", 1e-9),
    ],
)
def test_simclr_loss_of_all_ranks_equals_one_process(
    pool: GlooPool, case: str, dtype: torch.dtype, backend: str, tolerance: float
) -> None:
    single = simclr_loss(0, 1, case, dtype)
    found = combine_ranks(pool.run(simclr_loss, case, dtype, backend))
    assert_close(found["loss"].double(), single["loss"].double(), tolerance)
    assert_close(found["gradient"], single["gradient"].double(), tolerance)


@pytest.mark.parametrize("cut", [all_detached, others_detached])
def test_gradient_of_gather_is_needed(pool: GlooPool, cut: Callable[[Tensor], Tensor]) -> None:
    single = simclr_loss(0, 1, "everything")
    found = combine_ranks(pool.run(simclr_loss, "everything", torch.float64, "dense", cut))
    assert_close(found["loss"], single["loss"])
    assert (found["gradient"] - single["gradient"]).abs().max() > 1e-3


def test_cases_differ_and_every_row_has_a_gradient() -> None:
    found = [simclr_loss(0, 1, case) for case in CASES]
    assert len({f["loss"].item() for f in found}) == len(CASES)
    assert min(f["gradient"].norm(dim=1).min() for f in found) > 1e-4


# ---------------------------------------------------------------- random mixing


def draw_mixes(rank: int, world: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random numbers drawn by a rank, with equal data and seeds, and the final random state."""
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    policy = build({"mix": {"hardest": 6, "pairs": 5, "queries": 4}})
    drawn: list[Tensor] = []

    def recording(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> tuple[Tensor, ...]:
            drawn.extend(result := function(*args))
            return result

        return wrapped

    with (
        mock.patch.object(mix, "draw_pairs", recording(mix.draw_pairs)),
        mock.patch.object(mix, "draw_partners", recording(mix.draw_partners)),
    ):
        torch.manual_seed(seed)
        for _ in range(2):
            losses.simclr_loss_func(
                z, torch.arange(4 * rank, 4 * rank + 4).repeat(2), policy=policy
            )
    return torch.cat([d.double() for d in drawn], dim=1), torch.get_rng_state()


def test_ranks_draw_different_numbers_reproducibly_and_keep_equal_states(pool: GlooPool) -> None:
    first, again, other = (pool.run(draw_mixes, seed) for seed in (5, 5, 6))
    for (drawn, state), (same, _), (another, _) in zip(first, again, other, strict=True):
        assert torch.equal(drawn, same)
        assert not torch.equal(drawn, another)
        assert torch.equal(state, first[0][1])
    assert len({tuple(drawn.flatten().tolist()) for drawn, _ in first}) == pool.world


# ---------------------------------------------------------------- gather


def use_weights(rank: int, world: int) -> Tensor:
    """The weight with which a rank uses each gathered row; rank 0's rows are unused."""
    return (rank + 1.0) * torch.arange(world, dtype=torch.float64).repeat_interleave(2)[:, None]


def part_of(rank: int) -> Tensor:
    return torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * rank


def gather_tensors(rank: int, world: int) -> dict[str, Tensor]:
    """Gathers tensors of several kinds, and returns them with the gradients."""
    leaf, transposed = part_of(rank).requires_grad_(), part_of(rank).requires_grad_()
    (use_weights(rank, world) * gather(leaf) ** 2).sum().backward()
    (gather(transposed.T) ** 2).sum().backward()
    return {
        "values": gather(leaf).detach(),
        "gradient": leaf.grad,
        "transposed gradient": transposed.grad,
        "every other column": gather(part_of(rank)[:, ::2]),
        "integers": gather(torch.arange(3) + 3 * rank),
        "transposed bytes": gather((part_of(rank) > 12).to(torch.uint8).T),
        "booleans": gather(part_of(rank)[:, 0] > 12),
    }


def test_gather_returns_all_values_and_sums_gradients(pool: GlooPool) -> None:
    parts = [part_of(rank) for rank in range(pool.world)]
    uses = sum(use_weights(rank, pool.world) for rank in range(pool.world))
    expected = (uses * 2 * torch.cat(parts)).split(2)
    for rank, found in enumerate(pool.run(gather_tensors)):
        assert_close(found["gradient"], expected[rank])
        assert_close(found["transposed gradient"], 2 * pool.world * parts[rank])
        for name, value in {
            "values": torch.cat(parts),
            "every other column": torch.cat([p[:, ::2] for p in parts]),
            "integers": torch.arange(3 * pool.world),
            "transposed bytes": torch.cat([(p > 12).to(torch.uint8).T for p in parts]),
            "booleans": torch.cat([p[:, 0] > 12 for p in parts]),
        }.items():
            assert torch.equal(found[name], value), name
