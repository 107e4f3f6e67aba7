"""MoCoV2Banded: its queue, its directions, its checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import full_pool
from solo_hardneg.negatives.kept import kept_of

Maker = Callable[..., Any]


def keys(count: int, views: int, start: int = 0) -> torch.Tensor:
    """Keys (V, B, D) whose first number is the key's and whose second is the view's."""
    made = torch.zeros(views, count, 8)
    made[:, :, 0] = torch.arange(start, start + count)
    made[:, :, 1] = torch.arange(views)[:, None]
    return made


@pytest.mark.parametrize("symmetric", [False, True])
def test_queue_order_labels_and_indexes_after_wrap_around(model: Maker, symmetric: bool) -> None:
    moco = model("negatives=all", f"method_kwargs.symmetric={symmetric}")
    views = 2 if symmetric else 1
    assert moco.queue.shape == (views, 8, 12)
    assert moco.queue_filled.item() == 0
    for step in range(5):  # 20 keys through 12 slots
        numbers = torch.arange(4 * step, 4 * step + 4)
        moco.enqueue(keys(4, views, 4 * step), labels=numbers % 3, indexes=numbers + 100)
    expected = torch.tensor([12, 13, 14, 15, 16, 17, 18, 19, 8, 9, 10, 11])
    assert moco.queue_ptr.item() == 8
    assert moco.queue_filled.item() == 12
    for view in range(views):
        assert torch.equal(moco.queue[view, 0].long(), expected)
        assert (moco.queue[view, 1] == view).all()
    assert torch.equal(moco.queue_labels, expected % 3)
    assert torch.equal(moco.queue_indexes, expected + 100)


def test_labels_indexes_and_keys_of_a_slot_are_of_one_image(model: Maker, fit: Maker) -> None:
    moco = model("negatives=all")
    seen: dict[int, torch.Tensor] = {}
    enqueue = moco.enqueue

    def watch(new: torch.Tensor, labels: torch.Tensor, indexes: torch.Tensor, *rest: Any) -> None:
        seen.update(zip(indexes.tolist(), new[0], strict=True))
        enqueue(new, labels, indexes, *rest)

    moco.enqueue = watch
    fit(moco, epochs=2)
    assert len(set(moco.queue_indexes.tolist())) > 4
    for slot, index in enumerate(moco.queue_indexes.tolist()):
        assert torch.equal(moco.queue[0, :, slot], seen[index])
        assert moco.queue_labels[slot] == index % 3


def test_slots_that_hold_no_image_are_no_negatives(model: Maker, fit: Maker) -> None:
    moco = model("negatives=all")
    present: list[float] = []
    moco.report = lambda kept: present.extend(kept.counts.unique().tolist())
    fit(moco, epochs=2)
    assert present == [0, 4, 8, 12, 12, 12, 12, 12]
    assert moco.losses[0] != moco.losses[1]


def test_a_band_that_is_too_narrow_for_a_queue_that_fills_waits(model: Maker, fit: Maker) -> None:
    # Of 4 negatives [0.5, 0.6] holds ranks 2 to 1, of 8 rank 4 to 3, of 12 rank 6.
    moco = model("negatives=band", "negatives.keep.band=[0.5,0.6]")
    present: list[float] = []
    moco.report = lambda kept: present.extend(kept.counts.unique().tolist())
    fit(moco, epochs=2)
    assert present == [0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("preset", ["hardest_5", "drop_same_class"])
def test_the_papers_direction_is_view_one_against_view_two(
    model: Maker, batch: Maker, preset: str
) -> None:
    moco = model(f"negatives={preset}", "method_kwargs.symmetric=false").fill_queue()
    indexes, (first, second), targets = batch()
    length = moco.queue.shape[2]
    ages = length - 1 - torch.arange(length)
    expected = mocov2plus_loss_func(
        moco(first)["z"], moco.momentum_forward(second)["z"], moco.queue[0].clone(), 0.2,
        policy=moco.policy, query_labels=targets, queue_labels=moco.queue_labels.clone(),
        queue_age=ages, queue_size=12,
    )  # fmt: skip
    classes = F.cross_entropy(moco(first)["logits"], targets)
    calls: list[int] = []
    moco.backbone.register_forward_hook(lambda *_: calls.append(1))
    found = moco.training_step([indexes, [first, second], targets], 0)
    torch.testing.assert_close(found, expected + classes)
    assert len(calls) == 1  # the second view is encoded as key only
    newest = moco.momentum_forward(second)["z"]
    torch.testing.assert_close(moco.queue[0][:, :4].T, newest)  # the ring has gone round once
    assert torch.equal(moco.queue_indexes[:4], indexes)


def test_the_hosts_direction_is_both_with_a_queue_each(model: Maker, batch: Maker) -> None:
    moco = model("negatives=all", "method_kwargs.symmetric=true").fill_queue()
    _, (first, second), targets = batch()
    queries = [moco(x)["z"] for x in (first, second)]
    positives = [moco.momentum_forward(x)["z"] for x in (first, second)]
    queue = moco.queue.clone()
    expected = (
        mocov2plus_loss_func(queries[0], positives[1], queue[1], 0.2)
        + mocov2plus_loss_func(queries[1], positives[0], queue[0], 0.2)
    ) / 2
    classes = sum(F.cross_entropy(moco(x)["logits"], targets) for x in (first, second)) / 2
    torch.testing.assert_close(moco.training_step(batch(), 0), expected + classes)
    torch.testing.assert_close(moco.queue[0][:, :4].T, positives[0])
    torch.testing.assert_close(moco.queue[1][:, :4].T, positives[1])


def test_symmetric_is_the_hosts_where_the_config_does_not_say(model: Maker, config: Maker) -> None:
    cfg = config("~method_kwargs.symmetric")
    assert type(model("~method_kwargs.symmetric")).add_and_assert_specific_cfg(cfg)
    assert cfg.method_kwargs.symmetric is True


def test_the_reserve_makes_the_queue_longer(model: Maker) -> None:
    assert model("negatives=drop_same_class").queue.shape[2] > 12
    assert model("negatives=drop_same_class").queue_size == 12
    longer = model("negatives=drop_same_class", "negatives.fill={kind:older,reserve:0.5}")
    assert longer.queue.shape[2] == 18
    odd = model(negatives={"drop": {"label": "same"}, "fill": {"kind": "older", "reserve": 0.1}})
    assert odd.queue.shape[2] == 14  # 13.2, and it may well be no multiple of the batch
    assert model("negatives=all").queue.shape[2] == 12


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_indexes_of_the_queue_reach_the_policy(
    model: Maker, batch: Maker, symmetric: bool
) -> None:
    overrides = f"method_kwargs.symmetric={symmetric}"
    moco = model(overrides, negatives={"drop": {"image": "same"}}).fill_queue()
    moco.queue_indexes[[3, 4, 8]] = torch.tensor([51, 51, 53])
    moco.training_step(batch(), 0)
    assert [pool.counts.tolist() for pool in moco.pools] == [[12, 10, 12, 11]] * len(moco.pools)
    assert len(moco.pools) == 1 + symmetric


# ---------------------------------------------------------------- said once


def step_by_hand(ours: Any, logged: list[dict[str, float]]) -> Callable[..., None]:
    """What a step does after its loss, for directions that leave the given pools."""

    def log(metrics: dict[str, torch.Tensor], on_epoch: bool) -> None:
        assert on_epoch
        logged.append({key: float(value) for key, value in metrics.items()})

    def finish(*pools: Any) -> None:
        for pool in pools:
            ours.report(kept_of(pool))
        batch = [torch.arange(2), [torch.zeros(2, 3, 8, 8)] * 2, torch.zeros(2)]
        ours.finish_forward(batch, torch.tensor(True), torch.tensor(0.0))
        ours.on_after_backward()

    ours.log_dict = log
    return finish


REMEDIES = {
    "floored": "negatives.debias: .*Lower negatives.debias.tau_plus, or raise method_kwargs.temp",
    "fill_short": "negatives.fill=older: .*Raise negatives.fill.reserve",
    "mix_short": "negatives.mix: fewer negatives than negatives.mix.hardest .*Lower it",
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("mocov2_banded", "floored"), ("mocov2_banded", "fill_short")),
        *(("mocov2_banded", "mix_short"), ("simclr_banded", "floored")),
    ],
)
def test_what_concerns_most_queries_is_said_once(
    model: Maker, recwarn: pytest.WarningsRecorder, method: str, name: str
) -> None:
    ours, logged = model(method=method, negatives={}), []
    finish = step_by_hand(ours, logged)

    def report(concerned: int) -> list[str]:
        recwarn.clear()
        rows = torch.arange(8) < concerned
        notes = {name: rows.float(), "synthetic": 4 * rows.float()}
        finish(full_pool(torch.zeros(8, 3)).note(**notes))
        return [str(w.message) for w in recwarn if w.category is UserWarning]

    assert report(3) == report(4) == []
    (said,) = report(5)
    assert re.match(REMEDIES[name], said)
    assert f" 62% of the queries at this step (logged as negatives/{name})." in said
    assert report(8) == report(5) == []
    assert logged[0] == {
        "negatives/present": 3.0,
        f"negatives/{name}": 3 / 8,
        "negatives/synthetic": 4 * 3 / 8,
        "negatives/none_left": 0.0,
        "train_nce_loss": 0.0,
    }
    finish(full_pool(torch.zeros(8, 3)).note(other=torch.ones(8)))
    for other in REMEDIES.keys() - {name}:  # what was said is not all that is to be said
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


def test_queries_without_negatives_are_said_once(
    model: Maker, recwarn: pytest.WarningsRecorder
) -> None:
    moco, logged = model(negatives={}), []
    finish = step_by_hand(moco, logged)

    def said(*counts: int, width: int = 3) -> list[str]:
        recwarn.clear()
        left = torch.arange(width)[None, :] < torch.tensor(counts)[:, None]
        finish(full_pool(torch.zeros(len(counts), width)).only(left))
        return [str(w.message) for w in recwarn if w.category is UserWarning]

    assert said(0, 0, width=0) == []  # the queue holds no key yet
    assert "negatives/none_left" not in logged[-1]
    assert said(0, 0, 3, 1) == []
    assert logged[-1]["negatives/none_left"] == 0.5
    (text,) = said(0, 0, 0, 1)
    assert text.startswith(
        "negatives: no negatives are left, and there is nothing to learn, for 75%"
    )
    assert said(0, 0, 0, 0) == []


@pytest.mark.parametrize("method", ["mocov2_banded", "simclr_banded"])
def test_what_a_run_logs_of_its_negatives(model: Maker, fit: Maker, method: str) -> None:
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


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+method_kwargs.symetric=true"], r"method_kwargs: unknown .*'symetric'.*'symmetric'"),
        (["method_kwargs.symmetric=maybe"], "method_kwargs.symmetric=maybe: must be true or false"),
        (["method_kwargs.queue_size=13"], r"queue_size=13: must be a multiple of .* 4 .*12 and 16"),
        (["method_kwargs.queue_size=many"], "queue_size=many: .*must be a whole number"),
        (["method_kwargs.temperature=0"], "temperature=0: .*must be"),
        (["+negatve={}"], r"negatve: .*Did you mean 'negatives'\?"),
        (["negatives.keep=5"], "negatives.keep.band=5"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_built(
    model: Maker, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model(*overrides)


def test_fewer_images_than_a_batch(model: Maker, fit: Maker) -> None:
    with pytest.raises(DataError, match=r"optimizer.batch_size=4: there are fewer images"):
        fit(model(), count=3)
