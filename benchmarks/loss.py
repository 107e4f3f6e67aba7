"""The loss alone: time and peak memory of one forward and backward pass."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.candidates import INTERNAL, Candidate, Refused, Vectors, make_candidates
from benchmarks.memory import peak_memory, run_in_fresh_process
from benchmarks.precision import dtype_label
from benchmarks.provenance import HERE, provenance, update_csv
from benchmarks.timing import Call, summarize_times, time_interleaved

_SECONDS = 8.0  # for the rounds of one comparison
_SLOW = 8.0  # seconds of a call from which a candidate is left out
_BYTES = 3e9  # of the reference's similarities


def compare_losses(
    sizes: tuple[int, int, int],
    backends: tuple[str, ...],
    rounds: int | None = None,
    libraries: bool = True,
    precision: str = "32-true",
    refused: Refused | None = None,
    in_process: bool = False,
    **timing: Any,
) -> pd.DataFrame:
    """Compares all candidates at one size with solo-learn's loss, the first row.

    Args:
        sizes: N queries, K keys, D dimensions.
        backends: Our backends.
        rounds: Number of rounds; None for as many as fit into some seconds.
        libraries: Whether to compare other libraries.
        precision: See :mod:`benchmarks.precision`.
        refused: Gets the candidates that can't run.
        in_process: Whether to measure memory in this process on a CPU, too, where memory that was
            freed before hides a part of it.
        timing: More arguments of :func:`benchmarks.timing.time_interleaved`.
    """
    calls = make_candidates(Vectors.make(*sizes, precision), backends, libraries, refused)
    calls = _drop_slow(calls)
    times = _time_calls(calls, rounds, **timing)
    if in_process or torch.cuda.is_available():
        peaks = peaks_of(calls, list(calls))
    else:
        names = json.dumps(list(calls))
        peaks = run_in_fresh_process("peaks", *sizes, ",".join(backends), names)
    return pd.DataFrame(
        {
            **name._asdict(),
            **dict(zip("NKD", sizes, strict=True)),
            **{column: round(value, 4) for column, value in times[name].items()},
            "peak_MB": round(peak / 1e6, 2),
            "memory_ratio": round(peak / peaks[0], 4) if peaks[0] else math.nan,
            "dtype": dtype_label(precision),
        }
        for name, peak in zip(calls, peaks, strict=True)
    )


def measure_peaks(
    sizes: tuple[int, int, int], backends: tuple[str, ...], names: list[Candidate]
) -> list[float]:
    """Returns the peak memory of the named candidates, bytes."""
    libraries = any(name.layout == INTERNAL for name in names)
    return peaks_of(make_candidates(Vectors.make(*sizes), backends, libraries), names)


def peaks_of(calls: Mapping[Candidate, Call], names: list[Candidate]) -> list[float]:
    """Returns the peak memory of each candidate's second call, bytes."""
    peaks = []
    for name in names:
        calls[name]()
        peaks.append(peak_memory(calls[name]))
    return peaks


def _drop_slow(calls: Mapping[Candidate, Call]) -> dict[Candidate, Call]:
    """Leaves out what takes too long, except the reference."""
    quick: dict[Candidate, Call] = {}
    for name, call in calls.items():
        (seconds,) = time_interleaved({name: call}, rounds=1, warm_up=1)[name]
        if seconds < _SLOW or not quick:
            quick[name] = call
        else:
            print(f"left out: {name.candidate} | {name.policy} takes {seconds:.1f} s")
    return quick


def _time_calls(
    calls: Mapping[Candidate, Call], rounds: int | None, **timing: Any
) -> dict[Candidate, dict[str, float]]:
    """Times slow and quick candidates in rounds of their own, both with the reference."""
    reference = next(iter(calls))
    once = {name: min(seconds) for name, seconds in time_interleaved(calls, 2).items()}
    slow = [name for name in calls if once[name] > 1.5 * once[reference]]
    times: dict[Candidate, dict[str, float]] = {}
    for names in ([reference, *slow], [name for name in calls if name not in slow]):
        fitting = math.ceil(_SECONDS / sum(once[name] for name in names))
        count = rounds or max(5, min(60, fitting))
        group = {name: calls[name] for name in names}
        seconds = time_interleaved(group, count, warm_up=1, **timing)
        for name, row in summarize_times(seconds, reference).items():
            times[name] = {"rounds": len(seconds[name]), **row}
    return times


def run_loss(
    sizes: Iterable[tuple[int, int, int]],
    backends: tuple[str, ...],
    rounds: int | None = None,
    file: Path | None = HERE / "loss.csv",
    libraries: bool = True,
) -> None:
    """Compares all candidates at all sizes (N, K, D); prints the tables and updates the CSV."""
    for n, k, d in sizes:
        if 4 * n * k > _BYTES:
            size = 4e-9 * n * k
            print(f"left out: N={n}, K={k}: the host would need several times {size:.1f} GB")
            continue
        table = compare_losses((n, k, d), backends, rounds, libraries)
        columns = ["candidate", "policy", "ms", "ratio", "ratio_p20", "ratio_p80", "memory_ratio"]
        print(f"\nN={n} K={k} D={d}\n{table[columns].to_string(index=False)}")
        if file is not None:
            update_csv(file, table.assign(**provenance()), ["N", "K", "D", "device"])
