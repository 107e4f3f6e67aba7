"""MoCoV2Banded: queue, directions, checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.losses import mocov2plus_loss_func

Maker = Callable[..., Any]


def keys(count: int, views: int, start: int = 0) -> torch.Tensor:
    """Keys (V, B, D) that hold the key's number and the view's number."""
    result = torch.zeros(views, count, 8)
    result[:, :, 0] = torch.arange(start, start + count)
    result[:, :, 1] = torch.arange(views)[:, None]
    return result


@pytest.mark.parametrize("symmetric", [False, True])
def test_queue_after_wrap_around(model: Maker, symmetric: bool) -> None:
    moco = model("negatives=all", f"method_kwargs.symmetric={symmetric}")
    views = 2 if symmetric else 1
    assert moco.queue.shape == (views, 8, 12)
    assert moco.queue_filled.item() == 0
    for step in range(5):  # 20 keys through 12 slots
        numbers = torch.arange(4 * step, 4 * step + 4)
        moco.key_queue.enqueue(keys(4, views, 4 * step), labels=numbers % 3, indexes=numbers + 100)
    expected = torch.tensor([12, 13, 14, 15, 16, 17, 18, 19, 8, 9, 10, 11])
    assert moco.queue_ptr.item() == 8
    assert moco.queue_filled.item() == 12
    for view in range(views):
        assert torch.equal(moco.queue[view, 0].long(), expected)
        assert (moco.queue[view, 1] == view).all()
    assert torch.equal(moco.queue_labels, expected % 3)
    assert torch.equal(moco.queue_indexes, expected + 100)


def test_each_slot_holds_key_label_and_index_of_one_image(model: Maker, fit: Maker) -> None:
    moco = model("negatives=all")
    seen: dict[int, torch.Tensor] = {}
    enqueue = moco.key_queue.enqueue

    def watch(new: torch.Tensor, labels: torch.Tensor, indexes: torch.Tensor, *rest: Any) -> None:
        seen.update(zip(indexes.tolist(), new[0], strict=True))
        enqueue(new, labels, indexes, *rest)

    moco.key_queue.enqueue = watch
    fit(moco, epochs=2)
    assert len(set(moco.queue_indexes.tolist())) > 4
    for slot, index in enumerate(moco.queue_indexes.tolist()):
        assert torch.equal(moco.queue[0, :, slot], seen[index])
        assert moco.queue_labels[slot] == index % 3


def test_empty_slots_are_not_negatives(model: Maker, fit: Maker) -> None:
    moco = model("negatives=all")
    present: list[float] = []
    moco.collect_stats = lambda stats: present.extend(stats.counts.unique().tolist())
    fit(moco, epochs=2)
    assert present == [0, 4, 8, 12, 12, 12, 12, 12]
    assert moco.losses[0] != moco.losses[1]


def test_band_that_is_empty_while_the_queue_fills(model: Maker, fit: Maker) -> None:
    # [0.5, 0.6] holds ranks 2 to 1 of 4 negatives, 4 to 3 of 8, and rank 6 of 12.
    moco = model("negatives=band", "negatives.keep.band=[0.5,0.6]")
    present: list[float] = []
    moco.collect_stats = lambda stats: present.extend(stats.counts.unique().tolist())
    fit(moco, epochs=2)
    assert present == [0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("preset", ["hardest_5", "drop_same_class"])
def test_asymmetric_loss_contrasts_view_1_with_view_2(
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
    assert len(calls) == 1  # view 2 is encoded as key only
    newest = moco.momentum_forward(second)["z"]
    torch.testing.assert_close(moco.queue[0][:, :4].T, newest)  # the pointer has wrapped around
    assert torch.equal(moco.queue_indexes[:4], indexes)


def test_symmetric_loss_uses_both_views_and_queues(model: Maker, batch: Maker) -> None:
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


def test_symmetric_is_the_default(model: Maker, config: Maker) -> None:
    cfg = config("~method_kwargs.symmetric")
    assert type(model("~method_kwargs.symmetric")).add_and_assert_specific_cfg(cfg)
    assert cfg.method_kwargs.symmetric is True


def test_reserve_lengthens_the_queue(model: Maker) -> None:
    assert model("negatives=drop_same_class").queue.shape[2] > 12
    assert model("negatives=drop_same_class").queue_size == 12
    longer = model("negatives=drop_same_class", "negatives.fill={kind:older,reserve:0.5}")
    assert longer.queue.shape[2] == 18
    odd = model(negatives={"drop": {"label": "same"}, "fill": {"kind": "older", "reserve": 0.1}})
    assert odd.queue.shape[2] == 14  # 13.2 rounded up; need not be a multiple of the batch
    assert model("negatives=all").queue.shape[2] == 12


@pytest.mark.parametrize("symmetric", [False, True])
def test_queue_indexes_reach_the_policy(model: Maker, batch: Maker, symmetric: bool) -> None:
    overrides = f"method_kwargs.symmetric={symmetric}"
    moco = model(overrides, negatives={"drop": {"image": "same"}}).fill_queue()
    moco.queue_indexes[[3, 4, 8]] = torch.tensor([51, 51, 53])
    moco.training_step(batch(), 0)
    assert [pool.counts.tolist() for pool in moco.pools] == [[12, 10, 12, 11]] * len(moco.pools)
    assert len(moco.pools) == 1 + symmetric


# ---------------------------------------------------------------- invalid input


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
def test_invalid_config_is_refused_before_anything_is_built(
    model: Maker, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model(*overrides)


def test_fewer_images_than_one_batch_are_refused(model: Maker, fit: Maker) -> None:
    with pytest.raises(DataError, match=r"optimizer.batch_size=4: there are fewer images"):
        fit(model(), count=3)
