"""SimCLR's loss: time and peak memory of one forward and backward pass, against the host's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import torch

from benchmarks.hosts import hosts_simclr_loss
from benchmarks.loss import measured, peaks_of, write
from benchmarks.provenance import HERE, provenance
from benchmarks.rivals import TAU
from benchmarks.timing import Work
from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import simclr_loss_func
from solo_hardneg.negatives import build

POLICIES = {"plain": {}, "hardest 5 %": {"keep": {"band": [0.95, 1.0]}}}


def all_works(
    batch: int, dimensions: int, backends: tuple[str, ...]
) -> dict[tuple[str, str], Work]:
    """(candidate, policy) → one forward and backward pass of both views, the host's first."""
    host = hosts_simclr_loss()
    if host is None:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    z = torch.randn(2 * batch, dimensions, device=device).requires_grad_()
    indexes = torch.arange(batch, device=device).repeat(2)

    def work(loss: partial[torch.Tensor]) -> None:
        z.grad = None
        loss(z, indexes, TAU).backward()

    found: dict[tuple[str, str], Work] = {(host[0], "plain"): partial(work, partial(host[1]))}
    for policy, config in POLICIES.items():
        for backend in backends:
            loss = partial(simclr_loss_func, policy=build(config), backend=backend)
            try:
                work(loss)
            except ConfigError as error:
                print(f"left out: {backend}, {config}: {error}")
                continue
            found[backend, policy] = partial(work, loss)
    return found


def peaks(
    batch: int, dimensions: int, backends: tuple[str, ...], names: list[str]
) -> dict[str, float]:
    """The peak memory of each candidate, bytes."""
    return peaks_of(all_works(batch, dimensions, backends), names)


def run_simclr(
    batches: list[int],
    dimensions: int,
    backends: tuple[str, ...],
    rounds: int | None = None,
    file: Path | None = HERE / "simclr.csv",
) -> pd.DataFrame:
    """Compares on all sizes and writes the rows; B images, 2·B rows."""
    tables = []
    for batch in batches:
        works = all_works(batch, dimensions, backends)
        if not works:
            print("left out: SimCLR: there is no solo-learn at $SOLO_LEARN_DIR or ~/solo-learn")
            return pd.DataFrame()
        sizes = {"B": batch, "D": dimensions}
        command = ["simclr-peaks", str(batch), str(dimensions)]
        table = measured(works, command, backends, sizes, rounds)
        tables.append(table.assign(dtype="float32", **provenance()))
        columns = ["candidate", "policy", "ms", "ratio", "ratio_p20", "ratio_p80", "memory_ratio"]
        print(f"\nSimCLR B={batch} D={dimensions}\n{table[columns].to_string(index=False)}")
        if file is not None:
            write(file, pd.concat(tables), ["B", "D", "device"])
    return pd.concat(tables)
