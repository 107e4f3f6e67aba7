"""How time and memory grow with K and N: rows of ``loss.csv`` with a power law fitted to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import linregress

from benchmarks.loss import KEYS, QUERIES, run
from benchmarks.provenance import HERE, provenance

WHAT = {"ms": "time", "peak_MB": "peak memory"}
_RANGE = 64  # from the largest size down; below, fixed costs of a call hide the growth


def fit(sizes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The exponent p of values ∝ size^p, and its standard error (NaN with two points)."""
    if len(sizes) < 2:
        return float("nan"), float("nan")
    line = linregress(np.log(sizes), np.log(values))
    return float(line.slope), float(line.stderr) if len(sizes) > 2 else float("nan")


def exponents(rows: pd.DataFrame, over: str) -> pd.DataFrame:
    """The exponents of each candidate and policy, over ``K`` or ``N``."""
    found = []
    for (candidate, policy), group in rows.groupby(["candidate", "policy"], sort=False):
        for column, name in WHAT.items():
            known = group[(group[column] > 0) & (group[over] >= group[over].max() / _RANGE)]
            exponent, error = fit(known[over].to_numpy(float), known[column].to_numpy(float))
            found.append(
                {
                    **{"candidate": candidate, "policy": policy, "over": over, "of": name},
                    **{"exponent": round(exponent, 3), "error": round(error, 3)},
                    **{"from": known[over].min(), "to": known[over].max(), "points": len(known)},
                    # More than one: then the points are not of the same code.
                    "commits": " ".join(sorted(known["commit"].unique())),
                }
            )
    return pd.DataFrame(found)


def run_scaling(backends: tuple[str, ...], dimensions: int = 128) -> pd.DataFrame:
    """Measures over K at N = 256 and over N at K = 65,536, and fits."""
    over_keys = run([(256, keys, dimensions) for keys in KEYS], backends)
    over_queries = run([(queries, 65536, dimensions) for queries in QUERIES], backends)
    fitted = pd.concat([exponents(over_keys, "K"), exponents(over_queries, "N")])
    fitted["D"], fitted["device"] = dimensions, provenance()["device"]
    fitted.to_csv(HERE / "scaling.csv", index=False)
    return fitted
