"""Mistakes are refused with what to do about them inside solo-learn, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration_helpers import Result

pytestmark = [pytest.mark.full, pytest.mark.host]

# What is wrong, and what the message must say. All of it is known before the first step.
BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "preset": (
        ["negatives=typo"],
        ["Could not find 'negatives/typo'", "Available options in 'negatives'", "hardest_5"],
    ),
    "band": (
        ["negatives.keep.band=[0.5,1.2]"],
        ["ConfigError: negatives.keep.band=[0.5, 1.2]: "],
    ),
    "verb": (
        ["+negatives.kep.band=[0.5,1.0]"],
        ["ConfigError: negatives: unknown policy 'kep'. Did you mean 'keep'? Known: debias, drop"],
    ),
    "group": (
        ["+negativs.keep.band=[0.5,1.0]"],
        ["ConfigError: negativs: is not read by anything. Did you mean 'negatives'?"],
    ),
    "queue": (
        ["method_kwargs.queue_size=30"],
        ["ConfigError: method_kwargs.queue_size=30: must be a multiple", "24 and 32"],
    ),
    "argument": (
        ["+method_kwargs.symetric=true"],
        ["ConfigError: method_kwargs: unknown argument 'symetric'. Did you mean 'symmetric'?"],
    ),
    "labels": (
        ["negatives=drop_same_class", "++data.no_labels=True"],
        ["ConfigError: negatives={'drop': {'label': 'same'}", "needs labels", "data.no_labels"],
    ),
    "images": (
        ["optimizer.batch_size=32"],
        ["DataError: optimizer.batch_size=32: there are fewer images than one batch"],
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_before_training(
    programs: dict[str, Result], outputs: Path, name: str
) -> None:
    result = programs[f"bad_{name}"]
    assert result.code != 0
    for part in BAD_INPUT[name][1]:
        assert part in result.text
    # solo-learn makes this folder when training starts.
    assert not (outputs / f"bad_{name}").exists()
