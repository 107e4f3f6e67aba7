"""What the ranks of test_distributed.py say when one of them has computed NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from solo_hardneg.errors import DivergedError
from solo_hardneg.methods import finite


def diverging(rank: int, world: int) -> dict[str, Any]:
    """What each rank says when rank 1 alone has an image, a loss, a weight that is none."""
    batch = [torch.arange(2) + 2 * rank, [torch.zeros(2, 3, 4, 4)], torch.zeros(2)]
    zero, module = torch.tensor(0.0), nn.Linear(1, 1)
    bad = torch.tensor(torch.nan if rank == 1 else 0.0)
    finite.check_outputs(module, batch, [torch.zeros(2, 8)], zero, 6)  # nobody has
    if rank == 1:
        batch[1][0][1, 0, 0, 0] = torch.nan
    vectors = [batch[1][0].sum(dim=(1, 2, 3))]
    return {
        "image": said(lambda: finite.check_outputs(module, batch, vectors, zero, 7)),
        "loss": said(lambda: finite.check_loss(bad, 8)),
        "weight": said(lambda: finite.check_weights({"norm.running_var": bad}, 9)),
    }


def said(check: Callable[[], None]) -> str:
    """The error's message; empty if there is none."""
    try:
        check()
    except DivergedError as error:
        return str(error)
    return ""
