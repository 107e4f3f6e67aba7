"""All ranks end when one of them has computed NaN, or has another queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gloo_pool import GlooPool
from torch import Tensor, nn

from solo_hardneg.errors import HardnegError
from solo_hardneg.methods import finite
from solo_hardneg.methods.queue import QueueOfKeys
from solo_hardneg.step_report import StepReport


def diverging(rank: int, world: int) -> dict[str, Any]:
    """What each rank says when rank 1 alone has an image, a loss, a weight that is not finite."""
    batch = [torch.arange(2) + 2 * rank, [torch.zeros(2, 3, 4, 4)], torch.zeros(2)]
    module, bad = nn.Linear(1, 1), torch.tensor(torch.nan if rank == 1 else 0.0)

    def fine(value: Tensor) -> list[float]:
        return StepReport({"fine": value.isfinite().all()}).read()["fine"]

    finite.check_outputs(fine(torch.zeros(2, 8)), module, batch, 6)  # on no rank
    if rank == 1:
        batch[1][0][1, 0, 0, 0] = torch.nan
    return {
        "image": said(lambda: finite.check_outputs(fine(batch[1][0]), module, batch, 7)),
        "loss": said(lambda: finite.check_loss(fine(bad), bad, 8)),
        "weight": said(lambda: finite.check_weights({"norm.running_var": bad}, 9)),
        "queue": queues(rank),
    }


def queues(rank: int) -> str:
    """What each rank says of equal queues, and of queues of which rank 1's differs in a bit."""
    queue = QueueOfKeys.__new__(QueueOfKeys)
    nn.Module.__init__(queue)
    queue.register_buffer("queue", torch.empty(0))
    queue.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    queue.make_queue(2, 3, 8, retains=False)
    keys = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    queue.enqueue(keys, torch.arange(4), torch.arange(4))
    queue.check_ranks(4)
    if rank == 1:
        one = queue.queue[1, 2, 3]
        one.copy_(torch.nextafter(one, torch.tensor(2.0)))
    return said(lambda: queue.check_ranks(5))


def said(check: Callable[[], Any]) -> str:
    """The error's message; empty if there is none."""
    try:
        check()
    except HardnegError as error:
        return str(error)
    return ""


def test_all_ranks_end_by_what_one_has_computed(pool: GlooPool) -> None:
    found = pool.run(diverging)
    (image,) = {said["image"] for said in found}
    assert image.startswith("Step 7: ")
    assert "rank 1: 1 of its 2 images hold NaN or infinity (indexes 3)" in image
    for rank, said in enumerate(found):
        assert said["loss"].startswith(f"Step 8, rank {rank}: the loss is ")
        which = "norm.running_var" if rank == 1 else "those of another rank"
        assert said["weight"].startswith(f"Step 9, rank {rank}: ")
        assert which in said["weight"]


def test_a_queue_that_differs_on_one_rank_is_said_with_its_rank(pool: GlooPool) -> None:
    (said,) = {found["queue"] for found in pool.run(diverging)}
    assert said.startswith("Epoch 5: the queue is not the same on all ranks.")
    assert "on rank 1: queue." in said
