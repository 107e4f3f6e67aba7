"""Metrics, optimizers and schedules against formulas written out in the test."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from solo_hardneg.errors import ConfigError
from solo_hardneg.standalone.training import (
    WarmupCosine,
    build_optimizer,
    class_metrics,
    warmup_cosine,
)


def test_class_metrics_equal_a_loop():
    torch.manual_seed(0)
    logits, targets = torch.randn(40, 8, requires_grad=True), torch.randint(-1, 8, (40,))
    out = class_metrics(logits, targets)
    losses, top1, top5 = [], 0, 0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        if target == -1:
            continue
        losses.append(math.log(sum(math.exp(x) for x in row)) - row[target])
        rank = sum(x > row[target] for x in row)
        top1 += rank < 1
        top5 += rank < 5
    assert 0 < len(losses) < 40
    assert out["loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert out["acc1"].item() == pytest.approx(100 * top1 / len(losses))
    assert out["acc5"].item() == pytest.approx(100 * top5 / len(losses))


def test_without_labels_metrics_and_gradients_are_zero():
    logits = torch.randn(4, 3, requires_grad=True)
    out = class_metrics(logits, torch.full((4,), -1))
    assert {k: v.item() for k, v in out.items()} == {"loss": 0, "acc1": 0, "acc5": 0}
    out["loss"].backward()
    assert (logits.grad == 0).all()


def test_fewer_than_five_classes():
    assert class_metrics(torch.eye(3), torch.tensor([0, 1, 0]))["acc5"].item() == 100


@pytest.mark.parametrize(
    ("warmup", "total", "min_lr"), [(0, 10, 0.0), (1, 10, 0.05), (4, 10, 0.05), (10, 10, 0.0)]
)
def test_schedule_step_by_step(warmup, total, min_lr):
    lr, start = 0.8, 0.1
    rate = start
    for step in range(total):
        if step == warmup:
            rate = lr
        elif step > warmup:  # recursive form of the cosine
            now, before = (
                1 + math.cos(math.pi * (s - warmup) / (total - warmup)) for s in (step, step - 1)
            )
            rate = now / before * (rate - min_lr) + min_lr
        elif step > 0:
            rate += (lr - start) / (warmup - 1)
        found = warmup_cosine(step, lr, warmup, total, start, min_lr)
        assert found == pytest.approx(rate, abs=1e-12)
    if warmup < total:
        for step in (total, total + 3):
            assert warmup_cosine(step, lr, warmup, total, start, min_lr) == pytest.approx(min_lr)


def test_a_fractional_warmup_does_not_overshoot():
    assert max(warmup_cosine(s, 1.0, 2.5, 10, 0.0, 0.0) for s in range(10)) <= 1


def schedule(lr=0.8, total=10):
    """An optimizer and its schedule: four warm-up steps, then a cosine to 0."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    shape = {"warmup": 4, "total": total, "start_lr": 0.1, "min_lr": 0.0}
    return optimizer, WarmupCosine(optimizer, **shape)


def advance(optimizer, rates, steps):
    for _ in range(steps):
        optimizer.step()
        rates.step()


def test_a_schedule_resumes_from_its_state():
    optimizer, rates = schedule()
    advance(optimizer, rates, 6)
    resumed, again = schedule()
    resumed.load_state_dict(optimizer.state_dict())
    again.load_state_dict(rates.state_dict())
    assert again.get_last_lr() == rates.get_last_lr()
    for steps in range(7, 10):
        advance(resumed, again, 1)
        expected = warmup_cosine(steps, 0.8, 4, 10, 0.1, 0.0)
        assert again.get_last_lr() == [pytest.approx(expected)]


def test_a_schedule_resumes_from_solo_learns_state():
    # The state of LinearWarmupCosineAnnealingLR; newer versions of torch have one more key.
    rate = warmup_cosine(6, 0.8, 4, 10, 0.1, 0.0)
    state = {
        "warmup_epochs": 4,
        "max_epochs": 10,
        "warmup_start_lr": 0.1,
        "eta_min": 0.0,
        "base_lrs": [0.8],
        "last_epoch": 6,
        "verbose": False,
        "_step_count": 7,
        "_get_lr_called_within_step": False,
        "_last_lr": [rate],
    }
    before = dict(state)
    optimizer, rates = schedule(total=12)
    rates.load_state_dict(state)
    assert state == before
    assert rates.last_epoch == 6
    assert rates.get_last_lr() == [rate]
    for steps in range(7, 12):  # more epochs follow the longer schedule
        advance(optimizer, rates, 1)
        expected = warmup_cosine(steps, 0.8, 4, 12, 0.1, 0.0)
        assert rates.get_last_lr() == [pytest.approx(expected)]
        assert optimizer.param_groups[0]["lr"] == rates.get_last_lr()[0]
    assert not hasattr(rates, "eta_min")
    again = schedule(total=12)[1]
    again.load_state_dict(rates.state_dict())
    assert again.get_last_lr() == rates.get_last_lr()


def after_steps(name, value, grad, steps=1, lr=0.1, **options):
    """A 1 x 1 matrix and a bias after steps with a constant gradient."""
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    groups = [{"name": "layer", "params": layer.parameters()}]
    defaults = {"weight_decay": 0.0, "kwargs": {}, "exclude_bias_n_norm_wd": False}
    settings = OmegaConf.create({"name": name, **defaults, **options})
    optimizer = build_optimizer(settings, groups, lr)
    for _ in range(steps):
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), grad), torch.full((1,), grad)
        optimizer.step()
    return layer.weight.item(), layer.bias.item()


def test_sgd_with_momentum_and_decay():
    options = {"lr": 0.1, "weight_decay": 0.5, "kwargs": {"momentum": 0.9}}
    d1 = 1 + 0.5 * 2
    x1 = 2 - 0.1 * d1
    x2 = x1 - 0.1 * (0.9 * d1 + 1 + 0.5 * x1)
    assert after_steps("sgd", 2.0, 1.0, 2, **options) == pytest.approx((x2, x2), rel=1e-6)


def test_biases_can_be_excluded_from_weight_decay():
    options = {"lr": 0.1, "weight_decay": 0.5, "kwargs": {}, "exclude_bias_n_norm_wd": True}
    expected = (2 - 0.1 * (1 + 0.5 * 2), 2 - 0.1 * 1)
    assert after_steps("sgd", 2.0, 1.0, **options) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_first_step_of_adam_equals_the_learning_rate(name):
    kwargs = {"betas": [0.9, 0.99]} if name == "adamw" else {}
    expected = 2 - 0.1
    out = after_steps(name, 2.0, 3.0, lr=0.1, weight_decay=0.0, kwargs=kwargs)
    assert out == pytest.approx((expected, expected), rel=1e-5)


@pytest.mark.parametrize(
    ("clip", "exclude", "decay"), [(False, False, 0.5), (True, True, 0.5), (False, True, 0.0)]
)
def test_lars_equals_its_formula(clip, exclude, decay):
    lr, eta, momentum = 0.1, 0.02, 0.9
    kwargs = {"eta": eta, "clip_lr": clip, "exclude_bias_n_norm": exclude, "momentum": momentum}

    def expected(adapt):
        x, velocity = 2.0, 0.0
        for _ in range(2):
            step = 1.0
            if adapt:
                trust = eta * x / (1.0 + x * decay + 1e-8)
                if clip:
                    trust = min(trust / lr, 1)
                step = (1.0 + decay * x) * trust
            velocity = momentum * velocity + step
            x -= lr * velocity
        return x

    out = after_steps("lars", 2.0, 1.0, 2, lr=lr, weight_decay=decay, kwargs=kwargs)
    assert out == pytest.approx((expected(True), expected(not exclude)), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("sdg", {}, r"optimizer\.name: unknown optimizer 'sdg'\. Did you mean 'sgd'\?"),
        ("sgd", {"momemtum": 0.9}, r"optimizer\.kwargs=.*sgd refuses it.*momemtum"),
        ("adam", {"betas": [2, 3]}, r"optimizer\.kwargs=.*adam refuses it"),
    ],
)
def test_refused_optimizers(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        after_steps(name, 1.0, 1.0, lr=0.1, weight_decay=0.0, kwargs=kwargs)
