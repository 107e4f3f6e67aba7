"""What the ranks tell each other of a step: one small collective, read by one wait."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from solo_hardneg.distributed import gather


class StepReport:
    """Some numbers of a step, gathered from all ranks and copied to the host in the background.

    Making one waits for nothing. :meth:`read` waits for the forward pass only, if it is called
    once the backward pass is under way.

    Args:
        values: numbers of this rank by name, tensors of any shape on the device, of which the
            mean counts. The names must be the same on all ranks.

    Attributes:
        by_rank: (ranks, names) float32, on the device.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.names = tuple(values)
        mine = torch.stack([value.detach().float().mean() for value in values.values()])
        self.by_rank = gather(mine[None])
        cuda = self.by_rank.is_cuda  # elsewhere nothing would say when the copy is done
        self._on_host = self.by_rank.to("cpu", non_blocking=cuda)
        self._copied: torch.cuda.Event | None = None
        if cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self.by_rank.device))

    def everywhere(self, *names: str) -> Tensor:
        """A bool on the device: whether these values are above 0 on all ranks."""
        columns = [self.names.index(name) for name in names]
        return torch.stack([self.by_rank[:, column] for column in columns]).amin() > 0

    @property
    def means(self) -> dict[str, Tensor]:
        """The means over all ranks, by name, on the device."""
        return dict(zip(self.names, self.by_rank.mean(dim=0).unbind(), strict=True))

    def read(self) -> dict[str, list[float]]:
        """The values by name, one for each rank. Waits until they are on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self.names, self._on_host.T.tolist(), strict=True))
