"""What can't be: refused in one line before the first step. What can: it never gives NaN."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from solo_hardneg.errors import ConfigError
from solo_hardneg.methods import OUR_METHODS

Maker = Callable[..., Any]
FAMILIES = ["mocov2_banded", "simclr_banded"]
MOCO, SIMCLR = FAMILIES
DUMMIES = ["data.format=dali", "dali.encode_indexes_into_labels=False"]
TOO_MUCH = {"mix": {"hardest": 13, "pairs": 1}}
NONE_LEFT = "Its verbs apply from top to bottom; take one of them out."


def refusal(model: Maker, fit: Maker, method: str, *overrides: str, **changes: Any) -> str:
    """The message of the error that a run ends in, before any of its steps has ended."""
    made = []
    images = {"labelled": changes.pop("labelled", True)}

    def run() -> None:
        made.append(model(*overrides, method=method, **changes))
        fit(made[0], **images)

    with pytest.raises(ConfigError) as refused:
        run()
    assert all(ours.losses == [] and ours.pools == [] for ours in made)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---------------------------------------------------------------- more than there is


@pytest.mark.parametrize(
    ("method", "hardest", "there"), [(MOCO, 13, 12), (SIMCLR, 7, 6), (SIMCLR, 13, 6)]
)
def test_mixing_more_than_there_is(
    model: Maker, fit: Maker, method: str, hardest: int, there: int
) -> None:
    negatives = {"mix": {"hardest": hardest, "pairs": 2}}
    assert refusal(model, fit, method, negatives=negatives) == (
        f"negatives.mix.hardest={hardest}: there are only M={there} negatives to mix. Lower it "
        "(and pairs with it), or have more negatives (a longer queue, a larger batch)."
    )
    negatives["mix"]["hardest"] = there
    fit(model(method=method, negatives=negatives))


def test_mixing_more_than_a_band_leaves(model: Maker, fit: Maker) -> None:
    negatives = {"keep": {"band": [0.5, 1.0]}, "mix": {"hardest": 4, "pairs": 2}}
    assert "hardest=4: there are only M=3" in refusal(model, fit, SIMCLR, negatives=negatives)
    negatives["mix"] = {"hardest": 7, "pairs": 2}
    assert "hardest=7: there are only M=6" in refusal(model, fit, MOCO, negatives=negatives)


@pytest.mark.parametrize(("method", "there"), [("mocov2_sscl", 12), ("simclr_sscl", 6)])
def test_the_default_mix_of_a_small_run(model: Maker, fit: Maker, method: str, there: int) -> None:
    absent = ["~negatives"] if method == "mocov2_sscl" else []
    message = refusal(model, fit, method, *absent)
    assert re.match(rf"negatives.mix.hardest=\d+: there are only M={there} negatives", message)


# ---------------------------------------------------------------- labels and indexes


@pytest.mark.parametrize("method", FAMILIES)
@pytest.mark.parametrize("verb", ["keep", "drop"])
def test_labels_that_there_are_not(model: Maker, fit: Maker, method: str, verb: str) -> None:
    negatives = {verb: {"label": "different" if verb == "keep" else "same"}}
    assert refusal(model, fit, method, "+data.no_labels=true", negatives=negatives) == (
        f"negatives={negatives}: needs labels, and data.no_labels=True says that there are none. "
        "Choose negatives without 'label', or use labelled data with ++data.no_labels=False."
    )
    assert refusal(model, fit, method, negatives=negatives, labelled=False) == (
        f"negatives={negatives}: needs labels, and this dataset gives none "
        "(all targets are -1). Choose negatives without 'label'."
    )
    other = {verb: {"band": [0.5, 1.0]}}
    fit(model("+data.no_labels=true", method=method, negatives=other), labelled=False)


def test_labels_are_asked_for_once_and_one_is_enough(model: Maker, batch: Maker) -> None:
    moco = model(method=MOCO, negatives={"drop": {"label": "same"}})
    moco.training_step(batch(classes=(-1, -1, 0, -1)), 0)
    moco.training_step(batch(classes=(-1, -1, -1, -1)), 1)
    assert len(moco.losses) == 2
    moco = model(method=MOCO, negatives={"drop": {"label": "same"}})
    with pytest.raises(ConfigError, match="all targets are -1"):
        moco.training_step(batch(classes=(-1, -1, -1, -1)), 0)


def test_own_images_without_true_indexes(model: Maker, fit: Maker, config: Maker) -> None:
    negatives = {"drop": {"image": "same"}}
    assert refusal(model, fit, MOCO, *DUMMIES, negatives=negatives) == (
        f"negatives={negatives}: needs dataset indexes, and DALI's are dummies unless "
        "++dali.encode_indexes_into_labels=True. Set that."
    )
    message = refusal(model, fit, SIMCLR, *DUMMIES, negatives=negatives)
    assert "encode_indexes_into_labels=True. Set that." in message
    cfg = config(*DUMMIES, negatives=negatives)
    cfg.dali = {"encode_indexes_into_labels": True}
    OUR_METHODS[MOCO].add_and_assert_specific_cfg(cfg)
    cfg = config(*DUMMIES, negatives={"drop": {"label": "same"}})
    OUR_METHODS[MOCO].add_and_assert_specific_cfg(cfg)  # DALI's labels are true


# ---------------------------------------------------------------- verbs and values


@pytest.mark.parametrize("method", FAMILIES)
@pytest.mark.parametrize(
    ("negatives", "message"),
    [
        (
            {"debias": {"tau_plus": 1.0}},
            "negatives.debias.tau_plus=1.0: must lie in [0, 1). It is the probability that a "
            "negative is of the query's class: 0.1 with ten classes.",
        ),
        ({"debias": -0.1}, "negatives.debias.tau_plus=-0.1: must lie in [0, 1). It is"),
        (
            {"debias": {"tau_plus": {"from": 0.0, "to": 1.5, "epochs": [0, 3]}}},
            "negatives.debias.tau_plus=",
        ),
        (
            {"reweight": {"beta": -1}},
            "negatives.reweight.beta=-1: must be a number from 0 up. The papers use 0.2 (MoCo) "
            "to 1 (SimCLR); 0 weighs all negatives alike.",
        ),
        (
            {"drop": {"band": [0.2, 0.2]}},
            "negatives.drop.band=[0.2, 0.2]: is upside down or empty; it must be two numbers",
        ),
        (
            {"keep": {"band": [{"from": 0.0, "to": 0.95, "epochs": [0, 9]}, 0.9]}},
            "negatives.keep.band=[0.95, 0.9]: is upside down or empty; it must be two numbers",
        ),
        (
            {"fill": "older", "drop": {"band": [0.9, 1.0]}},
            "negatives.fill stands above every keep and drop, and there is nothing to fill yet. "
            "The verbs apply from top to bottom; here: fill, drop. Put fill below.",
        ),
    ],
)
def test_values_and_orders_that_can_not_be(
    model: Maker, fit: Maker, method: str, negatives: dict, message: str
) -> None:
    assert refusal(model, fit, method, negatives=negatives).startswith(message)


@pytest.mark.parametrize(("method", "count"), [(MOCO, 12), (SIMCLR, 6)])
def test_verbs_that_leave_nothing(model: Maker, fit: Maker, method: str, count: int) -> None:
    both = {"keep": {"label": "same"}, "drop": {"label": "same"}}
    assert refusal(model, fit, method, negatives=both) == (
        f"negatives={both}: leaves none of M={count} negatives. {NONE_LEFT}"
    )
    later = {"keep": {"label": "same"}, "drop": {"label": "same", "from_epoch": 3}}
    assert "leaves none of M=" in refusal(model, fit, method, negatives=later)
    apart = {"keep": {"label": "same", "until_epoch": 3}, "drop": later["drop"]}
    model(method=method, negatives=apart)
    all_of_them = refusal(model, fit, method, negatives={"drop": {"band": [0.0, 1.0]}})
    assert all_of_them == (
        f"negatives.drop.band=[0.0, 1.0]: drops all M={count} negatives. Leave some."
    )


@pytest.mark.parametrize(("method", "count"), [(MOCO, 12), (SIMCLR, 6)])
@pytest.mark.parametrize("ends", [[0.0, 0.97], [0.97, 0.0]])
def test_a_curriculum_that_comes_to_nothing(
    model: Maker, fit: Maker, method: str, count: int, ends: list[float]
) -> None:
    start = {"from": ends[0], "to": ends[1], "epochs": [5, 10]}
    negatives = {"keep": {"band": [start, 0.98]}}
    message = refusal(model, fit, method, negatives=negatives)
    assert re.match(
        rf"negatives.keep.band=\[0\.\d+, 0.98\] at epoch [\d.]+: moves, and is so narrow that it "
        rf"holds none of M={count} negatives on its way. Keep it at least 1/M = {1 / count:.2g} ",
        message,
    )


# ---------------------------------------------------------------- rows without negatives

ALL_VERBS = {
    "drop": {"label": "same"},
    "mix": {"hardest": 2, "pairs": 3, "queries": 2},
    "reweight": {"beta": 1.0},
    "debias": {"tau_plus": 0.1},
}


def queue_of(moco: Any, classes: list[int]) -> Any:
    """Fills the queue with random unit keys of these classes."""
    generator = torch.Generator().manual_seed(3)
    views, _, length = moco.queue.shape
    keys = F.normalize(torch.randn(views, length, 8, generator=generator), dim=2)
    moco.enqueue(keys, torch.tensor(classes), torch.arange(length))
    return moco


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("classes", [(1, 1, 1, 1), (1, 0, 1, 1)])
def test_queries_without_negatives_give_no_nan(
    model: Maker, batch: Maker, symmetric: bool, detach: bool, classes: tuple[int, ...]
) -> None:
    negatives = {**ALL_VERBS, "mix": {**ALL_VERBS["mix"], "detach": detach}}
    moco = model(f"method_kwargs.symmetric={symmetric}", method=MOCO, negatives=negatives)
    queue_of(moco, [1] * 12)
    optimizer = torch.optim.SGD(moco.parameters(), lr=0.1)
    with torch.autograd.set_detect_anomaly(True):
        moco.training_step(batch(classes), 0).backward()
    grads = [p.grad for p in moco.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
    optimizer.step()
    assert all(p.isfinite().all() for p in moco.parameters())
    expected = [0 if label == 1 else 12 + 5 for label in classes]
    assert [pool.counts.tolist() for pool in moco.pools] == [expected] * len(moco.pools)
    learns = moco.projector[0].weight.grad.abs().max() > 0
    assert learns == (max(expected) > 0)


def test_images_of_one_class_only_give_no_nan_in_a_batch(model: Maker, batch: Maker) -> None:
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


@pytest.mark.parametrize("method", FAMILIES)
def test_a_whole_run_of_one_class(model: Maker, fit: Maker, method: str) -> None:
    ours = model(method=method, negatives=ALL_VERBS)
    step = ours.training_step

    def of_one_class(batch: Any, batch_idx: int) -> torch.Tensor:
        return step([*batch[:2], torch.ones_like(batch[2])], batch_idx)

    ours.training_step = of_one_class
    fit(ours, epochs=2)
    assert torch.tensor(ours.losses).isfinite().all()
    assert len(ours.losses) == 8
    assert set(ours.counts) == {0}
