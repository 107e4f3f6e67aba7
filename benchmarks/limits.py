"""The physical limit: what the arithmetic and the memory of this machine would take at least."""

from __future__ import annotations

import pandas as pd
import torch

from benchmarks.provenance import HERE, provenance
from benchmarks.timing import Work, now


def _best(work: Work, repeats: int = 15) -> float:
    seconds = []
    for _ in range(repeats):
        start = now()
        work()
        seconds.append(now() - start)
    return min(seconds)


def rates(dimensions: int = 128) -> dict[str, float]:
    """Measured: matrix products in tiles (flop/s), and copies (byte/s)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.randn(256, dimensions, device=device)
    tile = torch.randn(2048, dimensions, device=device)
    out = torch.empty(256, 2048, device=device)
    seconds = _best(lambda: torch.mm(query, tile.T, out=out), 200)
    large = torch.randn(2**25, device=device)
    other = torch.empty_like(large)
    copied = _best(lambda: other.copy_(large))
    return {
        "flops": 2 * 256 * 2048 * dimensions / seconds,
        "bytes": 2 * 4 * len(large) / copied,
    }


def needed(queries: int, keys: int, dimensions: int, kept: float) -> dict[str, float]:
    """What cannot be saved: all similarities, the kept ones' pull, and reading each key once.

    A kept candidate's vector is read for each query that keeps it, but for what the cache holds;
    that is not counted.
    """
    products = 2 * queries * keys * dimensions
    return {"flop": products * (1 + kept), "byte": 4 * keys * dimensions}


def run_limits(queries: int = 256, keys: int = 65536, dimensions: int = 128) -> pd.DataFrame:
    """Limits beside what ``loss.csv`` has for this size and device."""
    rate, known = rates(dimensions), pd.read_csv(HERE / "loss.csv")
    mine = provenance()["device"]
    known = known[(queries == known.N) & (keys == known.K) & (dimensions == known.D)]
    known = known[known.device == mine]
    shares = {"plain": 1.0, "hardest 5 %": 0.05, "without the hardest 0.1 %": 0.999}
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
