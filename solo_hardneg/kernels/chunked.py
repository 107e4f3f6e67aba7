"""The loss in stock PyTorch on any device, in blocks of queries, without N×M similarities.

One of three kernels, by what the policy keeps:

- everything: an online softmax over column tiles, as in FlashAttention (Dao et al. 2022, arXiv
  2205.14135), so that similarities stay in the cache.
- a narrow band near the hard end, on a CPU: only the kept columns are gathered, for the sums and
  for the gradient.
- anything else, and SimCLR: a weight for each candidate of a block, 0 where it is masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, threshold

from solo_hardneg import devices
from solo_hardneg.kernels.formula import LogSums
from solo_hardneg.kernels.interface import Kernel, KernelInput, Ranks
from solo_hardneg.negatives.ranks import kth_largest, top_columns

_GATHERED_SHARE = 0.15  # up to this share, gathering is faster than a product with all candidates
_MIN_ROWS = 48  # matrix products with fewer rows are slow
_BLOCK_SIZE = {"cpu": 3 * 2**20}  # similarities per block, unless that is below _MIN_ROWS
_BLOCK_SIZE_ON_ACCELERATORS = 2**23
_MIN_LOGIT = -80.0  # exp of less is negligible in a sum that contains exp(0)
_BAG_SIZE = 512  # terms of a float32 sum in sequence


def chunked_kernel(inputs: KernelInput) -> Kernel:
    """Makes the fastest of the three kernels that handles an input."""
    ranks, width = inputs.ranks, len(inputs.vectors)
    everything = inputs.pool_of is None and ranks is None
    if everything and not inputs.hardest and inputs.constants:
        return EverythingKernel(inputs)
    # On a GPU a product with all candidates is faster than gathering a large list of columns.
    gathers = devices.reads_are_free(inputs.query)
    if gathers and inputs.pool_of is None and ranks is not None and ranks.inside:
        near = width - ranks.first <= _GATHERED_SHARE * width
        if near and inputs.constants and not inputs.hardest and inputs.vectors.is_contiguous():
            return SparseKernel(inputs)
    return MaskedKernel(inputs)


class BlockKernel(Kernel):
    """Base class of kernels on a CPU and in stock PyTorch.

    Attributes:
        scales: Factors of the similarity in the exponents of A and, if β > 0, of B.
    """

    def __init__(self, inputs: KernelInput) -> None:
        self.inputs = inputs
        self.query, self.vectors = inputs.query, inputs.vectors
        self.scales = [(1 + inputs.beta) / inputs.temperature]
        if inputs.beta:
            self.scales.append(inputs.beta / inputs.temperature)
        size = _BLOCK_SIZE.get(self.query.device.type, _BLOCK_SIZE_ON_ACCELERATORS)
        self.block = max(_MIN_ROWS, size // max(1, len(self.vectors)))

    def _softmax_factors(self, total: Tensor, weights: Tensor | None) -> list[Tensor]:
        """Returns the (n, 1) factor of each exponent's softmax in the gradient."""
        of = [total] if weights is None else [total, weights]
        return [d[:, None] * scale for d, scale in zip(of, self.scales, strict=True)]

    def _log_sums(self, logs: list[Tensor], counts: Tensor, **more: Any) -> LogSums:
        return LogSums(logs[0], logs[1] if len(logs) > 1 else None, counts, **more)


class EverythingKernel(BlockKernel):
    """Keeps all candidates."""

    def __init__(self, inputs: KernelInput) -> None:
        super().__init__(inputs)
        cpu = self.query.device.type == "cpu"
        self.block = min(len(self.query), 512 if cpu else 4096)
        self.tile = max(64, (2**19 if cpu else 2**23) // max(1, self.block))
        self.means: list[Tensor] = []

    def reduce(self, rows: slice) -> LogSums:
        query = self.query[rows]
        softmaxes = [OnlineSoftmax(query, scale, self.inputs.gradient) for scale in self.scales]
        for start in range(0, len(self.vectors), self.tile):
            vectors = self.vectors[start : start + self.tile]
            add_tile(softmaxes, query @ vectors.T, vectors)
        self.means = [softmax.mean() for softmax in softmaxes if self.inputs.gradient]
        counts = query.new_full((len(query),), len(self.vectors), dtype=torch.long)
        return self._log_sums([softmax.log() for softmax in softmaxes], counts)

    def pull(
        self,
        rows: slice,
        total: Tensor,
        weights: Tensor | None = None,
        partners: Tensor | None = None,
        vectors_grad: Tensor | None = None,
    ) -> Tensor:
        pairs = zip(self._softmax_factors(total, weights), self.means, strict=True)
        return torch.stack([factor * mean for factor, mean in pairs]).sum(dim=0)


class OnlineSoftmax:
    """log Σ exp(scale·s) and Σ softmax(scale·s)·n over tiles of candidates, added one by one."""

    def __init__(self, query: Tensor, scale: float, gradient: bool) -> None:
        self.scale, self.gradient = scale, gradient
        # Not -inf, which a fully masked tile would turn into NaN.
        self.top = query.new_full((len(query), 1), torch.finfo(query.dtype).min)
        self.sum = torch.zeros_like(self.top)
        self.vector = torch.zeros_like(query)

    def add(self, similarity: Tensor, vectors: Tensor) -> None:
        """Adds a tile of similarities (n, w), which it overwrites, and of candidates (w, D)."""
        logits = similarity.mul_(self.scale)
        top = torch.maximum(self.top, logits.amax(dim=1, keepdim=True))
        fade = (self.top - top).exp_()
        weight = exp_(logits.sub_(top))
        self.sum.mul_(fade).add_(weight.sum(dim=1, keepdim=True))
        if self.gradient:
            self.vector.mul_(fade).addmm_(weight, vectors)
        self.top = top

    def log(self) -> Tensor:
        """Returns (n,) log Σ exp(scale·s)."""
        return (self.sum.log() + self.top)[:, 0]

    def mean(self) -> Tensor:
        """Returns (n, D) Σ softmax(scale·s)·n."""
        return self.vector / self.sum.clamp(min=torch.finfo(self.sum.dtype).tiny)


def add_tile(softmaxes: Sequence[OnlineSoftmax], similarity: Tensor, vectors: Tensor) -> None:
    """Adds a tile to each of some sums; overwrites the similarities."""
    for softmax in softmaxes[1:]:
        softmax.add(similarity.clone(), vectors)
    for softmax in softmaxes[:1]:
        softmax.add(similarity, vectors)


class SparseKernel(BlockKernel):
    """Gathers a band whose lower end is near the hardest."""

    def __init__(self, inputs: KernelInput) -> None:
        super().__init__(inputs)
        assert inputs.ranks is not None
        self.ranks: Ranks = inputs.ranks

    def reduce(self, rows: slice) -> LogSums:
        similarity = self.query[rows] @ self.vectors.T
        width, harder = similarity.shape[1], similarity.shape[1] - self.ranks.past
        columns = top_columns(similarity, width - self.ranks.first, ordered=harder > 0)[:, harder:]
        self.columns, values = columns, similarity.gather(1, columns)
        self.weights, logs = [], []
        for scale in self.scales:
            logits = values * scale
            log = torch.logsumexp(logits, dim=1)
            self.weights.append(logits.sub_(log[:, None]).exp_())
            logs.append(log)
        counts = columns.new_full((len(columns),), columns.shape[1])
        return self._log_sums(logs, counts)

    def pull(
        self,
        rows: slice,
        total: Tensor,
        weights: Tensor | None = None,
        partners: Tensor | None = None,
        vectors_grad: Tensor | None = None,
    ) -> Tensor:
        pairs = zip(self._softmax_factors(total, weights), self.weights, strict=True)
        weight = torch.stack([factor * weight for factor, weight in pairs]).sum(dim=0)
        return weighted_sum(self.vectors, self.columns, weight)


def weighted_sum(vectors: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Returns (n, D) Σ weight·vector over (n, k) columns of contiguous candidates (M, D).

    Sums in pieces, because thousands of similar terms in sequence lose a digit.
    """
    rows, width = columns.shape
    pieces = max(1, -(-width // _BAG_SIZE))
    starts = width * torch.arange(rows, device=columns.device)[:, None]
    starts = starts + _BAG_SIZE * torch.arange(pieces, device=columns.device)
    summed = embedding_bag(
        columns.flatten(),
        vectors,
        starts.flatten().to(columns.dtype),
        per_sample_weights=weights.flatten(),
        mode="sum",
    )
    return summed.view(rows, pieces, -1).sum(dim=1)


class MaskedKernel(BlockKernel):
    """Holds a weight for each candidate of a block; follows any selection."""

    softmaxes: list[SoftmaxWeights]
    partners: SoftmaxWeights | None

    def reduce(self, rows: slice) -> LogSums:
        self.softmaxes, self.partners = [], None  # frees those of the last block
        similarity = self.query[rows] @ self.vectors.T
        more: dict[str, Any] = {}
        if self.inputs.partners is not None:
            # Before the selection, which overwrites similarities.
            logits = similarity.masked_fill(~self.inputs.partners(rows), -torch.inf)
            self.partners = SoftmaxWeights(logits, 1 / self.inputs.temperature)
            more["partners"] = self.partners.log
        if self.inputs.pool_of is None:
            self._mask_ranks(similarity)
            width, ranks = similarity.shape[1], self.inputs.ranks
            kept = width if ranks is None else ranks.kept(width)
            counts = similarity.new_full((len(similarity),), kept, dtype=torch.long)
        else:
            pool = self.inputs.pool_of(rows, similarity)
            more |= {"hard_share": pool.hard_share, "notes": pool.notes}
            counts = pool.counts
            similarity.masked_fill_(~pool.present, -torch.inf)
        if self.inputs.hardest:
            number = min(self.inputs.hardest, similarity.shape[1])
            more["hardest"] = top_columns(similarity, number)
        copies = [similarity.clone() for _ in self.scales[1:]]
        pairs = zip([similarity, *copies], self.scales, strict=True)
        self.softmaxes = [SoftmaxWeights(values, scale) for values, scale in pairs]
        return self._log_sums([softmax.log for softmax in self.softmaxes], counts, **more)

    def _mask_ranks(self, similarity: Tensor) -> None:
        """Sets candidates of other ranks to -inf."""
        ranks, width = self.inputs.ranks, similarity.shape[1]
        if ranks is None:
            return
        easiest = ranks.first == 0 if ranks.inside else ranks.past == width
        harder = width - (ranks.past if ranks.inside else ranks.first)
        if easiest and harder <= width // 2 and devices.reads_are_free(similarity):
            columns = top_columns(similarity, harder, ordered=False)
            similarity.scatter_(1, columns, -torch.inf)
            return
        in_range = torch.ones_like(similarity, dtype=torch.bool)
        if ranks.first > 0:
            in_range = kth_largest(similarity, width - ranks.first).at_or_above(similarity)
        if ranks.past < width:
            in_range &= ~kth_largest(similarity, width - ranks.past).at_or_above(similarity)
        similarity.masked_fill_(~in_range if ranks.inside else in_range, -torch.inf)

    def pull(
        self,
        rows: slice,
        total: Tensor,
        weights: Tensor | None = None,
        partners: Tensor | None = None,
        vectors_grad: Tensor | None = None,
    ) -> Tensor:
        factors = self._softmax_factors(total, weights)
        pairs = list(zip(self.softmaxes, factors, strict=True))
        if self.partners is not None and partners is not None:
            scale = 1 / self.inputs.temperature
            pairs.append((self.partners, partners[:, None] * scale))
        (first, first_factor), *others = pairs
        if not others and vectors_grad is None:
            return (first.weight @ self.vectors) * (first_factor * first.share)
        weight = first.weight.mul_(first_factor * first.share)
        for softmax, factor in others:
            weight.add_(softmax.weight.mul_(factor * softmax.share))
        if vectors_grad is not None:
            vectors_grad.addmm_(weight.T, self.query[rows])
        return weight @ self.vectors


class SoftmaxWeights:
    """softmax(scale·s) over the candidates of n queries, not yet normalised.

    Args:
        similarity: (n, M), overwritten; -inf where masked.
        scale: Factor of the similarity.

    Attributes:
        log: (n,) log Σ exp(scale·s); -inf where all candidates are masked.
        weight: (n, M) exp(scale·s) up to a factor per query, in the memory of ``similarity``; 0
            where masked.
        share: (n, 1) factor that makes ``weight`` sum to 1.
    """

    def __init__(self, similarity: Tensor, scale: float) -> None:
        if similarity.shape[1] == 0:
            similarity = similarity.new_full((len(similarity), 1), -math.inf)
        top = similarity.amax(dim=1, keepdim=True)
        top = top.masked_fill(top == -math.inf, 0.0) * scale
        self.weight = exp_(torch.add(-top, similarity, alpha=scale, out=similarity))
        total = self.weight.sum(dim=1, keepdim=True)
        self.share = 1 / total.masked_fill(total == 0, 1.0)
        self.log = (total.log() + top)[:, 0]


def exp_(logits: Tensor) -> Tensor:
    """Computes exp of nonpositive numbers in place; 0 below -79, where it is under 5e-35.

    On a CPU, exp takes three times as long where it underflows, and twelve times where its result
    is subnormal.
    """
    if logits.device.type != "cpu":
        return logits.exp_()
    values = logits.clamp_(min=_MIN_LOGIT).exp_()
    return threshold(values, math.exp(_MIN_LOGIT + 1), 0.0, inplace=True)
