"""The physical limit: what the arithmetic and the memory of this machine would take at least."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

from benchmarks.provenance import HERE, provenance
from benchmarks.timing import Work, now

# The share of the negatives that each policy of rivals.POLICIES leaves; the synthetic ones of SSCL,
# a few per query, are not counted.
KEPT = {
    "plain": 1.0,
    "hardest 5 %": 0.05,
    "without the hardest 0.1 %": 0.999,
    "band 90-95": 0.05,
    "sscl": 1.0,
}


def _best(work: Work, repeats: int = 15) -> float:
    seconds = []
    for _ in range(repeats):
        start = now()
        work()
        seconds.append(now() - start)
    return min(seconds)


def rates(dimensions: int = 128, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Measured: matrix products (flop/s) and copies (byte/s), at sizes that fill the device.

    On a CPU the products are of tiles that fit its cache, (256, D) by (D, 2048); on a GPU they are
    square.
    """
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    rows, inner, columns = (8192, 8192, 8192) if gpu else (256, dimensions, 2048)
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(columns, inner, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    seconds = _best(lambda: torch.mm(left, right.T, out=out), 20 if gpu else 200)
    large = torch.randn(2**28 if gpu else 2**25, device=device)
    other = torch.empty_like(large)
    copied = _best(lambda: other.copy_(large))
    return {
        "flops": 2 * rows * columns * inner / seconds,
        "bytes": 2 * 4 * len(large) / copied,
    }


def needed(
    queries: int, keys: int, dimensions: int, kept: float, element: int = 4
) -> dict[str, float]:
    """What cannot be saved: all similarities, the kept ones' pull, and reading each key once.

    A kept candidate's vector is read for each query that keeps it, but for what the cache holds;
    that is not counted. ``element`` is the size of a number, bytes.
    """
    products = 2 * queries * keys * dimensions
    return {"flop": products * (1 + kept), "byte": element * keys * dimensions}


def beside_limits(table: pd.DataFrame, rate: Mapping[str, float], element: int = 4) -> pd.DataFrame:
    """A table of the loss's times, with columns for the limit and how much of it is reached.

    Args:
        table: ``N``, ``K``, ``D``, ``policy`` and ``ms``.
        rate: of the device, see :func:`rates`.
        element: bytes of a number.
    """
    rows = []
    for _, row in table.iterrows():
        need = needed(row.N, row.K, row.D, KEPT[row.policy], element)
        by = {"flop": need["flop"] / rate["flops"], "byte": need["byte"] / rate["bytes"]}
        bound = max(by, key=lambda name: by[name])
        rows.append(
            {
                **{"gflop": round(need["flop"] / 1e9, 4), "MB": round(need["byte"] / 1e6, 3)},
                **{"limit_ms": 1e3 * by[bound], "limit_by": bound},
                **{"share_of_limit": round(1e3 * by[bound] / row.ms, 4)},
                **{"gflop_s": round(rate["flops"] / 1e9), "GB_s": round(rate["bytes"] / 1e9)},
            }
        )
    return pd.concat([table.reset_index(drop=True), pd.DataFrame(rows)], axis=1)


def run_limits(queries: int = 256, keys: int = 65536, dimensions: int = 128) -> pd.DataFrame:
    """Limits beside what ``loss.csv`` has for this size and device."""
    rate, known = rates(dimensions), pd.read_csv(HERE / "loss.csv")
    mine = provenance()["device"]
    known = known[(queries == known.N) & (keys == known.K) & (dimensions == known.D)]
    known = known[known.device == mine]
    shares = {name: KEPT[name] for name in ("plain", "hardest 5 %", "without the hardest 0.1 %")}
    rows = []
    for policy, kept in shares.items():
        need = needed(queries, keys, dimensions, kept)
        limit = 1e3 * max(need["flop"] / rate["flops"], need["byte"] / rate["bytes"])
        for _, row in known[known.policy == policy].iterrows():
            rows.append(
                {
                    **{"policy": policy, "candidate": row.candidate},
                    **{"gflop": round(need["flop"] / 1e9, 2), "MB": round(need["byte"] / 1e6, 1)},
                    **{"limit_ms": round(limit, 1), "ms": round(row.ms, 1)},
                    **{"share_of_limit": round(limit / row.ms, 3)},
                    **{"gflop_s": round(rate["flops"] / 1e9), "GB_s": round(rate["bytes"] / 1e9)},
                    **{"N": queries, "K": keys, "D": dimensions, "device": mine},
                    **{"commit": row.commit, "date": row.date},  # of the measured time
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "limits.csv", index=False)
    return table
