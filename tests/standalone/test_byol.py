"""BYOL of the standalone host: loss, gradients, moving averages, and whole runs."""

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch
from integration_helpers import load_checkpoint
from omegaconf import OmegaConf
from tiny_backbone import make_batch

from solo_hardneg.errors import ConfigError
from solo_hardneg.recording import records
from solo_hardneg.standalone import BYOL, BaseMomentumMethod
from solo_hardneg.standalone.byol import byol_loss_func
from solo_hardneg.standalone.run import pretrain

pytestmark = pytest.mark.usefixtures("tiny")
SIZES = ("proj_hidden_dim", "proj_output_dim", "pred_hidden_dim")
NARROW = "method_kwargs.pred_hidden_dim=8"


@pytest.fixture
def byol(build):
    return lambda *overrides: build("byol", NARROW, *overrides)


def perturb_momentum(model):
    """Makes the momentum network differ from the online one."""
    with torch.no_grad():
        for _, momentum in model.momentum_pairs:
            for p in momentum.parameters():
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------- the loss


def squared_distance(predictions, projections):
    """Equation 2 of the paper, image by image."""
    total = 0.0
    for p, z in zip(predictions.tolist(), projections.tolist(), strict=True):
        p_norm, z_norm = math.hypot(*p), math.hypot(*z)
        total += sum((a / p_norm - b / z_norm) ** 2 for a, b in zip(p, z, strict=True))
    return total / len(predictions)


def test_loss_of_one_direction():
    p, z = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert byol_loss_func(p, 4 * z).item() == pytest.approx(squared_distance(p, z), abs=1e-6)
    same = [byol_loss_func(p, scale * p).item() for scale in (0.1, -3)]
    assert same == pytest.approx([0, 4], abs=1e-6)


def test_the_targets_get_no_gradient():
    p, z = (torch.randn(7, 5).requires_grad_() for _ in range(2))
    byol_loss_func(p, z).backward()
    assert p.grad.abs().sum() > 0
    assert z.grad is None


def test_loss_of_a_step_sums_both_directions_and_the_classifier(byol):
    model = byol()
    perturb_momentum(model)
    batch = make_batch()
    with torch.no_grad():
        # One view at a time, for the batch statistics.
        p1, p2 = (model.predictor(model.projector(model.backbone(X))) for X in batch[1])
        z1, z2 = (model.momentum_projector(model.momentum_backbone(X)) for X in batch[1])
    crossed = squared_distance(p1, z2) + squared_distance(p2, z1)
    assert (
        abs(crossed - squared_distance(p1, z1) - squared_distance(p2, z2)) > 0.01
    )  # the views differ
    class_loss = BaseMomentumMethod.training_step(model, batch, 0)["loss"]

    loss = model.training_step(batch, 0)
    assert loss.item() == pytest.approx(crossed + class_loss.item(), abs=1e-5)
    assert model.logged["train_neg_cos_sim"].item() == pytest.approx(crossed, abs=1e-5)
    assert model.logged["train_class_loss"].item() == pytest.approx(class_loss.item())


def test_train_z_std_is_zero_after_a_collapse(byol):
    model = byol()
    model.training_step(make_batch(), 0)
    assert 0.2 < model.logged["train_z_std"].item() < 0.6  # near 1/sqrt(4)
    with torch.no_grad():
        model.projector[3].weight.zero_()
        model.projector[3].bias.copy_(torch.arange(4))
    model.training_step(make_batch(), 0)
    assert model.logged["train_z_std"].item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------- gradients, averages


def test_names_equal_solo_learns(byol):
    model = byol("momentum=null")
    parts = {"backbone", "momentum_backbone", "projector", "momentum_projector", "predictor"}
    assert {key.split(".")[0] for key in model.state_dict()} == {*parts, "classifier"}
    groups = ["backbone", "classifier", "projector", "predictor"]
    assert [group["name"] for group in model.learnable_params] == groups
    learned = [id(p) for group in model.learnable_params for p in group["params"]]
    assert sorted(learned) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for head, inputs in ((model.projector, 6), (model.predictor, 4)):
        shapes = {key: tuple(p.shape) for key, p in head.named_parameters() if "weight" in key}
        assert shapes == {"0.weight": (8, inputs), "1.weight": (8,), "3.weight": (4, 8)}
    out = model(make_batch()[1][0])
    assert [out[key].shape for key in ("feats", "z", "p")] == [(16, 6), (16, 4), (16, 4)]
    assert not torch.allclose(out["z"].norm(dim=1), torch.ones(16))
    updater = model.momentum_updater
    assert (updater.base_tau, updater.final_tau) == (0.99, 1.0)  # solo-learn's defaults


def test_gradients_reach_all_but_the_momentum_side(byol):
    model = byol()
    perturb_momentum(model)
    model.training_step(make_batch(), 0).backward()
    for part in (model.backbone, model.projector, model.predictor, model.classifier):
        assert all(p.grad is not None for p in part.parameters())
    for part in (model.projector, model.predictor):
        assert all(part[layer].weight.grad.abs().sum() > 0 for layer in (0, 1, 3))
    assert model.backbone[2].weight.grad.abs().sum() > 0
    for _, momentum in model.momentum_pairs:
        assert all(p.grad is None and not p.requires_grad for p in momentum.parameters())


def test_the_momentum_side_starts_equal_and_is_averaged(byol):
    model = byol("momentum.base_tau=0.75", "momentum.final_tau=0.75")
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


# ---------------------------------------------------------------------- runs


def test_a_run_learns_and_does_not_collapse(config):
    more = ["max_epochs=3", "++limit_train_batches=12", "optimizer.batch_size=32", "optimizer.lr=1"]
    run = pretrain(config("byol", NARROW, *more, "knn_eval.enabled=true"))
    assert run.folder.parent.name == "byol"
    with open(run.folder / "metrics.csv") as file:
        rows = [*csv.DictReader(file)]
    losses = [float(r["train_neg_cos_sim_epoch"]) for r in rows if r["train_neg_cos_sim_epoch"]]
    assert len(losses) == 3
    assert 0 < losses[-1] < 0.95 * losses[0] < 8
    assert run.metrics["train_z_std"] > 0.1  # at most 0.5; 0 after a collapse
    assert run.metrics["tau"] == pytest.approx(1, abs=1e-3)
    assert 0 < run.metrics["val_knn_acc1"] <= 100

    args = json.loads((run.folder / "args.json").read_text())
    model = BYOL.load_from_checkpoint(run.checkpoint, cfg=OmegaConf.create(args))
    assert model.predictor[0].weight.shape == (8, 4)


def test_a_resumed_run_loads_the_momentum_side(config):
    # A momentum side that never moves shows whether it was loaded or copied anew.
    fixed = ["momentum.base_tau=1", "momentum.final_tau=1"]
    first = pretrain(config("byol", NARROW, "max_epochs=1", *fixed)).checkpoint
    cfg = config("byol", NARROW, "seed=77", *fixed, f"+resume_from_checkpoint={first}")
    then, now = map(load_checkpoint, (first, pretrain(cfg).checkpoint))
    assert (then["global_step"], now["global_step"]) == (3, 6)
    then, now = then["state_dict"], now["state_dict"]
    for name in ("momentum_backbone.2.weight", "momentum_projector.0.weight"):
        assert torch.equal(then[name], now[name])
        assert not torch.equal(now[name], now[name.removeprefix("momentum_")])
    for name in ("backbone.2.weight", "projector.0.weight", "predictor.0.weight"):
        assert 0 < (then[name] - now[name]).abs().max() < 0.1


def test_the_recorder_has_positives_and_embeddings(config):
    on = ("hardness.enabled=true", "hardness.every_n_steps=1", "max_epochs=1")
    run = pretrain(config("byol", NARROW, *on))
    table = records.read_records(run.folder / "hardness").table
    assert {*table.kind} == {"metric", "scalar", "histogram"}
    assert not table.quantity.str.contains("negative|mass").any()
    values = {
        name: rows.value.to_numpy() for name, rows in table.groupby("quantity", observed=True)
    }
    assert (values["rankme"] > 1).all()
    distances = 2 - 2 * values["similarity/positive"]
    assert values["alignment"] == pytest.approx(distances, abs=1e-6)
    # The loss is the sum of both directions' squared distances.
    assert 2 * values["alignment"].mean() == pytest.approx(
        values["train_neg_cos_sim_epoch"].item(), rel=1e-3
    )


# ---------------------------------------------------------------------- refused values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(
            ([NARROW, f"~method_kwargs.{name}"], rf"method_kwargs\.{name}: is not set.* Add ")
            for name in SIZES
        ),
        (["method_kwargs.pred_hidden_dim=???"], r"method_kwargs\.pred_hidden_dim: is not set"),
        ([f"{NARROW[:-1]}0"], r"^method_kwargs\.pred_hidden_dim=0: must be at least 1"),
        (["method_kwargs.pred_hidden_dim=wide"], r"^method_kwargs\.pred_hidden_dim=wide: must be"),
        (["momentum.base_tau=1.5"], r"^momentum\.base_tau=1\.5: must be at most 1"),
        (["momentum.final_tau=0.5"], r"^momentum\.base_tau=0\.99: .*at most momentum\.final_tau"),
        (["momentum=0.9"], r"^momentum=0\.9: must hold several keys"),
        (["+momentum.classifier=true"], r"^momentum\.classifier=True: only solo-learn has it"),
        (["optimizer.batch_size=1"], r"^optimizer\.batch_size=1: must be at least 2"),
        (["+negatives=hardest_5"], r"^negatives=.*: method=byol reads none\. Use one of moco"),
    ],
)
def test_values_are_refused_before_the_run(config, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(config("byol", *overrides))
    assert not (tmp_path / "runs").exists()
