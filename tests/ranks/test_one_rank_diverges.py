"""All ranks end when one has computed NaN or holds another queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gloo_pool import GlooPool
from torch import Tensor, nn

from solo_hardneg.distributed import StepReport
from solo_hardneg.errors import HardnegError
from solo_hardneg.methods import finite
from solo_hardneg.negatives.queue import KeyQueue
from solo_hardneg.negatives.thresholds import LearnedThresholds


def diverging(rank: int, world: int) -> dict[str, Any]:
    """The error on each rank if an image, the loss, a weight or the queue is bad on rank 1."""
    batch = [torch.arange(2) + 2 * rank, [torch.zeros(2, 3, 4, 4)], torch.zeros(2)]
    module, bad = nn.Linear(1, 1), torch.tensor(torch.nan if rank == 1 else 0.0)

    def flags(value: Tensor) -> list[float]:
        return StepReport({"finite": value.isfinite().all()}).read()["finite"]

    finite.check_outputs(flags(torch.zeros(2, 8)), module, batch, 6)  # finite on all ranks
    if rank == 1:
        batch[1][0][1, 0, 0, 0] = torch.nan
    return {
        "image": error_text(lambda: finite.check_outputs(flags(batch[1][0]), module, batch, 7)),
        "loss": error_text(lambda: finite.check_loss(flags(bad), bad, 8)),
        "weight": error_text(lambda: finite.check_weights({"norm.running_var": bad}, 9)),
        "queue": queue_error(rank),
        "thresholds": threshold_error(rank),
    }


def queue_error(rank: int) -> str:
    """The error on each rank if rank 1's queue differs in one bit; none for equal queues."""
    queue = KeyQueue(nn.Module(), 2, 3, 8)
    keys = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    queue.enqueue(keys, torch.arange(4), torch.arange(4))
    queue.check_ranks(4)
    if rank == 1:
        one = queue["queue"][1, 2, 3]
        one.copy_(torch.nextafter(one, torch.tensor(2.0)))
    return error_text(lambda: queue.check_ranks(5))


def threshold_error(rank: int) -> str:
    """The error on each rank if rank 1 has another number of steps for one image."""
    thresholds = LearnedThresholds(nn.Module())
    thresholds.fit(5)
    thresholds.check_ranks(4)
    if rank == 1:
        thresholds.module.get_buffer("threshold_moments")[2, 3] += 1
    return error_text(lambda: thresholds.check_ranks(5))


def error_text(check: Callable[[], Any]) -> str:
    """The error's message; empty without an error."""
    try:
        check()
    except HardnegError as error:
        return str(error)
    return ""


def test_error_of_one_rank_ends_all(pool: GlooPool) -> None:
    errors = pool.run(diverging)
    (image,) = {error["image"] for error in errors}
    assert image.startswith("Step 7: ")
    assert "rank 1: 1 of its 2 images hold NaN or infinity (indexes 3)" in image
    for rank, error in enumerate(errors):
        assert error["loss"].startswith(f"Step 8, rank {rank}: the loss is ")
        names = "norm.running_var" if rank == 1 else "those of another rank"
        assert error["weight"].startswith(f"Step 9, rank {rank}: ")
        assert names in error["weight"]


def test_differing_queue_or_threshold_is_reported_with_its_rank(pool: GlooPool) -> None:
    errors = pool.run(diverging)
    (text,) = {error["queue"] for error in errors}
    assert text.startswith("Epoch 5: the queue differs between ranks.")
    assert "on rank 1: queue." in text
    (text,) = {error["thresholds"] for error in errors}
    assert text.startswith("Epoch 5: a learned threshold differs between ranks.")
    assert "on rank 1: threshold_moments." in text
