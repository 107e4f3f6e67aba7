"""BYOL of the standalone host: its loss, what learns and what follows, and whole runs."""

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch
from integration_helpers import load_checkpoint, only_checkpoint, run_python
from omegaconf import OmegaConf

from solo_hardneg.analysis import records
from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.standalone import BYOL, BaseMomentumMethod
from solo_hardneg.standalone.byol import byol_loss_func
from solo_hardneg.standalone.config import parse_pretrain
from solo_hardneg.standalone.run import linear, pretrain

SIZES = ("proj_hidden_dim", "proj_output_dim", "pred_hidden_dim")
NARROW = "method_kwargs.pred_hidden_dim=8"


@pytest.fixture
def build(config, tiny):
    """``build(...)``, seeded; what it logs is in ``model.logged``."""

    def make(*overrides):
        cfg = parse_pretrain(config("byol", NARROW, *overrides))
        torch.manual_seed(0)
        model = BYOL(cfg)
        model.logged = {}
        model.log = lambda key, value, **_: model.logged.update({key: value})
        model.log_dict = lambda values, **_: model.logged.update(values)
        return model

    return make


def make_batch(size=16):
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(2)]
    return [torch.arange(size), views, torch.arange(size) % 10]


def move_momentum(model):
    """Otherwise both networks say the same."""
    with torch.no_grad():
        for _, momentum in model.momentum_pairs:
            for p in momentum.parameters():
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------- the loss


def by_hand(predictions, projections):
    """Equation 2 of the paper, image by image: the squared distance of the unit vectors."""
    total = 0.0
    for p, z in zip(predictions.tolist(), projections.tolist(), strict=True):
        p_norm, z_norm = (math.sqrt(sum(x * x for x in row)) for row in (p, z))
        distance = sum((a / p_norm - b / z_norm) ** 2 for a, b in zip(p, z, strict=True))
        cosine = sum(a * b for a, b in zip(p, z, strict=True)) / (p_norm * z_norm)
        assert distance == pytest.approx(2 - 2 * cosine, abs=1e-9)
        total += distance
    return total / len(predictions)


def test_one_direction():
    p, z = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(3))
    assert byol_loss_func(p, 4 * z).item() == pytest.approx(by_hand(p, z), abs=1e-6)
    same = [byol_loss_func(p, scale * p).item() for scale in (0.1, -3)]
    assert same == pytest.approx([0, 4], abs=1e-6)


def test_the_targets_get_no_gradient():
    p, z = (torch.randn(7, 5).requires_grad_() for _ in range(2))
    byol_loss_func(p, z).backward()
    assert p.grad.abs().sum() > 0
    assert z.grad is None


def test_the_loss_of_a_step_is_both_directions_and_the_classifiers(build):
    model = build()
    move_momentum(model)
    batch = make_batch()
    with torch.no_grad():
        # Each view by itself: batch statistics are of one view.
        p1, p2 = (model.predictor(model.projector(model.backbone(X))) for X in batch[1])
        z1, z2 = (model.momentum_projector(model.momentum_backbone(X)) for X in batch[1])
    crossed = by_hand(p1, z2) + by_hand(p2, z1)
    assert abs(crossed - by_hand(p1, z1) - by_hand(p2, z2)) > 0.01  # the views are told apart
    class_loss = BaseMomentumMethod.training_step(model, batch, 0)["loss"]

    loss = model.training_step(batch, 0)
    assert loss.item() == pytest.approx(crossed + class_loss.item(), abs=1e-5)
    assert model.logged["train_neg_cos_sim"].item() == pytest.approx(crossed, abs=1e-5)
    assert class_loss.item() == pytest.approx(model.logged["train_class_loss"].item())


def test_without_labels_only_the_views_count(build):
    model = build()
    batch = make_batch()
    batch[2][:] = -1
    loss = model.training_step(batch, 0)
    torch.testing.assert_close(loss, model.logged["train_neg_cos_sim"])


def test_the_spread_tells_a_collapse(build):
    model = build()
    model.training_step(make_batch(), 0)
    assert 0.2 < model.logged["train_z_std"].item() < 0.6  # 1/sqrt(4), give or take
    with torch.no_grad():
        model.projector[3].weight.zero_()
        model.projector[3].bias.copy_(torch.arange(4))
    model.training_step(make_batch(), 0)
    assert model.logged["train_z_std"].item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------- learning and following


def test_names_of_the_contract(build):
    model = build()
    parts = {"backbone", "momentum_backbone", "projector", "momentum_projector", "predictor"}
    assert {key.split(".")[0] for key in model.state_dict()} == {*parts, "classifier"}
    groups = ["backbone", "classifier", "projector", "predictor"]
    assert [group["name"] for group in model.learnable_params] == groups
    learned = [p for group in model.learnable_params for p in group["params"]]
    assert {id(p) for p in learned} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len({id(p) for p in learned}) == len(learned)
    heads = {"projector": (6, 8, 4), "predictor": (4, 8, 4)}
    for name, (inputs, hidden, outputs) in heads.items():
        shapes = {key: tuple(p.shape) for key, p in getattr(model, name).named_parameters()}
        assert shapes == {
            "0.weight": (hidden, inputs),
            "0.bias": (hidden,),
            "1.weight": (hidden,),
            "1.bias": (hidden,),
            "3.weight": (outputs, hidden),
            "3.bias": (outputs,),
        }
    out = model(make_batch()[1][0])
    assert [out[key].shape for key in ("feats", "z", "p")] == [(16, 6), (16, 4), (16, 4)]
    assert not torch.allclose(out["z"].norm(dim=1), torch.ones(16))


def test_what_learns(build):
    model = build()
    move_momentum(model)
    model.training_step(make_batch(), 0).backward()
    for part in (model.backbone, model.projector, model.predictor, model.classifier):
        assert all(p.grad is not None for p in part.parameters())
    for part in (model.projector, model.predictor):
        assert all(part[layer].weight.grad.abs().sum() > 0 for layer in (0, 1, 3))
    assert model.backbone[2].weight.grad.abs().sum() > 0
    for _, momentum in model.momentum_pairs:
        assert all(p.grad is None and not p.requires_grad for p in momentum.parameters())
    assert not model.momentum_forward(make_batch()[1][0])["z"].requires_grad


def test_the_momentum_side_starts_equal_and_follows(build):
    model = build("momentum.base_tau=0.75", "momentum.final_tau=0.75")
    pairs = model.momentum_pairs
    assert pairs == [
        (model.backbone, model.momentum_backbone),
        (model.projector, model.momentum_projector),
    ]
    before = [p.clone() for _, momentum in pairs for p in momentum.parameters()]
    online = [p for pair in pairs for p in pair[0].parameters()]
    assert all(map(torch.equal, before, online))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 1
    model._trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=8)
    model.on_train_start()
    model.trainer.global_step = 1
    model.on_train_batch_end(None, None, 0)
    after = [p for _, momentum in pairs for p in momentum.parameters()]
    for new, old in zip(after, before, strict=True):
        torch.testing.assert_close(new, old + 0.25)


@pytest.mark.parametrize("tau", [0, 1])
def test_a_momentum_side_that_copies_or_stays(config, tiny, tau):
    fixed = [f"momentum.base_tau={tau}", f"momentum.final_tau={tau}", "+checkpoint.keep_prev=true"]
    run = pretrain(config("byol", NARROW, *fixed))
    first, last = (
        load_checkpoint(next(run.folder.glob(f"*ep{e}.ckpt")))["state_dict"] for e in (0, 1)
    )
    for name in ("backbone.2.weight", "projector.0.weight", "projector.1.bias"):
        assert not torch.equal(first[name], last[name])
        expected = last[name] if tau == 0 else first[f"momentum_{name}"]
        assert torch.equal(last[f"momentum_{name}"], expected)


# ---------------------------------------------------------------------- runs


def test_a_run_and_its_evaluation(config, tiny):
    more = ["max_epochs=5", "++limit_train_batches=20", "optimizer.batch_size=32", "optimizer.lr=1"]
    run = pretrain(config("byol", NARROW, *more, "knn_eval.enabled=true"))
    assert run.folder.parent.name == "byol"
    with open(run.folder / "metrics.csv") as file:
        rows = [*csv.DictReader(file)]
    losses = [float(r["train_neg_cos_sim_epoch"]) for r in rows if r["train_neg_cos_sim_epoch"]]
    assert len(losses) == 5
    assert 0 < losses[-1] < 0.9 * losses[0] < 8
    assert run.metrics["train_z_std"] > 0.1  # of at most 0.5: nothing has collapsed
    assert run.metrics["tau"] == pytest.approx(1, abs=1e-3)
    assert 0 <= run.metrics["val_acc1"] <= run.metrics["val_acc5"] <= 100
    assert {"train_class_loss", "val_loss", "val_knn_acc1"} <= run.metrics.keys()

    args = json.loads((run.folder / "args.json").read_text())
    assert args["method_kwargs"]["temperature"] is None
    model = BYOL.load_from_checkpoint(run.checkpoint, cfg=OmegaConf.create(args))
    assert model.predictor[0].weight.shape == (8, 4)

    path = f"pretrained_feature_extractor={run.folder}"
    result = linear(config("linear", path, "optimizer.lr=4", "optimizer.batch_size=64"))
    assert result.metrics["val_knn_acc1"] > 50
    assert result.metrics["val_acc1"] > 30
    before, after = (load_checkpoint(r.checkpoint)["state_dict"] for r in (run, result))
    kept = {key: value for key, value in before.items() if key.startswith("backbone.")}
    assert after.keys() == kept.keys() | {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(after[key], value) for key, value in kept.items())


def test_the_seed_decides_a_run(config, tiny):
    def losses(seed):
        metrics = pretrain(config("byol", NARROW, f"seed={seed}", "max_epochs=1")).metrics
        return [metrics[key] for key in ("train_neg_cos_sim", "train_class_loss", "val_loss")]

    assert losses(1) == losses(1) != losses(2)


def test_going_on_from_a_checkpoint(config, tiny):
    # A momentum side that never moves shows whether it was taken up, or copied anew.
    fixed = ["momentum.base_tau=1", "momentum.final_tau=1", "+checkpoint.keep_prev=true"]
    whole = pretrain(config("byol", NARROW, "max_epochs=3", *fixed))
    first = next(whole.folder.glob("*ep0.ckpt"))
    cfg = config("byol", NARROW, "max_epochs=3", "seed=77", *fixed)
    OmegaConf.set_struct(cfg, False)
    cfg.resume_from_checkpoint = str(first)
    resumed = pretrain(cfg)
    then, now, end = map(load_checkpoint, (first, resumed.checkpoint, whole.checkpoint))
    assert (then["global_step"], now["global_step"]) == (3, 9)
    assert now["lr_schedulers"][0]["_last_lr"] == end["lr_schedulers"][0]["_last_lr"]
    then, now = then["state_dict"], now["state_dict"]
    for name in ("momentum_backbone.2.weight", "momentum_projector.0.weight"):
        assert torch.equal(then[name], now[name])
    for name in ("backbone.2.weight", "projector.0.weight", "predictor.0.weight"):
        assert 0 < (then[name] - now[name]).abs().max() < 0.1

    cfg.max_epochs = 1
    with pytest.raises(CheckpointError, match="it has trained all of its epochs"):
        pretrain(cfg)


def test_the_average_goes_on_where_it_stood(config, tiny):
    more = ["max_epochs=3", "momentum.base_tau=0.5", "+checkpoint.keep_prev=true"]
    whole = pretrain(config("byol", NARROW, *more))
    cfg = config("byol", NARROW, *more)
    OmegaConf.set_struct(cfg, False)
    cfg.resume_from_checkpoint = str(next(whole.folder.glob("*ep1.ckpt")))
    resumed = pretrain(cfg)
    expected = 1 - 0.5 * (1 + math.cos(math.pi * 8 / 9)) / 2  # of the last of nine steps
    assert [run.metrics["tau"] for run in (whole, resumed)] == pytest.approx([expected] * 2)


def test_the_recorder_says_that_there_are_no_negatives(config, tiny):
    with pytest.warns(UserWarning, match="the negatives of method=byol are not recorded"):
        run = pretrain(config("byol", NARROW, "hardness.enabled=true", "hardness.every_n_steps=1"))
    found = records.read(run.folder / "hardness")
    assert {*found.table.kind} == {"metric"}
    assert {"train_neg_cos_sim_epoch", "val_acc1"} <= {*found.table.quantity}
    (note,) = found.notes
    assert note.startswith("the negatives of method=byol are not recorded, only its metrics")


@pytest.mark.full
def test_the_command(tmp_path):
    run_python(
        *("-m", "solo_hardneg", "pretrain", "--config-name", "byol", "data=digits", "max_epochs=1"),
        *("optimizer.batch_size=8", "+limit_train_batches=2", "+limit_val_batches=1"),
        *(f"method_kwargs.{name}=8" for name in SIZES),
        "checkpoint.dir=runs",
        cwd=tmp_path,
        env={"SOLO_HARDNEG_HOST": "standalone"},
    ).ok()
    checkpoint = load_checkpoint(only_checkpoint(tmp_path / "runs" / "byol"))
    assert checkpoint["global_step"] == 2
    state = checkpoint["state_dict"]
    for prefix in ("", "momentum_"):
        assert state[f"{prefix}backbone.layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
        assert state[f"{prefix}projector.0.weight"].shape == (8, 512)
    assert state["predictor.3.weight"].shape == (8, 8)


# ---------------------------------------------------------------------- what is refused


def refuse(cfg, message, tmp_path):
    """Refused before the run, which would leave a folder."""
    with pytest.raises(ConfigError, match=message):
        pretrain(cfg)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", ["absent", None, "???"])
@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_is_not_given(config, tiny, tmp_path, name, value):
    cfg = config("byol")
    OmegaConf.set_struct(cfg, False)
    cfg.method_kwargs[name] = value
    if value == "absent":
        del cfg.method_kwargs[name]
    refuse(cfg, rf"method_kwargs\.{name}: is not set, and has no default\. Add ", tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(
            ([f"method_kwargs.{name}={value}"], rf"^method_kwargs\.{name}={value}: must be a whole")
            for name in SIZES
            for value in (0, "wide", 1.5)
        ),
        (["momentum.base_tau=1.5"], r"^momentum\.base_tau=1\.5: must be a number, .* at most 1"),
        (["momentum.final_tau=slow"], r"^momentum\.final_tau=slow: must be a number"),
        (["momentum.final_tau=0.5"], r"^momentum\.base_tau=0\.99: .*at most momentum\.final_tau"),
        (["momentum=0.9"], r"^momentum=0\.9: must hold several keys"),
        (["+momentum.classifier=true"], r"^momentum\.classifier=True: only solo-learn has it"),
        (["optimizer.batch_size=1"], r"^optimizer\.batch_size=1: must be a whole number, at least"),
        (["+negatives=hardest_5"], r"^negatives=.*: method=byol reads none\. Use one of moco"),
    ],
)
def test_what_cannot_be_used(config, tiny, tmp_path, overrides, message):
    refuse(config("byol", *overrides), message, tmp_path)


def test_the_rates_of_the_average_have_the_hosts_defaults(config, tiny):
    cfg = config("byol", "momentum=null")
    model = BYOL(parse_pretrain(cfg))
    updater = model.momentum_updater
    assert (updater.base_tau, updater.final_tau) == (0.99, 1.0)


def test_a_temperature_is_passed_over(build):
    losses = [
        build(f"method_kwargs.temperature={t}").training_step(make_batch(), 0)
        for t in ("null", "0.1", "0.5")
    ]
    assert losses[0] == losses[1] == losses[2]
