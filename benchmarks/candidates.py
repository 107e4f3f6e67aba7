"""The losses to compare: solo-learn's, other libraries', and each of our backends and policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.precision import autocast, tensor_dtype
from benchmarks.reference import reference_loss
from benchmarks.timing import Call
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
BACKENDS = ("auto", "dense", "chunked", "numba", "triton")
BY_KEY, BY_DIMENSION, INTERNAL = "key by key", "dimension by dimension", "its own"


class Candidate(NamedTuple):
    """What is timed, as columns of the CSV.

    Attributes:
        candidate: A library, a plain implementation, or our backend.
        policy: A key of ``POLICIES``.
        backend: Ours; empty for others.
        layout: What is contiguous in the queue.
    """

    candidate: str
    policy: str
    backend: str = ""
    layout: str = BY_DIMENSION


Refused = dict[Candidate, str]  # candidate → error message


@dataclass(frozen=True)
class Vectors:
    """Random unit vectors.

    Attributes:
        query, key: (N, D).
        by_key: The queue (D, K), each key contiguous as in our methods.
        by_dimension: The same queue, each dimension contiguous as in solo-learn.
        precision: Number format, see :mod:`benchmarks.precision`.
    """

    query: Tensor
    key: Tensor
    by_key: Tensor
    by_dimension: Tensor
    precision: str = "32-true"

    @staticmethod
    def make(queries: int, keys: int, dimensions: int, precision: str = "32-true") -> Vectors:
        """Draws N queries and K keys of D dimensions from a fixed seed."""
        device = "cuda" if torch.cuda.is_available() else "cpu"

        def draw(rows: int) -> Tensor:
            vectors = F.normalize(torch.randn(rows, dimensions, device=device), dim=1)
            return vectors.to(tensor_dtype(precision))

        torch.manual_seed(0)
        queue = draw(keys)
        query = draw(queries).requires_grad_()
        return Vectors(query, draw(queries), queue.T, queue.T.contiguous(), precision)

    def forward_backward(self, loss: Callable[[], Tensor]) -> Call:
        """Returns a call that computes a loss and its gradient."""

        def call() -> None:
            self.query.grad = None
            with autocast(self.precision):
                value = loss()
            value.backward()

        return call


def make_candidates(
    vectors: Vectors,
    backends: tuple[str, ...],
    libraries: bool = True,
    refused: Refused | None = None,
) -> dict[Candidate, Call]:
    """Returns one forward and backward pass per candidate, the reference first.

    Args:
        vectors: Inputs of the losses.
        backends: Our backends to compare.
        libraries: Whether to compare lightly and pytorch-metric-learning.
        refused: Gets the candidates that can't run.
    """
    name, loss = reference_loss()
    losses: dict[Candidate, Callable[[], Tensor]] = {
        Candidate(name, "plain"): partial(
            loss, vectors.query, vectors.key, vectors.by_dimension, TAU
        ),
        Candidate("sort and mask", "hardest 5 %"): partial(sort_and_mask, vectors, 0.05),
        Candidate("topk", "hardest 5 %"): partial(topk, vectors, 0.05),
    }
    if libraries:
        losses |= _library_losses(vectors)
    calls = {name: vectors.forward_backward(loss) for name, loss in losses.items()}
    names = [Candidate(name, policy, name, BY_KEY) for policy in POLICIES for name in backends]
    if "numba" in backends:
        for policy in ("hardest 5 %", "without the hardest 0.1 %"):
            names.append(Candidate("numba, the host's queue", policy, "numba"))
    for candidate in names:
        calls[candidate] = _our_call(vectors, candidate)
        try:
            calls[candidate]()
        except Exception as error:  # a refused policy, a compiler's error, too little memory
            del calls[candidate]
            text = str(error) if isinstance(error, ConfigError) else repr(error)
            print(f"left out: {candidate.candidate}, {POLICIES[candidate.policy]}: {text}")
            if refused is not None:
                refused[candidate] = text
    return calls


def _our_call(vectors: Vectors, candidate: Candidate) -> Call:
    queue = vectors.by_key if candidate.layout == BY_KEY else vectors.by_dimension
    options = {"policy": build(POLICIES[candidate.policy]), "backend": candidate.backend}
    loss = partial(mocov2plus_loss_func, vectors.query, vectors.key, queue, TAU, **options)
    return vectors.forward_backward(loss)


# ---------------------------------------------------------------- plain implementations


def sort_and_mask(vectors: Vectors, share: float) -> Tensor:
    """The simplest loss of the hardest ``share``: sort, mask, cross entropy."""
    similarity = vectors.query @ vectors.by_dimension
    rank = similarity.argsort(dim=1).argsort(dim=1)
    keep = rank >= (1 - share) * similarity.shape[1]
    return _cross_entropy(vectors, similarity.masked_fill(~keep, -torch.inf))


def topk(vectors: Vectors, share: float) -> Tensor:
    """The loss of the hardest ``share``, by ``torch.topk`` of the whole matrix."""
    similarity = vectors.query @ vectors.by_dimension
    return _cross_entropy(
        vectors, similarity.topk(round(share * similarity.shape[1]), dim=1).values
    )


def _cross_entropy(vectors: Vectors, negatives: Tensor) -> Tensor:
    positive = (vectors.query * vectors.key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, negatives], dim=1) / TAU
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


# ---------------------------------------------------------------- other libraries


def _library_losses(vectors: Vectors) -> dict[Candidate, Callable[[], Tensor]]:
    """The losses of lightly and pytorch-metric-learning, where installed."""
    losses: dict[Candidate, Callable[[], Tensor]] = {}
    dimensions, keys = vectors.by_dimension.shape
    try:
        from lightly.loss import NTXentLoss

        bank = NTXentLoss(TAU, memory_bank_size=(keys, dimensions)).to(vectors.query.device)
        name = Candidate("lightly", "plain", layout=INTERNAL)
        losses[name] = partial(bank, vectors.query, vectors.key)
    except ImportError as error:
        print(f"left out: lightly ({error}). pip install 'solo-hardneg[bench]'")
    if len(vectors.query) * keys > 2**18:
        return losses  # pytorch-metric-learning lists all pairs, which takes seconds
    try:
        from pytorch_metric_learning.losses import CrossBatchMemory
        from pytorch_metric_learning.losses import NTXentLoss as PairLoss

        memory = CrossBatchMemory(PairLoss(TAU), dimensions, keys)
        name = Candidate("pytorch-metric-learning", "plain", layout=INTERNAL)
        losses[name] = memory_loss(vectors, memory)
    except ImportError as error:
        print(f"left out: pytorch-metric-learning ({error}). pip install 'solo-hardneg[bench]'")
    return losses


def memory_loss(vectors: Vectors, memory: Any) -> Callable[[], Tensor]:
    """pytorch-metric-learning's memory with one positive per query, as in MoCo.

    Each call stores its keys under new labels. Under the same labels, a query would get one
    positive for each batch in the memory, and the loss would do as many times the work.
    """
    batch, keys, device = len(vectors.query), vectors.by_key.shape[1], vectors.query.device
    with torch.no_grad():
        memory(vectors.by_key.T, torch.arange(keys, device=device))  # fills the memory
    enqueue = torch.arange(2 * batch, device=device) >= batch
    first = keys

    def loss() -> Tensor:
        nonlocal first
        labels = torch.arange(first, first + batch, device=device).repeat(2)
        first += batch
        return memory(torch.cat([vectors.query, vectors.key]), labels, enqueue_mask=enqueue)

    return loss
