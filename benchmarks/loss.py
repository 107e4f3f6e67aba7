"""The loss alone: time and peak memory of one forward and backward pass."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.memory import elsewhere, peak
from benchmarks.precision import label
from benchmarks.provenance import HERE, provenance
from benchmarks.rivals import LIBRARIES, OURS, Data, candidates, in_the_hosts_layout
from benchmarks.timing import Work, interleaved, summary

QUERIES = (64, 256, 1024)
KEYS = (1024, 4096, 16384, 65536, 262144)
DIMENSIONS = (128, 256)
_SECONDS = 8.0  # for the rounds of one comparison
_LONG = 8.0  # seconds of a call, from which on a candidate is left out
_BYTES = 3e9  # of the host's similarities


def compare(
    queries: int,
    keys: int,
    dimensions: int,
    backends: tuple[str, ...],
    rounds: int | None = None,
    libraries: bool = True,
    precision: str = "32-true",
    refused: dict[tuple[str, str], str] | None = None,
    **how: Any,
) -> pd.DataFrame:
    """All candidates on one size; the first is the host's, to which ratios are.

    ``refused`` gets the reason of each that can't run; ``how`` goes to :func:`measured`.
    """
    works = all_works(queries, keys, dimensions, backends, libraries, precision, refused)
    sizes = {"N": queries, "K": keys, "D": dimensions}
    command = ["peaks", *map(str, sizes.values())]
    table = measured(works, command, backends, sizes, rounds, **how)
    ours = table.candidate.str.partition(",")[0]
    table["backend"] = ours.where(ours.isin(OURS), "")
    # lightly and pytorch-metric-learning keep their own.
    by_key = ours.isin(OURS) & ~table.candidate.str.endswith("host's queue")
    table["layout"] = by_key.map({True: "key by key", False: "dimension by dimension"})
    table.loc[ours.isin(LIBRARIES), "layout"] = "its own"
    table["dtype"] = label(precision)
    return table


def measured(
    works: Mapping[tuple[str, str], Work],
    peaks_command: list[str],
    backends: tuple[str, ...],
    sizes: Mapping[str, int],
    rounds: int | None = None,
    here: bool | None = None,
    **timing: Any,
) -> pd.DataFrame:
    """Times and peak memory of (candidate, policy); ratios are to the first.

    Args:
        works: one forward and backward pass each.
        peaks_command: what says their peak memory, given ``backends`` and names.
        backends: of ours.
        sizes: columns to put into all rows.
        rounds: how many; ``None`` for as many as are worth it.
        here: whether peak memory is measured in this process, by default on a GPU only. On a CPU
            memory that was freed before then hides a part of it.
        timing: more for :func:`interleaved`.
    """
    host = next(iter(works))
    works = _quick_ones(works, host)
    names = {_name(key): key for key in works}
    by_name = {name: works[key] for name, key in names.items()}
    times, number = _times(by_name, _name(host), rounds, **timing)
    if torch.cuda.is_available() if here is None else here:
        memory = peaks_of(works, list(names))
    else:
        memory = elsewhere([*peaks_command, ",".join(backends), json.dumps(list(names))])
    of_host = memory[_name(host)]
    return pd.DataFrame(
        {
            **{"candidate": names[name][0], "policy": names[name][1]},
            **sizes,
            "rounds": number[name],
            **{key: round(value, 4) for key, value in times[name].items()},
            **{"peak_MB": round(memory[name] / 1e6, 2)},
            **{"memory_ratio": round(memory[name] / of_host, 4) if of_host else math.nan},
        }
        for name in by_name
    )


def _times(
    works: Mapping[str, Work], host: str, rounds: int | None, **timing: Any
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Times and numbers of rounds; what takes long has rounds of its own, with the host's."""
    once = {name: min(seconds) for name, seconds in interleaved(works, 2).items()}
    slow = {name for name, seconds in once.items() if seconds > 1.5 * once[host]}
    times: dict[str, dict[str, float]] = {}
    number: dict[str, int] = {}
    for names in ([*slow, host], [name for name in works if name not in slow]):
        group = {name: works[name] for name in names}
        seconds = sum(once[name] for name in names)
        count = rounds or max(5, min(60, math.ceil(_SECONDS / seconds)))
        found = interleaved(group, count, warm_up=1, **timing)
        times |= summary(found, host)
        number |= dict.fromkeys(names, len(found[host]))
    return {name: times[name] for name in works}, number


def all_works(
    queries: int,
    keys: int,
    dimensions: int,
    backends: tuple[str, ...],
    libraries: bool = True,
    precision: str = "32-true",
    refused: dict[tuple[str, str], str] | None = None,
) -> dict[tuple[str, str], Work]:
    """(candidate, policy) → one forward and backward pass, the host's first."""
    data = Data.make(queries, keys, dimensions, precision)
    works: dict[tuple[str, str], Work] = dict(candidates(data, backends, libraries, refused))
    if "numba" in backends:
        works |= in_the_hosts_layout(data, "numba")
    return works


def peaks(
    queries: int, keys: int, dimensions: int, backends: tuple[str, ...], names: list[str]
) -> dict[str, float]:
    """The peak memory of each candidate, bytes."""
    libraries = any(name.startswith(LIBRARIES) for name in names)
    return peaks_of(all_works(queries, keys, dimensions, backends, libraries), names)


def peaks_of(works: Mapping[tuple[str, str], Work], names: list[str]) -> dict[str, float]:
    """The peak memory of the second call of those with these names, bytes."""
    found = {}
    for key, work in works.items():
        if _name(key) in names:
            work()
            found[_name(key)] = peak(work)
    return found


def _name(key: tuple[str, str]) -> str:
    return " | ".join(key)


def _quick_ones(works: Mapping[tuple[str, str], Work], host: tuple[str, str]) -> dict[Any, Work]:
    """Those that don't take too long; the host's in any case."""
    kept = {}
    for key, work in works.items():
        work()
        seconds = interleaved({"": work}, 1, warm_up=0)[""][0]
        if seconds < _LONG or key == host:
            kept[key] = work
        else:
            print(f"left out: {_name(key)} takes {seconds:.1f} s")
    return kept


def run(
    sizes: Iterable[tuple[int, int, int]],
    backends: tuple[str, ...],
    rounds: int | None = None,
    file: Path | None = HERE / "loss.csv",
    libraries: bool = True,
) -> pd.DataFrame:
    """Compares on all sizes and writes the rows, those of other sizes left as they are."""
    tables = []
    for size in sizes:
        if 4 * size[0] * size[1] > _BYTES:
            print(f"left out: N={size[0]}, K={size[1]}: the host would need several times "
                  f"{4e-9 * size[0] * size[1]:.1f} GB")  # fmt: skip
            continue
        table = compare(*size, backends, rounds, libraries)
        tables.append(table.assign(**provenance()))
        columns = ["candidate", "policy", "ms", "ratio", "ratio_p20", "ratio_p80", "memory_ratio"]
        print(f"\nN={size[0]} K={size[1]} D={size[2]}\n{table[columns].to_string(index=False)}")
        if file is not None:
            write(file, pd.concat(tables), ["N", "K", "D", "device"])
    return pd.concat(tables) if tables else pd.DataFrame()


def write(file: Path, new: pd.DataFrame, keys: list[str]) -> None:
    """Puts rows into a CSV, in the place of those with the same keys."""
    if file.exists():
        old = pd.read_csv(file)
        known = set(new[keys].astype(str).itertuples(index=False, name=None))
        same = [row in known for row in old[keys].astype(str).itertuples(index=False, name=None)]
        new = pd.concat([old[[not s for s in same]], new])
    new.sort_values(keys, kind="stable").to_csv(file, index=False)
