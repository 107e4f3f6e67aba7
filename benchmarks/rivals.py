"""What is compared: the host's loss, what others have, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.hosts import hosts_loss
from benchmarks.precision import autocast, dtype
from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import build

TAU = 0.2
POLICIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hardest 5 %": {"keep": {"band": [0.95, 1.0]}},
    "without the hardest 0.1 %": {"drop": {"band": [0.999, 1.0]}},
    "band 90-95": {"keep": {"band": [0.9, 0.95]}},
    "sscl": {"mix": {"hardest": 1024, "pairs": 1024}, "reweight": {"beta": 0.2}},
}
LIBRARIES = ("lightly", "pytorch-metric-learning")
OURS = ("auto", "dense", "chunked", "numba", "triton")


@dataclass(frozen=True)
class Data:
    """Vectors of one comparison: query and key (N, D), the queue (D, K) as ours and as the host's.

    In our methods' queue each key lies in one piece, in the host's each dimension does.
    ``precision`` is the number format, see :mod:`benchmarks.precision`.
    """

    query: Tensor
    key: Tensor
    ours: Tensor
    hosts: Tensor
    precision: str = "32-true"

    @staticmethod
    def make(queries: int, keys: int, dimensions: int, precision: str = "32-true") -> Data:
        device = "cuda" if torch.cuda.is_available() else "cpu"

        def unit(rows: int) -> Tensor:
            vectors = F.normalize(torch.randn(rows, dimensions, device=device), dim=1)
            return vectors.to(dtype(precision))

        torch.manual_seed(0)
        vectors = unit(keys)
        query = unit(queries).requires_grad_()
        return Data(query, unit(queries), vectors.T, vectors.T.contiguous(), precision)

    def step(self, loss: Callable[[], Tensor]) -> Callable[[], None]:
        """One forward and backward pass."""

        def work() -> None:
            self.query.grad = None
            with autocast(self.precision):
                value = loss()
            value.backward()

        return work


def sort_and_mask(data: Data, share: float) -> Tensor:
    """What one writes first: sort, mask, log-sum-exp. Keeps the hardest ``share``."""
    similarity = data.query @ data.hosts
    place = similarity.argsort(dim=1).argsort(dim=1)
    keep = place >= (1 - share) * similarity.shape[1]
    return _cross_entropy(data, similarity.masked_fill(~keep, -torch.inf))


def whole_topk(data: Data, share: float) -> Tensor:
    """``topk`` of the whole matrix."""
    similarity = data.query @ data.hosts
    return _cross_entropy(data, similarity.topk(round(share * similarity.shape[1]), dim=1).values)


def _cross_entropy(data: Data, negatives: Tensor) -> Tensor:
    positive = (data.query * data.key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, negatives], dim=1) / TAU
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def candidates(
    data: Data,
    backends: tuple[str, ...],
    libraries: bool = True,
    refused: dict[tuple[str, str], str] | None = None,
) -> dict[tuple[str, str], Callable[[], None]]:
    """(candidate, policy) → one forward and backward pass. The first is the host's.

    What can't run is left out; ``refused`` then gets the reason.
    """
    name, loss = hosts_loss()
    found = {(name, "plain"): data.step(lambda: loss(data.query, data.key, data.hosts, TAU))}
    for rival, function in (("sort and mask", sort_and_mask), ("topk", whole_topk)):
        found[rival, "hardest 5 %"] = data.step(partial(function, data, 0.05))
    if libraries:
        found |= _of_libraries(data)
    for policy, config in POLICIES.items():
        for backend in backends:
            work = _ours(data, config, backend, data.ours)
            if callable(work):
                found[backend, policy] = work
            elif refused is not None:
                refused[backend, policy] = work
    return found


def _ours(
    data: Data, config: dict[str, Any], backend: str, queue: Tensor
) -> Callable[[], None] | str:
    """One pass, or why it can't run."""
    policy = build(config)
    work = data.step(
        lambda: mocov2plus_loss_func(
            data.query, data.key, queue, TAU, policy=policy, backend=backend
        )
    )
    try:
        work()
    except ConfigError as error:
        print(f"left out: {backend}, {config}: {error}")
        return str(error)
    except Exception as error:  # a compiler's, the driver's, or of memory that isn't there
        print(f"left out: {backend}, {config}: {error!r}")
        return repr(error)
    return work


def in_the_hosts_layout(data: Data, backend: str) -> dict[tuple[str, str], Callable[[], None]]:
    """The same with the queue as the host keeps it."""
    found = {}
    for policy in ("hardest 5 %", "without the hardest 0.1 %"):
        work = _ours(data, POLICIES[policy], backend, data.hosts)
        if callable(work):
            found[f"{backend}, the host's queue", policy] = work
    return found


def _of_libraries(data: Data) -> dict[tuple[str, str], Callable[[], None]]:
    """lightly's and pytorch-metric-learning's, where they are installed."""
    found = {}
    keys, dimensions = data.hosts.shape[1], len(data.hosts)
    try:
        from lightly.loss import NTXentLoss

        bank = NTXentLoss(TAU, memory_bank_size=(keys, dimensions)).to(data.query.device)
        found["lightly", "plain"] = data.step(lambda: bank(data.query, data.key))
    except ImportError as error:
        print(f"left out: lightly ({error}). pip install 'solo-hardneg[bench]'")
    if len(data.query) * keys > 2**18:  # it lists all pairs, and takes seconds
        return found
    try:
        from pytorch_metric_learning.losses import CrossBatchMemory
        from pytorch_metric_learning.losses import NTXentLoss as OfPairs

        memory = CrossBatchMemory(OfPairs(TAU), dimensions, keys)
        found["pytorch-metric-learning", "plain"] = data.step(pairs_loss(data, memory))
    except ImportError as error:
        print(f"left out: pytorch-metric-learning ({error}). pip install 'solo-hardneg[bench]'")
    return found


def pairs_loss(data: Data, memory: Any) -> Callable[[], Tensor]:
    """pytorch-metric-learning's memory as MoCo has it: one positive for each query.

    It stores the keys of each call. Were their labels those of the call before, each query would
    have as many positives as the memory holds batches, and the loss as many times the work.
    """
    batch, keys, device = len(data.query), data.ours.shape[1], data.query.device
    with torch.no_grad():
        memory(data.ours.T, torch.arange(keys, device=device))  # fills it
    store = torch.arange(2 * batch, device=device) >= batch
    first = keys

    def loss() -> Tensor:
        nonlocal first
        labels = torch.arange(first, first + batch, device=device).repeat(2)
        first += batch
        return memory(torch.cat([data.query, data.key]), labels, enqueue_mask=store)

    return loss
