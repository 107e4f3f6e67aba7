"""What all methods log of a step, and warn of."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from solo_hardneg.negatives import full_pool
from solo_hardneg.negatives.stats import stats_of

Maker = Callable[..., Any]


def step_by_hand(ours: Any, logged: list[dict[str, float]]) -> Callable[..., None]:
    """Returns a function that finishes a step whose directions leave the given pools."""

    def log(metrics: dict[str, torch.Tensor], on_epoch: bool) -> None:
        assert on_epoch
        logged.append({key: float(value) for key, value in metrics.items()})

    def finish(*pools: Any) -> None:
        for pool in pools:
            ours.collect_stats(stats_of(pool))
        batch = [torch.arange(2), [torch.zeros(2, 3, 8, 8)] * 2, torch.zeros(2)]
        ours.log_step(batch, ours.policy, torch.tensor(True), torch.tensor(0.0))
        ours.on_after_backward()

    ours.log_dict = log
    return finish


REMEDIES = {
    "floored": "negatives.debias: .*Lower negatives.debias.tau_plus, or raise method_kwargs.temp",
    "fill_short": "negatives.fill=older: .*Raise negatives.fill.reserve",
    "mix_short": "negatives.mix: fewer negatives than negatives.mix.hardest .*Lower negatives.mix",
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("mocov2_banded", "floored"), ("mocov2_banded", "fill_short")),
        *(("mocov2_banded", "mix_short"), ("simclr_banded", "floored")),
    ],
)
def test_note_of_most_queries_is_warned_of_once(
    model: Maker, recwarn: pytest.WarningsRecorder, method: str, name: str
) -> None:
    ours, logged = model(method=method, negatives={}), []
    finish = step_by_hand(ours, logged)

    def warnings_for(affected: int) -> list[str]:
        recwarn.clear()
        rows = torch.arange(8) < affected
        notes = {name: rows.float(), "synthetic": 4 * rows.float()}
        finish(full_pool(torch.zeros(8, 3)).note(**notes))
        return [str(w.message) for w in recwarn if w.category is UserWarning]

    assert warnings_for(3) == warnings_for(4) == []
    (text,) = warnings_for(5)
    assert re.match(REMEDIES[name], text)
    assert f" 62% of the queries at this step (logged as negatives/{name})." in text
    assert warnings_for(8) == warnings_for(5) == []
    assert logged[0] == {
        "negatives/present": 3.0,
        f"negatives/{name}": 3 / 8,
        "negatives/synthetic": 4 * 3 / 8,
        "negatives/none_left": 0.0,
        "train_nce_loss": 0.0,
    }
    finish(full_pool(torch.zeros(8, 3)).note(other=torch.ones(8)))
    for other in REMEDIES.keys() - {name}:  # the others still warn
        with pytest.warns(UserWarning, match="100% of the queries"):
            finish(full_pool(torch.zeros(2, 3)).note(**{other: torch.ones(2)}))


def test_metrics_are_means_over_both_directions(model: Maker) -> None:
    moco, logged = model(negatives={}), []
    finish = step_by_hand(moco, logged)
    some, more = full_pool(torch.zeros(8, 3)), full_pool(torch.zeros(8, 5))
    finish(some.note(floored=torch.ones(8)), more.note(floored=torch.zeros(8)))
    assert logged[0] == {
        "negatives/present": 4.0,
        "negatives/floored": 0.5,
        "negatives/none_left": 0.0,
        "train_nce_loss": 0.0,
    }


def test_queries_without_negatives_are_warned_of_once(
    model: Maker, recwarn: pytest.WarningsRecorder
) -> None:
    moco, logged = model(negatives={}), []
    finish = step_by_hand(moco, logged)

    def warnings_for(*counts: int, width: int = 3) -> list[str]:
        recwarn.clear()
        left = torch.arange(width)[None, :] < torch.tensor(counts)[:, None]
        finish(full_pool(torch.zeros(len(counts), width)).only(left))
        return [str(w.message) for w in recwarn if w.category is UserWarning]

    assert warnings_for(0, 0, width=0) == []  # the queue is empty
    assert "negatives/none_left" not in logged[-1]
    assert warnings_for(0, 0, 3, 1) == []
    assert logged[-1]["negatives/none_left"] == 0.5
    (text,) = warnings_for(0, 0, 0, 1)
    assert text.startswith(
        "negatives: no negatives are left, so there is nothing to learn, for 75%"
    )
    assert warnings_for(0, 0, 0, 0) == []


@pytest.mark.parametrize("method", ["mocov2_banded", "simclr_banded"])
def test_run_logs_statistics_of_its_negatives(model: Maker, fit: Maker, method: str) -> None:
    negatives = {"mix": {"hardest": 3, "pairs": 2, "queries": 1}, "debias": {"tau_plus": 0.9}}
    ours = model(method=method, negatives=negatives)
    with pytest.warns(UserWarning, match="at its floor") as caught:
        logged = fit(ours, epochs=2).callback_metrics
    assert sum("at its floor" in str(w.message) for w in caught) == 1
    whole = 12 if method == "mocov2_banded" else 6
    assert logged["negatives/present"] == whole + 3
    assert logged["negatives/synthetic"] == 3
    both = logged["train_nce_loss_epoch"] + logged["train_class_loss_epoch"]
    assert both == pytest.approx(sum(ours.losses[-4:]) / 4, rel=1e-5)
    floored = [float(pool.notes["floored"].mean()) for pool in ours.pools if pool.tau_plus]
    assert logged["negatives/floored_epoch"] == pytest.approx(sum(floored[-4:]) / 4)
    assert logged["negatives/floored"] > 0.5
    plain = model(method=method, negatives={"reweight": 1.0})
    assert "negatives/floored" not in fit(plain).callback_metrics
