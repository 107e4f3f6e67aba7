"""Steps, weights and moving averages of the methods, with a tiny backbone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_backbone import make_batch
from torch import nn

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.standalone import METHODS, BaseMethod
from solo_hardneg.standalone.base import MomentumUpdater


def test_names_equal_solo_learns(build):
    model = build("mocov2plus", "knn_eval.enabled=true", "+knn_eval.k=7", "max_epochs=3")
    sizes = (model.num_classes, model.features_dim, model.max_epochs, model.batch_size)
    assert sizes == (10, 6, 3, 16)
    assert (model.num_large_crops, model.num_crops) == (2, 2)
    assert (model.knn_eval, model.knn_k, model.no_channel_last) == (True, 7, False)
    assert model.lr == pytest.approx(0.1 * 16 / 256)
    assert (model.temperature, model.queue_size) == (0.2, 64)
    names = {key.split(".")[0] for key in model.state_dict()}
    parts = {"backbone", "momentum_backbone", "projector", "momentum_projector"}
    assert names == {*parts, "classifier", "queue", "queue_ptr"}
    assert [g["name"] for g in model.learnable_params] == ["backbone", "classifier", "projector"]
    assert model.queue.shape == (2, 4, 64)
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(2, 64))
    heads = [name for name, _ in build("simclr").projector.named_parameters()]
    assert heads == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_step_averages_metrics_over_the_views(build):
    model = build("simclr").eval()  # no batch statistics
    batch = make_batch()
    out = BaseMethod.training_step(model, batch, 0)
    single = [model.base_training_step(X, batch[2]) for X in batch[1]]
    for key in ("loss", "acc1", "acc5"):
        expected = (single[0][key] + single[1][key]) / 2
        torch.testing.assert_close(out[key], expected)
    torch.testing.assert_close(model.logged["train_class_loss"], out["loss"])
    assert [f.shape for f in out["feats"]] == [(16, 6)] * 2
    assert [f.shape for f in out["z"]] == [(16, 4)] * 2
    assert set(model.logged) == {"train_class_loss", "train_acc1", "train_acc5"}


def test_the_classifier_sends_no_gradient_to_the_backbone(build):
    model = build("simclr")
    BaseMethod.training_step(model, make_batch(), 0)["loss"].backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.classifier.weight.grad.abs().sum() > 0


def test_without_labels_only_the_contrastive_loss_counts(build):
    model = build("simclr")
    batch = make_batch()
    batch[2][:] = -1
    loss = model.training_step(batch, 0)
    torch.testing.assert_close(loss, model.logged["train_nce_loss"])
    assert loss.isfinite()
    assert model.logged["train_class_loss"] == 0


def test_loss_of_simclr(build):
    model = build("simclr").eval()
    batch = make_batch()
    z = torch.cat([model(X)["z"] for X in batch[1]])
    expected = simclr_loss_func(z, torch.arange(16).repeat(2), 0.5)
    class_loss = BaseMethod.training_step(model, batch, 0)["loss"]
    torch.testing.assert_close(model.training_step(batch, 0), expected + class_loss)


def test_loss_and_queue_of_moco(build):
    model = build("mocov2plus").eval()
    for p in model.momentum_backbone.parameters():
        p += 0.1  # keys differ from queries
    batch = make_batch()
    (q1, q2), (k1, k2) = (
        [model(X)["z"] for X in batch[1]],
        [model.momentum_forward(X)["z"] for X in batch[1]],
    )
    torch.testing.assert_close(q1.norm(dim=1), torch.ones(16))
    torch.testing.assert_close(k1.norm(dim=1), torch.ones(16))
    before = model.queue.clone()
    halves = [mocov2plus_loss_func(q, k, before[i], 0.2) for q, k, i in ((q1, k2, 1), (q2, k1, 0))]
    class_loss = super(METHODS["mocov2plus"], model).training_step(batch, 0)["loss"]

    loss = model.training_step(batch, 0)
    torch.testing.assert_close(loss, sum(halves) / 2 + class_loss)
    loss.backward()
    assert all(p.grad is None for p in model.momentum_projector.parameters())
    assert model.projector[0].weight.grad.abs().sum() > 0

    torch.testing.assert_close(model.queue[:, :, :16], torch.stack([k1.T, k2.T]))
    assert torch.equal(model.queue[:, :, 16:], before[:, :, 16:])
    assert model.queue_ptr.item() == 16
    for _ in range(3):
        model.training_step(batch, 0)
    assert model.queue_ptr.item() == 0  # wrapped around


def test_a_queue_size_that_global_batches_do_not_divide(build):
    model = build("mocov2plus", "method_kwargs.queue_size=96")
    model._trainer = SimpleNamespace(world_size=3)  # 48 images a step
    model.setup("fit")
    model._trainer = SimpleNamespace(world_size=4)
    message = (
        r"method_kwargs\.queue_size=96: must be a multiple of the global batch of 64 .*64 and 128"
    )
    with pytest.raises(ConfigError, match=message):
        model.setup("fit")
    model.setup("validate")


def test_moving_average_equals_the_closed_form():
    online, momentum = nn.Linear(3, 3), nn.Linear(3, 3)
    start = momentum.weight.clone()
    updater = MomentumUpdater(0.9, 0.9)
    for _ in range(5):
        updater.update(online, momentum)
    expected = 0.9**5 * start + (1 - 0.9**5) * online.weight
    torch.testing.assert_close(momentum.weight, expected)


def test_tau_follows_a_cosine():
    updater = MomentumUpdater(0.9, 1.0)
    assert updater.cur_tau == 0.9
    for step in range(11):
        updater.update_tau(step, 10)
        expected = 1 - 0.1 * (math.cos(math.pi * step / 10) + 1) / 2
        assert updater.cur_tau == pytest.approx(expected)
    assert updater.cur_tau == 1


def test_decreasing_tau_is_refused():
    with pytest.raises(ConfigError, match=r"momentum\.base_tau=0\.99: must be .*final_tau.*0\.9"):
        MomentumUpdater(0.99, 0.9)


def test_one_average_per_optimizer_step(build):
    model = build("mocov2plus", "momentum.base_tau=0.5", "momentum.final_tau=1.0")
    trainer = SimpleNamespace(global_step=4, estimated_stepping_batches=8)
    model._trainer = trainer
    model.on_train_start()  # a run resumed at half of its steps
    assert model.momentum_updater.cur_tau == pytest.approx(0.75)
    before = model.projector[0].weight.clone()
    with torch.no_grad():
        model.projector[0].weight += 1
    model.on_train_batch_end(None, None, 0)  # accumulated only
    assert torch.equal(model.momentum_projector[0].weight, before)
    trainer.global_step = 5
    model.on_train_batch_end(None, None, 1)
    gap = model.projector[0].weight - model.momentum_projector[0].weight
    torch.testing.assert_close(gap, torch.full_like(gap, 0.75))
    assert model.logged["tau"] == pytest.approx(0.75)
    assert model.momentum_updater.cur_tau > 0.75


def test_learning_rates_scale_with_accumulation(build):
    model = build("simclr", "+accumulate_grad_batches=4", "+scheduler.min_lr=0.01")
    assert model.lr == pytest.approx(4 * 0.1 * 16 / 256)
    assert model.classifier_lr == pytest.approx(4 * 0.1 * 16 / 256)
    assert model.min_lr == pytest.approx(0.04)


def test_learning_rates_of_all_groups_over_a_run(build):
    model = build(
        "simclr",
        "max_epochs=4",
        "scheduler.warmup_epochs=2",
        "+scheduler.min_lr=0.001",
        "optimizer.classifier_lr=1.6",
    )
    model._trainer = SimpleNamespace(estimated_stepping_batches=12)
    (optimizer,), (schedule,) = model.configure_optimizers()
    assert schedule["interval"] == "step"
    for step in range(12):
        for group, peak in zip(optimizer.param_groups, (0.00625, 0.1, 0.00625), strict=True):
            if step < 6:
                expected = 3e-5 + step * (peak - 3e-5) / 5
            else:
                expected = 0.001 + (peak - 0.001) * (1 + math.cos(math.pi * (step - 6) / 6)) / 2
            assert group["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule["scheduler"].step()


def test_other_schedules(build):
    by_epoch = build("simclr", "max_epochs=4", "+scheduler.interval=epoch")
    (optimizer,), (schedule,) = by_epoch.configure_optimizers()
    assert schedule["interval"] == "epoch"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.00625)
    for _ in range(2):
        optimizer.step()
        schedule["scheduler"].step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.00625 / 2)

    in_steps = build("simclr", "scheduler.name=step", "+scheduler.lr_decay_steps=[1]")
    (optimizer,), (schedule,) = in_steps.configure_optimizers()
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.000625)
    assert build("simclr", "scheduler.name=none").configure_optimizers().param_groups[1]["name"]


def test_knn_features_are_of_the_current_epoch(build):
    model = build("simclr", "knn_eval.enabled=true")
    for batch_idx in (0, 1, 0, 1, 2):  # two epochs
        batch = make_batch(seed=batch_idx)
        model.training_step(batch, batch_idx)
    assert len(model._knn_train) == 2 * 3
    feats, targets = model._knn_train[-1]
    assert (feats.shape, targets.tolist()) == ((16, 6), batch[2].tolist())
    assert not feats.requires_grad
