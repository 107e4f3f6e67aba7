"""What each rank of test_distributed.py computes of losses, of random mixing, and of gather."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from solo_hardneg import candidates, losses
from solo_hardneg.distributed import gather
from solo_hardneg.negatives import build, mix

# ---------------------------------------------------------------- who has which rows


def rows(rank: int, world: int, images: int, views: int = 2) -> Tensor:
    """A rank's rows of a batch that has all images' first views, then all second ones."""
    per_rank = images // world
    mine = rank * per_rank + torch.arange(per_rank)
    return torch.cat([mine + view * images for view in range(views)])


@contextmanager
def draws_by_identity(identity: Tensor) -> Iterator[None]:
    """Makes ``mix`` draw for each query what belongs to its identity, on whatever rank it is."""

    def uniform(kinds: int, width: int, available: Tensor) -> Tensor:
        asking = identity[: len(available)]  # a policy is tried on a single query, too
        generator = torch.Generator().manual_seed(width)
        return torch.rand(64, kinds, width, generator=generator)[asking].transpose(0, 1)

    def pairs(available: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second, alpha = uniform(3, drawn.shape[2], available)
        count = available[:, None]
        a = (first * count).long()
        return a, (a + 1 + (second * (count - 1)).long()) % count, alpha

    def partners(available: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        first, gamma = uniform(2, drawn.shape[2], available)
        return (first * available[:, None]).long(), gamma / 2

    with (
        mock.patch.object(mix, "draw_pairs", pairs),
        mock.patch.object(mix, "draw_partners", partners),
    ):
        yield


# ---------------------------------------------------------------- SimCLR's loss

IMAGES = 12  # 22 negatives each
MIX = {"mix": {"hardest": 5, "pairs": 4}}
WEIGH = {"reweight": {"beta": 1.0}, "debias": {"tau_plus": 0.1}}
POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "keep hardest": {"keep": {"band": [0.8, 1.0]}},
    "keep easiest": {"keep": {"band": [0.0, 0.8]}},
    "keep band": {"keep": {"band": [0.5, 0.75]}},
    "drop band": {"drop": {"band": [0.9, 1.0]}},
    "drop label": {"drop": {"label": "same"}},
    "drop image": {"drop": {"image": "same"}},
    "keep label": {"keep": {"band": [0.5, 1.0], "label": "different"}},
    "mix pairs": MIX,
    "mix queries": {"mix": {"hardest": 8, "queries": 4}},
    "mix both": {"mix": {"hardest": 8, "pairs": 3, "queries": 2, "detach": False}},
    "reweight": {"reweight": {"beta": 1.0}},
    "debias": {"debias": {"tau_plus": 0.1}},
    "hcl": WEIGH,
    "sscl": {**MIX, **WEIGH},
    "everything": {"keep": {"band": [0.4, 1.0]}, **MIX, **WEIGH},
}
TWICE = {f"{name}, an image twice": POLICIES[name] for name in ("none", "keep hardest", "sscl")}
CASES = {**POLICIES, **TWICE}


def all_detached(tensor: Tensor) -> Tensor:
    """``gather`` without any gradient."""
    return gather(tensor.detach())


def others_detached(tensor: Tensor) -> Tensor:
    """``gather`` with gradient to the rank's own part only."""
    parts = list(gather(tensor.detach()).split(len(tensor)))
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


CUTS = {"all": all_detached, "others": others_detached}


def simclr_loss(
    case: str,
    dtype: torch.dtype,
    rank: int = 0,
    world: int = 1,
    gather_by: Any = gather,
    backend: str = "dense",
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


def simclr_losses(rank: int, world: int) -> dict[str, Any]:
    """Of all cases, in both precisions, and with the gradient of ``gather`` cut."""
    found = {}
    for case in CASES:
        for dtype in (torch.float64, torch.float32):
            found[case, str(dtype)] = simclr_loss(case, dtype, rank, world)
        found[case, "chunked"] = simclr_loss(case, torch.float64, rank, world, backend="chunked")
        for cut, cut_gather in CUTS.items():
            found[case, cut] = simclr_loss(case, torch.float64, rank, world, cut_gather)
    return found


# ---------------------------------------------------------------- random mixing


def random_mixing(rank: int, world: int) -> dict[str, Any]:
    """What ranks with equal data and equal seeds draw, and the state that it leaves."""
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    policy = build({"mix": {"hardest": 6, "pairs": 5, "queries": 4}})
    drawn: list[Tensor] = []

    def watching(draw: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def watched(*arguments: Any) -> tuple[Tensor, ...]:
            drawn.extend(made := draw(*arguments))
            return made

        return watched

    found: dict[str, Any] = {}
    with (
        mock.patch.object(mix, "draw_pairs", watching(mix.draw_pairs)),
        mock.patch.object(mix, "draw_partners", watching(mix.draw_partners)),
    ):
        for name, seed in (("first", 5), ("again", 5), ("other", 6)):
            torch.manual_seed(seed)
            drawn.clear()
            indexes = torch.arange(4 * rank, 4 * rank + 4).repeat(2)
            for _ in range(2):
                losses.simclr_loss_func(z, indexes, policy=policy)
            found[name] = torch.cat([d.double() for d in drawn], dim=1)
            found[f"{name} state"] = torch.get_rng_state()
    return found


# ---------------------------------------------------------------- gather


def weights_of_use(rank: int, world: int) -> Tensor:
    """How much a rank makes of each row that it gathers: nobody uses those of rank 0."""
    return (rank + 1.0) * torch.arange(world, dtype=torch.float64).repeat_interleave(2)[:, None]


def gathering(rank: int, world: int) -> dict[str, Any]:
    """Tensors of all kinds, gathered, and the gradients that come back."""
    numbers = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 10 * rank
    leaf = numbers.clone().requires_grad_()
    everybody = gather(leaf)
    (weights_of_use(rank, world) * everybody**2).sum().backward()
    turned = numbers.clone().requires_grad_()
    (gather(turned.T) ** 2).sum().backward()
    with torch.no_grad():
        quiet = gather(leaf)
    return {
        "values": everybody.detach(),
        "gradient": leaf.grad,
        "turned": gather(turned.T).detach(),
        "turned gradient": turned.grad,
        "turned, no gradient": gather(numbers.T),
        "every other column": gather(numbers[:, ::2]),
        "integers": gather(torch.arange(3) + 3 * rank),
        "short integers, turned": gather((numbers > 12).to(torch.uint8).T),
        "truths": gather(numbers[:, 0] > 12),
        "asks for gradient": (everybody.requires_grad, quiet.requires_grad),
    }
