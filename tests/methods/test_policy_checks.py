"""Impossible policies are refused before the first step; possible ones never give NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from solo_hardneg.errors import ConfigError

Maker = Callable[..., Any]
FAMILIES = ["mocov2_banded", "simclr_banded"]
MOCO, SIMCLR = FAMILIES
DUMMIES = ["data.format=dali", "dali.encode_indexes_into_labels=False"]
HALF = {"band": [0.5, 1.0]}
SAME = {"label": "same"}


@pytest.mark.parametrize(
    ("method", "overrides", "negatives", "message"),
    [
        # mix takes more negatives than there are, or than a band leaves.
        (MOCO, [], {"mix": {"hardest": 13, "pairs": 2}}, "mix.hardest=13: .* only M=12 .*Lower it"),
        (SIMCLR, [], {"mix": {"hardest": 7, "pairs": 2}}, "mix.hardest=7: .* only M=6 .*Lower it"),
        (SIMCLR, [], {"keep": HALF, "mix": {"hardest": 4, "pairs": 2}}, "hardest=4: .* only M=3 "),
        ("mocov2_sscl", ["~negatives"], None, "mix.hardest=1024: there are only M=12 "),
        ("simclr_sscl", [], None, "mix.hardest=32: there are only M=6 "),
        # Labels or indexes are missing.
        (MOCO, ["+data.no_labels=true"], {"drop": SAME}, "needs labels, .*data.no_labels=False"),
        (SIMCLR, ["+data.no_labels=true"], {"keep": SAME}, "needs labels, .*data.no_labels=False"),
        (
            MOCO,
            DUMMIES,
            {"drop": {"image": "same"}},
            r"dummies. Set \+\+dali.encode_indexes_into_labels=True",
        ),
        (
            SIMCLR,
            DUMMIES,
            {"drop": {"image": "same"}},
            r"dummies. Set \+\+dali.encode_indexes_into_labels=True",
        ),
        (SIMCLR, DUMMIES, {"drop": {"above": "learned", "share": 0.1}}, "DALI's are dummies"),
        # No negatives are left, immediately or later.
        (MOCO, [], {"keep": SAME, "drop": SAME}, "leaves none of M=12 negatives.*take one of them"),
        (SIMCLR, [], {"keep": SAME, "drop": {**SAME, "from_epoch": 3}}, "leaves none of M=6 "),
        (MOCO, [], {"keep": {"band": [0.5, 0.51]}}, r"keep.band=\[0.5, 0.51\].*M=12 "),
        (
            SIMCLR,
            [],
            {"keep": {"band": [{"from": 0.97, "to": 0.0, "epochs": [5, 10]}, 0.98]}},
            r"keep.band=\[0\.\d+, 0.98\] at epoch [\d.]+: moves, .* none of M=6 .* 1/M = 0.17 ",
        ),
        # The verbs are in the wrong order.
        (
            MOCO,
            [],
            {"fill": "older", "drop": HALF},
            "fill stands above .*Put fill below",
        ),
    ],
)
def test_impossible_policy_is_refused_before_the_first_step(
    model: Maker, fit: Maker, method: str, overrides: list[str], negatives: Any, message: str
) -> None:
    built = []
    changes = {} if negatives is None else {"negatives": negatives}

    def run() -> None:
        built.append(model(*overrides, method=method, **changes))
        fit(built[0])

    with pytest.raises(ConfigError, match=rf"^negatives[.=].*{message}") as refused:
        run()
    assert all(ours.losses == [] and ours.pools == [] for ours in built)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "overrides", "negatives", "labelled"),
    [
        (MOCO, [], {"mix": {"hardest": 12, "pairs": 2}}, True),
        (SIMCLR, [], {"mix": {"hardest": 6, "pairs": 2}}, True),
        (MOCO, [], {"keep": {**SAME, "until_epoch": 3}, "drop": {**SAME, "from_epoch": 3}}, True),
        (SIMCLR, ["+data.no_labels=true"], {"keep": HALF}, False),
    ],
)
def test_barely_possible_policy_trains(
    model: Maker, fit: Maker, method: str, overrides: list[str], negatives: Any, labelled: bool
) -> None:
    ours = model(*overrides, method=method, negatives=negatives)
    fit(ours, labelled=labelled)
    assert len(ours.losses) == 4


@pytest.mark.parametrize("method", FAMILIES)
def test_dataset_without_labels_is_refused_at_the_first_step(
    model: Maker, fit: Maker, method: str
) -> None:
    ours = model(method=method, negatives={"drop": SAME})
    with pytest.raises(ConfigError, match="needs labels, and this dataset has none"):
        fit(ours, labelled=False)
    assert ours.losses == []


def test_labels_are_checked_once_and_one_is_enough(model: Maker, batch: Maker) -> None:
    moco = model(method=MOCO, negatives={"drop": SAME})
    moco.training_step(batch(classes=(-1, -1, 0, -1)), 0)
    moco.training_step(batch(classes=(-1, -1, -1, -1)), 1)
    assert len(moco.losses) == 2


# ---------------------------------------------------------------- rows without negatives

ALL_VERBS = {
    "drop": SAME,
    "mix": {"hardest": 2, "pairs": 3, "queries": 2},
    "reweight": {"beta": 1.0},
    "debias": {"tau_plus": 0.1},
}


@pytest.mark.parametrize(
    ("symmetric", "detach", "classes"),
    [(False, True, (1, 1, 1, 1)), (True, False, (1, 0, 1, 1))],
)
def test_no_nan_from_queries_without_negatives(
    model: Maker, batch: Maker, symmetric: bool, detach: bool, classes: tuple[int, ...]
) -> None:
    negatives = {**ALL_VERBS, "mix": {**ALL_VERBS["mix"], "detach": detach}}
    moco = model(f"method_kwargs.symmetric={symmetric}", method=MOCO, negatives=negatives)
    moco.fill_queue(classes=[1])
    with torch.autograd.set_detect_anomaly(True):
        moco.training_step(batch(classes), 0).backward()
    grads = [p.grad for p in moco.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    expected = [0 if label == 1 else 12 + 5 for label in classes]
    assert [pool.counts.tolist() for pool in moco.pools] == [expected] * len(moco.pools)
    learns = moco.projector[0].weight.grad.abs().max() > 0
    assert learns == (max(expected) > 0)


def test_no_nan_from_a_batch_of_one_class(model: Maker, batch: Maker) -> None:
    simclr = model(method=SIMCLR, negatives=ALL_VERBS)
    loss = simclr.training_step(batch(classes=(1, 1, 1, 1)), 0)
    loss.backward()
    assert loss.isfinite()
    assert simclr.projector[0].weight.grad.abs().max() == 0
    assert simclr.classifier.weight.grad.abs().max() > 0
    mixed = model(method=SIMCLR, negatives=ALL_VERBS)
    mixed.training_step(batch(classes=(1, 1, 1, 0)), 0).backward()
    assert mixed.pools[0].counts.tolist() == [2 + 5, 2 + 5, 2 + 5, 6 + 5] * 2
    assert all(p.grad.isfinite().all() for p in mixed.parameters())
