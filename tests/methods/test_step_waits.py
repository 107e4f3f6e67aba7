"""A whole training step waits for the device once, to read its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from presets import small
from waits import WatchStep

Maker = Callable[..., Any]


@pytest.fixture
def waits(model: Maker, fit: Maker) -> Callable[..., list[str]]:
    """``waits(*overrides, method=...)`` lists what a step waits for, and where."""

    def watch(*overrides: str, method: str) -> list[str]:
        ours = model(*overrides, method=method)
        watcher = WatchStep(7)  # the queue and its reserve are full
        ours.observers = []
        fit(ours, epochs=2, count=8 * 4, callbacks=[watcher])
        return [str(wait) for wait in watcher.seen.waits]

    return watch


# One preset of each kind. The waits of each verb: test_losses_do_not_wait.py.
@pytest.mark.parametrize(
    ("method", "preset", "backend"),
    [
        ("mocov2_banded", "hardest_5", "chunked"),
        ("mocov2_banded", "drop_same_class", "dense"),
        ("mocov2_banded", "retain_hard", "chunked"),
        ("mocov2_banded", "sscl_moco", "dense"),
        ("simclr_banded", "drop_own_image", "dense"),
        ("simclr_banded", "sscl", "chunked"),
    ],
)
def test_step_waits_once(waits: Any, method: str, preset: str, backend: str) -> None:
    overrides = small(method, preset)
    if method.startswith("simclr"):
        overrides[0] = f"+{overrides[0]}"
    found = waits(*overrides, f"++backend={backend}", method=method)
    assert [wait.split(" (")[0].split(":")[0] for wait in found] == [
        "to the host at solo_hardneg/distributed.py"
    ]


def test_step_of_the_host_baseline_waits_once(waits: Any) -> None:
    """The standalone host reads whether the loss is finite."""
    assert len(waits("optimizer.batch_size=8", method="simclr")) == 1
