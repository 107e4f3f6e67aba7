"""Has a kernel follow a plan: block by block, loss and gradient in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from solo_hardneg.formula import LogSums, losses_from
from solo_hardneg.kernels.eager import Gradients, with_gradient
from solo_hardneg.kernels.plan import KernelPlan
from solo_hardneg.kernels.problem import Kernel, Problem, Pulls, Sums, blocks, widened
from solo_hardneg.negatives.kept import Kept
from solo_hardneg.negatives.mix import Mix, Uniform
from solo_hardneg.negatives.pool import Pool

PoolOf = Callable[[slice, Tensor], Pool]

# Synthetic vectors are made for so many numbers at a time: what stays in a processor's cache.
_NUMBERS_AT_A_TIME = {"cpu": 2**19}
_NUMBERS_ON_AN_ACCELERATOR = 2**22


@dataclass(frozen=True)
class Work:
    """One loss.

    Attributes:
        name: the backend's.
        make: makes the kernel.
        problem: what it is to do.
        plan: what becomes of what it finds.
        positive: (N,) the positives' similarities; ``None`` where the kernel finds them.
        positives: (N,) or one number, how many positives there are.
    """

    name: str
    make: Callable[[Problem], Kernel]
    problem: Problem
    plan: KernelPlan
    positive: Tensor | None
    positives: Tensor | float


def loss_of(work: Work) -> tuple[Tensor, Kept]:
    """The mean loss, a scalar, and what the policy left.

    Gradient flows to query, candidates and the positives' similarities, where they want one.
    """
    inputs = [work.problem.query, work.problem.vectors]
    if work.positive is not None:
        inputs.append(work.positive)
    run = _Run(work)
    return with_gradient(run, *inputs), run.kept()


class _Run:
    """The blocks of one loss, one after another."""

    def __init__(self, work: Work) -> None:
        query, vectors = work.problem.query.detach(), work.problem.vectors.detach()
        self.work, self.plan = work, work.plan
        self.number, self.width = query.shape
        self.uniform: Uniform | None = None
        if work.plan.mix is not None:
            self.uniform = work.plan.mix.uniform(self.number, query.device)
        self.problem = replace(work.problem, query=query, vectors=vectors, uniform=self.uniform)
        self.losses: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.notes: dict[str, list[Tensor]] = {}
        self.hard_share: Tensor | None = None

    def __call__(self, wanted: Sequence[bool]) -> tuple[Tensor, Gradients]:
        """The mean loss, and its gradient to query, vectors and positives, where wanted."""
        pulled = any(wanted[:2])
        kernel = self.work.make(replace(self.problem, gradient=pulled, constants=not wanted[1]))
        of_query = torch.zeros_like(widened(self.problem.query)) if pulled else None
        of_vectors = torch.zeros_like(self.problem.vectors) if wanted[1] else None
        of_positive = []
        for rows in blocks(self.number, kernel.block):
            sums = kernel.reduce(rows)
            self._keep(sums, rows)
            derivatives = self._formula(rows, sums, any(wanted), of_vectors)
            if of_query is not None:
                weights, partners = derivatives.get("weights"), derivatives.get("partners")
                pulls = Pulls(derivatives["total"], weights, partners)
                of_query[rows] = kernel.pull(rows, pulls, of_vectors)
                if "query" in derivatives:  # by way of synthetic negatives
                    of_query[rows] += derivatives["query"]
            if "positive" in derivatives:
                of_positive.append(derivatives["positive"])
        gradients = [of_query if wanted[0] else None, of_vectors]
        if self.work.positive is not None:
            gradients.append(torch.cat(of_positive) if wanted[2] else None)
        return torch.cat(self.losses).mean(), gradients

    def kept(self) -> Kept:
        """What the policy left."""
        made = 0 if self.plan.mix is None else self.plan.mix.pairs + self.plan.mix.queries
        notes = {name: torch.cat(values) for name, values in self.notes.items()}
        candidates = len(self.problem.vectors) + made
        return Kept(torch.cat(self.counts), candidates, self.work.name, self.hard_share, notes)

    def _keep(self, sums: Sums, rows: slice) -> None:
        self._note(sums.notes)
        if sums.hard_share is not None:
            share = sums.hard_share * ((rows.stop - rows.start) / self.number)
            self.hard_share = share if self.hard_share is None else self.hard_share + share

    def _note(self, notes: Mapping[str, Tensor]) -> None:
        for name, values in notes.items():
            self.notes.setdefault(name, []).append(values)

    def _mix_of(self, sums: Sums) -> Mix | None:
        """What is still to be mixed."""
        return None if sums.mixed else self.plan.mix

    # ------------------------------------------------------------------ the formula on a block

    def _formula(
        self,
        rows: slice,
        sums: Sums,
        gradient: bool,
        of_vectors: Tensor | None,
    ) -> dict[str, Tensor]:
        """Takes down the losses of a block; gives the mean's derivatives to what goes into them.

        That to synthetic negatives' ends is added to ``of_vectors`` (M, D).
        """
        size, mix = self.number, self._mix_of(sums)
        if mix is not None:
            made = (mix.pairs + mix.queries) * self.width
            device = self.problem.query.device.type
            numbers = _NUMBERS_AT_A_TIME.get(device, _NUMBERS_ON_AN_ACCELERATOR)
            size = max(1, numbers // made)
        found: dict[str, list[Tensor]] = {}
        for part in blocks(rows.stop - rows.start, size):
            which = slice(rows.start + part.start, rows.start + part.stop)
            leaves = self._leaves(which, part, sums)
            if of_vectors is not None and mix is not None and not mix.detach:
                leaves["vectors"] = self.problem.vectors.detach()
            with torch.set_grad_enabled(gradient):
                for leaf in leaves.values():
                    leaf.requires_grad_(gradient)
                losses = self._losses(which, part, sums, leaves)
                share = losses.sum() / self.number
            self.losses.append(losses.detach())
            if not gradient:
                continue
            for name, derivative in _derivatives(share, leaves).items():
                if name == "vectors" and of_vectors is not None:
                    of_vectors += derivative
                else:
                    found.setdefault(name, []).append(derivative)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _leaves(self, which: slice, part: slice, sums: Sums) -> dict[str, Tensor]:
        """What the losses of some queries depend on: rows ``which`` of all, ``part`` of the
        block."""
        leaves = {"total": sums.total[part]}
        if sums.weights is not None:
            leaves["weights"] = sums.weights[part]
        if sums.partners is not None:
            leaves["partners"] = sums.partners[part]
        if self.work.positive is not None:
            leaves["positive"] = self.work.positive[which]
        if self._mix_of(sums) is not None:
            leaves["query"] = widened(self.problem.query[which])
        return {name: leaf.detach() for name, leaf in leaves.items()}

    def _losses(
        self, which: slice, part: slice, sums: Sums, leaves: Mapping[str, Tensor]
    ) -> Tensor:
        """(p,) the losses of some queries, by the readable formula."""
        tau, plan = self.problem.temperature, self.plan
        log = LogSums(leaves["total"], leaves.get("weights"), sums.counts[part])
        if plan.mix is not None and sums.mixed:
            before = log.counts - sums.mixed
            self._note(plan.mix.notes(before, plan.mix.present(before)))
        elif plan.mix is not None and sums.hardest is not None and self.uniform is not None:
            vectors = leaves.get("vectors", self.problem.vectors)
            columns, uniform = sums.hardest[part], self.uniform.rows(which)
            made, present = plan.mix.make(leaves["query"], vectors, columns, log.counts, uniform)
            self._note(plan.mix.notes(log.counts, present))
            log = log.plus(made, present, tau, plan.beta)
        positives = self.work.positives
        if isinstance(positives, Tensor):
            positives = positives[which]
        positive = leaves["partners"] * tau if "partners" in leaves else leaves["positive"]
        losses, floored = losses_from(positive, log, tau, plan.tau_plus, positives)
        self.counts.append(log.counts)
        if plan.tau_plus:
            self._note({"floored": floored.float()})
        return losses


def _derivatives(value: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if derivative is None else derivative
        for (name, leaf), derivative in zip(leaves.items(), found, strict=True)
    }
