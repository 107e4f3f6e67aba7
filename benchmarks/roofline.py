"""The roofline of a loss: the least time that its arithmetic and memory traffic take here."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

from benchmarks.timing import time_interleaved

# Share of the negatives that each policy of the loss benchmark keeps. SSCL's synthetic ones are
# not counted: they are few per query.
KEPT = {
    "plain": 1.0,
    "hardest 5 %": 0.05,
    "without the hardest 0.1 %": 0.999,
    "band 90-95": 0.05,
    "sscl": 1.0,
}


def measure_rates(dimensions: int = 128, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Returns ``flops`` of matrix products (flop/s) and ``bytes`` of copies (byte/s).

    Products are square on a GPU, and (256, D) by (D, 2048), which fits the cache, on a CPU.
    """
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    rows, inner, columns = (8192, 8192, 8192) if gpu else (256, dimensions, 2048)
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(columns, inner, device=device, dtype=dtype)
    product = torch.empty(rows, columns, device=device, dtype=dtype)
    large = torch.randn(2**28 if gpu else 2**25, device=device)
    copy = torch.empty_like(large)
    products = {"mm": lambda: torch.mm(left, right.T, out=product)}
    multiplying = min(time_interleaved(products, 20 if gpu else 200)["mm"])
    copying = min(time_interleaved({"copy": lambda: copy.copy_(large)}, 15)["copy"])
    return {
        "flops": 2 * rows * columns * inner / multiplying,
        "bytes": 2 * 4 * len(large) / copying,
    }


def add_roofline(table: pd.DataFrame, rates: Mapping[str, float], element: int = 4) -> pd.DataFrame:
    """Adds columns for the limit of each row, and the share of it that was reached.

    A loss computes all similarities and the gradient of the kept ones, and reads each key once.

    Args:
        table: With the columns ``N``, ``K``, ``D``, ``policy`` and ``ms``.
        rates: The device's, from :func:`measure_rates`.
        element: Size of a number, bytes.
    """
    flop = 2.0 * table.N * table.K * table.D * (1 + table.policy.map(KEPT))
    traffic = element * table.K * table.D
    limits = pd.DataFrame({"flop": flop / rates["flops"], "byte": traffic / rates["bytes"]})
    limit_ms = 1e3 * limits.max(axis=1)
    return table.assign(
        gflop=(flop / 1e9).round(4),
        MB=(traffic / 1e6).round(3),
        limit_ms=limit_ms,
        limit_by=limits.idxmax(axis=1),
        share_of_limit=(limit_ms / table.ms).round(4),
        gflop_s=round(rates["flops"] / 1e9),
        GB_s=round(rates["bytes"] / 1e9),
    )
