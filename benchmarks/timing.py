"""Interleaved timing: each round calls every candidate once, in random order."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

Call = Callable[[], object]
Name = TypeVar("Name")


def now() -> float:
    """Seconds, read once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_interleaved(
    candidates: Mapping[Name, Call],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = now,
    seed: int = 0,
    until: float = math.inf,
    repeats: int = 1,
) -> dict[Name, list[float]]:
    """Returns the seconds of one call in each round, for each candidate.

    Args:
        candidates: What to call, by name.
        rounds: Number of timed rounds.
        warm_up: Number of rounds before these, for compilation and caches.
        clock: Returns the time in seconds.
        seed: Seed of the order within a round.
        until: Time on ``clock`` after which no round starts; at least one round is timed.
        repeats: Calls that are timed as one, so that a GPU's queue never runs empty.
    """
    order, generator = list(candidates), random.Random(seed)
    seconds: dict[Name, list[float]] = {name: [] for name in candidates}
    for number in range(warm_up + rounds):
        if number > warm_up and clock() >= until:
            break
        generator.shuffle(order)
        for name in order:
            start = clock()
            for _ in range(repeats):
                candidates[name]()
            if number >= warm_up:
                seconds[name].append((clock() - start) / repeats)
    return seconds


def summarize_times(
    seconds: Mapping[Name, Sequence[float]], reference: Name
) -> dict[Name, dict[str, float]]:
    """Returns milliseconds and ratios to ``reference`` within a round, as 20, 50 and 80 %."""
    summary = {}
    for name, values in seconds.items():
        times = np.array(values)
        low, middle, high = np.percentile(1e3 * times, [20, 50, 80])
        ratio_low, ratio, ratio_high = np.percentile(times / seconds[reference], [20, 50, 80])
        summary[name] = {
            "ms_p20": low, "ms": middle, "ms_p80": high,
            "ratio_p20": ratio_low, "ratio": ratio, "ratio_p80": ratio_high,
        }  # fmt: skip
    return summary
