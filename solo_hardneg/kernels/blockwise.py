"""Runs a kernel block by block: loss and gradient in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from solo_hardneg.kernels.compile import CompiledPolicy
from solo_hardneg.kernels.formula import LogSums, losses_from_sums
from solo_hardneg.kernels.fused_grad import Gradients, with_fused_grad
from solo_hardneg.kernels.interface import Kernel, KernelInput, blocks, widened
from solo_hardneg.negatives.mix import Mix
from solo_hardneg.negatives.stats import LossStats
from solo_hardneg.negatives.synthesis import RandomNumbers

# Elements of synthetic vectors made at a time; on a CPU they stay in the cache.
_MIX_SIZE = {"cpu": 2**19}
_MIX_SIZE_ON_ACCELERATORS = 2**22


def blockwise_loss(
    make: Callable[[KernelInput], Kernel],
    inputs: KernelInput,
    policy: CompiledPolicy,
    positive: Tensor | None,
    positive_count: Tensor | float,
) -> tuple[Tensor, LossStats]:
    """Returns the mean loss, a scalar, and statistics of what the policy left.

    Gradient flows to queries, candidates and the positives' similarities, where they require it.

    Args:
        make: Makes the kernel.
        inputs: Its input.
        policy: The compiled policy.
        positive: (N,) similarities of the positives; ``None`` if the kernel finds them.
        positive_count: (N,) or one number of positives per query.
    """
    leaves = [inputs.query, inputs.vectors]
    if positive is not None:
        leaves.append(positive)
    loss = _BlockwiseLoss(make, inputs, policy, positive, positive_count)
    return with_fused_grad(loss, *leaves), loss.stats()


class _BlockwiseLoss:
    """Computes one loss and collects its statistics."""

    def __init__(
        self,
        make: Callable[[KernelInput], Kernel],
        inputs: KernelInput,
        policy: CompiledPolicy,
        positive: Tensor | None,
        positive_count: Tensor | float,
    ) -> None:
        query, vectors = inputs.query.detach(), inputs.vectors.detach()
        self.make, self.policy = make, policy
        self.positive, self.positive_count = positive, positive_count
        self.number, self.dimensions = query.shape
        self.numbers: RandomNumbers | None = None
        if policy.mix is not None:
            self.numbers = policy.mix.draw_numbers(query)
        self.inputs = replace(inputs, query=query, vectors=vectors, numbers=self.numbers)
        self.losses: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.notes: dict[str, list[Tensor]] = {}
        self.hard_share: Tensor | None = None

    def __call__(self, wanted: Sequence[bool]) -> tuple[Tensor, Gradients]:
        """Returns the mean loss, and its gradient by the leaves that need one."""
        pulls = any(wanted[:2])
        kernel = self.make(replace(self.inputs, gradient=pulls, constants=not wanted[1]))
        query_grad = torch.zeros_like(widened(self.inputs.query)) if pulls else None
        vectors_grad = torch.zeros_like(self.inputs.vectors) if wanted[1] else None
        positive_grads = []
        for rows in blocks(self.number, kernel.block):
            sums = kernel.reduce(rows)
            self._collect(sums, rows)
            derivatives = self._apply_formula(rows, sums, any(wanted), vectors_grad)
            if query_grad is not None:
                weights, partners = derivatives.get("weights"), derivatives.get("partners")
                query_grad[rows] = kernel.pull(
                    rows, derivatives["total"], weights, partners, vectors_grad
                )
                if "query" in derivatives:  # through synthetic negatives
                    query_grad[rows] += derivatives["query"]
            if "positive" in derivatives:
                positive_grads.append(derivatives["positive"])
        gradients = [query_grad if wanted[0] else None, vectors_grad]
        if self.positive is not None:
            gradients.append(torch.cat(positive_grads) if wanted[2] else None)
        return torch.cat(self.losses).mean(), gradients

    def stats(self) -> LossStats:
        """Returns statistics of what the policy left."""
        synthetic = 0 if self.policy.mix is None else self.policy.mix.adds
        notes = {name: torch.cat(values) for name, values in self.notes.items()}
        candidates = len(self.inputs.vectors) + synthetic
        return LossStats(torch.cat(self.counts), candidates, self.hard_share, notes)

    def _collect(self, sums: LogSums, rows: slice) -> None:
        """Adds a block to the statistics."""
        self._note(sums.notes)
        if sums.hard_share is not None:
            share = sums.hard_share * ((rows.stop - rows.start) / self.number)
            self.hard_share = share if self.hard_share is None else self.hard_share + share

    def _note(self, notes: Mapping[str, Tensor]) -> None:
        for name, values in notes.items():
            self.notes.setdefault(name, []).append(values)

    def _pending_mix(self, sums: LogSums) -> Mix | None:
        """The verb whose synthetic negatives the kernel did not include."""
        return None if sums.mixed else self.policy.mix

    # ------------------------------------------------------------------ the formula on a block

    def _apply_formula(
        self, rows: slice, sums: LogSums, gradient: bool, vectors_grad: Tensor | None
    ) -> dict[str, Tensor]:
        """Records the losses of a block; returns the derivatives of their mean, by input.

        The gradient of vectors that are mixed is added to ``vectors_grad`` (M, D).
        """
        size, mix = self.number, self._pending_mix(sums)
        if mix is not None:
            limit = _MIX_SIZE.get(self.inputs.query.device.type, _MIX_SIZE_ON_ACCELERATORS)
            size = max(1, limit // (mix.adds * self.dimensions))
        found: dict[str, list[Tensor]] = {}
        for part in blocks(rows.stop - rows.start, size):
            some = slice(rows.start + part.start, rows.start + part.stop)
            leaves = self._leaves(some, part, sums)
            if vectors_grad is not None and mix is not None and not mix.detach:
                leaves["vectors"] = self.inputs.vectors.detach()
            with torch.set_grad_enabled(gradient):
                for leaf in leaves.values():
                    leaf.requires_grad_(gradient)
                losses = self._losses(some, part, sums, leaves)
                share = losses.sum() / self.number
            self.losses.append(losses.detach())
            if not gradient:
                continue
            for name, derivative in _gradients(share, leaves).items():
                if name == "vectors" and vectors_grad is not None:
                    vectors_grad += derivative
                else:
                    found.setdefault(name, []).append(derivative)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _leaves(self, rows: slice, part: slice, sums: LogSums) -> dict[str, Tensor]:
        """Returns the tensors that some losses depend on, by name.

        Args:
            rows: Rows of these queries among all queries.
            part: Their rows in the block.
            sums: Sums of the block.
        """
        leaves = {"total": sums.total[part]}
        if sums.weights is not None:
            leaves["weights"] = sums.weights[part]
        if sums.partners is not None:
            leaves["partners"] = sums.partners[part]
        if self.positive is not None:
            leaves["positive"] = self.positive[rows]
        if self._pending_mix(sums) is not None:
            leaves["query"] = widened(self.inputs.query[rows])
        return {name: leaf.detach() for name, leaf in leaves.items()}

    def _losses(
        self, rows: slice, part: slice, sums: LogSums, leaves: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns (p,) losses of some queries, by the readable formula."""
        tau, policy = self.inputs.temperature, self.policy
        log = LogSums(leaves["total"], leaves.get("weights"), sums.counts[part])
        if policy.mix is not None and sums.mixed:
            before = log.counts - sums.mixed
            self._note(policy.mix.notes(before, policy.mix.present(before)))
        elif policy.mix is not None and sums.hardest is not None and self.numbers is not None:
            vectors = leaves.get("vectors", self.inputs.vectors)
            columns, numbers = sums.hardest[part], self.numbers.rows(rows)
            made, present = policy.mix.synthesize(
                leaves["query"], vectors, columns, log.counts, numbers
            )
            self._note(policy.mix.notes(log.counts, present))
            log = log.plus(made, present, tau, policy.beta)
        count = self.positive_count
        if isinstance(count, Tensor):
            count = count[rows]
        positive = leaves["partners"] * tau if "partners" in leaves else leaves["positive"]
        losses, floored = losses_from_sums(positive, log, tau, policy.tau_plus, count)
        self.counts.append(log.counts)
        if policy.tau_plus:
            self._note({"floored": floored.float()})
        return losses


def _gradients(value: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the gradient of a scalar by each leaf, zeros for a leaf that it doesn't use."""
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if derivative is None else derivative
        for (name, leaf), derivative in zip(leaves.items(), found, strict=True)
    }
