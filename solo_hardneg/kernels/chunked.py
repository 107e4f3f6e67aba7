"""Stock PyTorch, on any device: some queries at a time, so that N×M numbers are never held.

Three ways, by what the policy leaves:

- everything: column tiles with a running maximum, as in FlashAttention (Dao et al. 2022, arXiv
  2205.14135); similarities and the product back to the queries stay in the cache.
- a narrow band near the hard end, on a CPU: the columns and similarities of what is kept, no
  more, and a weighted sum of those vectors as gradient.
- anything else, and SimCLR: the weights of all candidates, 0 where they are not kept.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, threshold

from solo_hardneg import sync
from solo_hardneg.kernels.problem import Problem, Pulls, Ranks, Sums
from solo_hardneg.negatives import edge as edges

_SPARSE = 0.15  # up to this share, gathering what is kept beats a product with everything
_LEAST_ROWS = 48  # fewer make matrix products slow
_NUMBERS = {"cpu": 3 * 2**20}  # of similarities in a block, if there are enough rows
_NUMBERS_ON_AN_ACCELERATOR = 2**23
_LEAST = -80.0  # an exponent below it adds nothing to a sum that has a term of 1
_TERMS = 512  # so many are added one after another


def chunked(problem: Problem) -> Block:
    """The kernel for a problem."""
    ranks, width = problem.ranks, len(problem.vectors)
    everything = problem.pool_of is None and ranks is None
    if everything and not problem.hardest and problem.constants:
        return EverythingKernel(problem)
    # On a GPU a product with everything takes less than to gather a large list of columns.
    gathers = sync.is_free(problem.query)
    if gathers and problem.pool_of is None and ranks is not None and ranks.inside:
        near = width - ranks.first <= _SPARSE * width
        if near and problem.constants and not problem.hardest and problem.vectors.is_contiguous():
            return SparseKernel(problem)
    return WeightsKernel(problem)


class Block(ABC):
    """What the three have in common.

    Attributes:
        block: how many queries are taken at a time.
        scales: what a similarity is multiplied by in the exponents of A and, if β > 0, of B.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.query, self.vectors = problem.query, problem.vectors
        self.scales = [(1 + problem.beta) / problem.temperature]
        if problem.beta:
            self.scales.append(problem.beta / problem.temperature)
        numbers = _NUMBERS.get(self.query.device.type, _NUMBERS_ON_AN_ACCELERATOR)
        self.block = max(_LEAST_ROWS, numbers // max(1, len(self.vectors)))

    @abstractmethod
    def reduce(self, rows: slice) -> Sums:
        """A and B of a block of queries; see :class:`~solo_hardneg.kernels.problem.Kernel`."""

    @abstractmethod
    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        """The gradient of the block that was reduced last."""

    def _derivatives(self, pulls: Pulls) -> list[Tensor]:
        """(n, 1) what each exponent's normalised weights are multiplied by."""
        of = [pulls.total] if pulls.weights is None else [pulls.total, pulls.weights]
        return [d[:, None] * scale for d, scale in zip(of, self.scales, strict=True)]

    def _sums(self, logs: list[Tensor], counts: Tensor, **more: Any) -> Sums:
        return Sums(logs[0], logs[1] if len(logs) > 1 else None, counts, **more)


class EverythingKernel(Block):
    """All candidates are kept."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        cpu = self.query.device.type == "cpu"
        self.block = min(len(self.query), 512 if cpu else 4096)
        self.tile = max(64, (2**19 if cpu else 2**23) // max(1, self.block))
        self.sums: list[Tensor] = []

    def reduce(self, rows: slice) -> Sums:
        query = self.query[rows]
        state = [Running(query, scale, self.problem.gradient) for scale in self.scales]
        for start in range(0, len(self.vectors), self.tile):
            tile = self.vectors[start : start + self.tile]
            similarity = query @ tile.T
            for running in state[1:]:
                running.add(similarity.clone(), tile)
            state[0].add(similarity, tile)
        self.sums = [running.pulled() for running in state if self.problem.gradient]
        counts = query.new_full((len(query),), len(self.vectors), dtype=torch.long)
        return self._sums([running.log() for running in state], counts)

    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        parts = zip(self._derivatives(pulls), self.sums, strict=True)
        return torch.stack([derivative * pulled for derivative, pulled in parts]).sum(dim=0)


class Running:
    """log Σ exp(scale·s) and Σ softmax(scale·s)·n over tiles that come one after another."""

    def __init__(self, query: Tensor, scale: float, gradient: bool) -> None:
        self.scale, self.gradient = scale, gradient
        # Not -inf: of a tile in which nothing counts that would leave NaN.
        self.top = query.new_full((len(query), 1), torch.finfo(query.dtype).min)
        self.sum = torch.zeros_like(self.top)
        self.vector = torch.zeros_like(query)

    def add(self, similarity: Tensor, tile: Tensor) -> None:
        """Takes up a tile's similarities (n, w), which it overwrites, and vectors (w, D)."""
        logits = similarity.mul_(self.scale)
        top = torch.maximum(self.top, logits.amax(dim=1, keepdim=True))
        fade = (self.top - top).exp_()
        weight = exponentials(logits.sub_(top))
        self.sum.mul_(fade).add_(weight.sum(dim=1, keepdim=True))
        if self.gradient:
            self.vector.mul_(fade).addmm_(weight, tile)
        self.top = top

    def log(self) -> Tensor:
        return (self.sum.log() + self.top)[:, 0]

    def pulled(self) -> Tensor:
        return self.vector / self.sum.clamp(min=torch.finfo(self.sum.dtype).tiny)


class SparseKernel(Block):
    """A band whose lower end is near the hardest."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        assert problem.ranks is not None  # chunked() made sure
        self.ranks: Ranks = problem.ranks

    def reduce(self, rows: slice) -> Sums:
        similarity = self.query[rows] @ self.vectors.T
        width, harder = similarity.shape[1], similarity.shape[1] - self.ranks.past
        columns = edges.top(similarity, width - self.ranks.first, ordered=harder > 0)[:, harder:]
        self.columns, values = columns, similarity.gather(1, columns)
        self.weights, logs = [], []
        for scale in self.scales:
            logits = values * scale
            log = torch.logsumexp(logits, dim=1)
            self.weights.append(logits.sub_(log[:, None]).exp_())
            logs.append(log)
        counts = columns.new_full((len(columns),), columns.shape[1])
        return self._sums(logs, counts)

    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        parts = zip(self._derivatives(pulls), self.weights, strict=True)
        weight = torch.stack([derivative * weight for derivative, weight in parts]).sum(dim=0)
        return weighted_sum(self.vectors, self.columns, weight)


def weighted_sum(vectors: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """(n, D) Σ weight·vector over some (n, k) of the candidates (M, D), which lie row after row.

    A few at a time, for thousands of like terms added one after another lose a digit.
    """
    rows, width = columns.shape
    pieces = max(1, -(-width // _TERMS))
    starts = width * torch.arange(rows, device=columns.device)[:, None]
    starts = starts + _TERMS * torch.arange(pieces, device=columns.device)
    summed = embedding_bag(
        columns.flatten(),
        vectors,
        starts.flatten().to(columns.dtype),
        per_sample_weights=weights.flatten(),
        mode="sum",
    )
    return summed.view(rows, pieces, -1).sum(dim=1)


class WeightsKernel(Block):
    """Any selection: a weight for every candidate."""

    weights: list[Weights]
    partners: Weights | None

    def reduce(self, rows: slice) -> Sums:
        self.weights, self.partners = [], None  # those of the last block are not needed any more
        similarity = self.query[rows] @ self.vectors.T
        more: dict[str, Any] = {}
        if self.problem.partners is not None:
            # Before the selection, which overwrites similarities.
            logits = similarity.masked_fill(~self.problem.partners(rows), -torch.inf)
            self.partners = Weights(logits, 1 / self.problem.temperature)
            more["partners"] = self.partners.log
        if self.problem.pool_of is None:
            self._leave_ranks(similarity)
            width, ranks = similarity.shape[1], self.problem.ranks
            kept = width if ranks is None else ranks.kept(width)
            counts = similarity.new_full((len(similarity),), kept, dtype=torch.long)
        else:
            pool = self.problem.pool_of(rows, similarity)
            more |= {"hard_share": pool.hard_share, "notes": pool.notes}
            counts = pool.counts
            similarity.masked_fill_(~pool.present, -torch.inf)
        if self.problem.hardest:
            number = min(self.problem.hardest, similarity.shape[1])
            more["hardest"] = edges.top(similarity, number)
        spare = [similarity.clone() for _ in self.scales[1:]]
        weights = zip([similarity, *spare], self.scales, strict=True)
        self.weights = [Weights(logits, scale) for logits, scale in weights]
        return self._sums([part.log for part in self.weights], counts, **more)

    def _leave_ranks(self, similarity: Tensor) -> None:
        """Puts -inf where candidates are not of the wanted ranks."""
        ranks, width = self.problem.ranks, similarity.shape[1]
        if ranks is None:
            return
        easiest = ranks.first == 0 if ranks.inside else ranks.past == width
        harder = width - (ranks.past if ranks.inside else ranks.first)
        if easiest and harder <= width // 2 and sync.is_free(similarity):
            columns = edges.top(similarity, harder, ordered=False)
            similarity.scatter_(1, columns, -torch.inf)
            return
        named = torch.ones_like(similarity, dtype=torch.bool)
        if ranks.first > 0:
            named = edges.edge(similarity, width - ranks.first).at_or_above(similarity)
        if ranks.past < width:
            named &= ~edges.edge(similarity, width - ranks.past).at_or_above(similarity)
        similarity.masked_fill_(~named if ranks.inside else named, -torch.inf)

    def pull(self, rows: slice, pulls: Pulls, vectors_grad: Tensor | None = None) -> Tensor:
        derivatives = self._derivatives(pulls)
        parts = list(zip(self.weights, derivatives, strict=True))
        if self.partners is not None and pulls.partners is not None:
            scale = 1 / self.problem.temperature
            parts.append((self.partners, pulls.partners[:, None] * scale))
        (first, by_first), *others = parts
        if not others and vectors_grad is None:
            return (first.weight @ self.vectors) * (by_first * first.share)
        weight = first.weight.mul_(by_first * first.share)
        for part, derivative in others:
            weight.add_(part.weight.mul_(derivative * part.share))
        if vectors_grad is not None:
            vectors_grad.addmm_(weight.T, self.query[rows])
        return weight @ self.vectors


def exponentials(logits: Tensor) -> Tensor:
    """exp of numbers up to 0, in their place; exactly 0 below -79, where it is under 5e-35.

    On a CPU, exp takes three times as long where it gives 0, and twelve times where it gives a
    subnormal number.
    """
    if logits.device.type != "cpu":
        return logits.exp_()
    return threshold(logits.clamp_(min=_LEAST).exp_(), math.exp(_LEAST + 1), 0.0, inplace=True)


class Weights:
    """exp(scale·s) of candidates, up to a factor for each query.

    Attributes:
        log: (n,) log Σ exp(scale·s); -inf where nothing is kept, so that all s are -inf.
        weight: (n, M), in the place of ``similarity``; 0 where s is -inf.
        share: (n, 1) what makes ``weight`` sum to 1.
    """

    def __init__(self, similarity: Tensor, scale: float) -> None:
        if similarity.shape[1] == 0:
            similarity = similarity.new_full((len(similarity), 1), -math.inf)
        top = similarity.amax(dim=1, keepdim=True)
        top = top.masked_fill(top == -math.inf, 0.0) * scale
        self.weight = exponentials(torch.add(-top, similarity, alpha=scale, out=similarity))
        total = self.weight.sum(dim=1, keepdim=True)
        self.share = 1 / total.masked_fill(total == 0, 1.0)
        self.log = (total.log() + top)[:, 0]
