"""Interleaved runs: each round calls every candidate once, in an order of its own."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Work = Callable[[], object]


def now() -> float:
    """Seconds, once everything that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(
    works: Mapping[str, Work],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = now,
    seed: int = 0,
    until: float = math.inf,
    calls: int = 1,
) -> dict[str, list[float]]:
    """The seconds of each round, for each candidate.

    Args:
        works: the candidates by name.
        rounds: how many rounds are kept.
        warm_up: how many come before, in which kernels are compiled and caches filled.
        clock: what says the time.
        seed: of the orders.
        until: no further round starts once ``clock`` says so much; one round is kept in any case.
        calls: how many calls are timed as one, so that a GPU's queue of work is never empty; what
            is returned is the time of one of them.
    """
    order, shuffle = list(works), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm_up + rounds):
        if number > warm_up and clock() >= until:
            break
        shuffle.shuffle(order)
        for name in order:
            start = clock()
            for _ in range(calls):
                works[name]()
            taken = (clock() - start) / calls
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def summary(seconds: Mapping[str, Sequence[float]], reference: str) -> dict[str, dict[str, float]]:
    """Medians with the 20th and 80th percentile: milliseconds, and ratios within one round."""
    of_reference = np.array(seconds[reference])
    found = {}
    for name, values in seconds.items():
        times = np.array(values)
        low, middle, high = np.percentile(1e3 * times, [20, 50, 80])
        ratio_low, ratio, ratio_high = np.percentile(times / of_reference, [20, 50, 80])
        found[name] = {
            "ms_p20": low, "ms": middle, "ms_p80": high,
            "ratio_p20": ratio_low, "ratio": ratio, "ratio_p80": ratio_high,
        }  # fmt: skip
    return found
