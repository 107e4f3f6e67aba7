"""Whole runs: their files, resuming, linear evaluation, and refused Trainer settings."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from integration_helpers import load_checkpoint
from omegaconf import OmegaConf

from solo_hardneg.errors import CheckpointError, ConfigError
from solo_hardneg.standalone import METHODS, LinearModel, run
from solo_hardneg.standalone.config import parse_linear
from solo_hardneg.standalone.run import linear, pretrain

pytestmark = pytest.mark.usefixtures("tiny")


def checkpoints(result):
    return sorted(path.name.rsplit("-", 1)[1] for path in result.folder.glob("*.ckpt"))


def test_files_and_metrics_of_a_run(config, capsys):
    result = pretrain(config("mocov2plus", "knn_eval.enabled=true", "name=my-run"))
    version = result.folder.name
    assert result.folder.parent.name == "mocov2plus"
    assert version.startswith("offline-")
    assert len(version) == len("offline-") + 8
    assert result.checkpoint == result.folder / f"my-run-{version}-ep1.ckpt"
    assert f"Run folder: {result.folder}" in capsys.readouterr().out

    args = json.loads((result.folder / "args.json").read_text())
    assert args["method"] == "mocov2plus"
    assert args["wandb_run_id"] is None
    assert args["augmentations"][0]["crop_size"] == 8  # resolved
    assert METHODS["mocov2plus"](OmegaConf.create(args)).queue_size == 64

    checkpoint = load_checkpoint(result.checkpoint)  # with weights_only
    assert checkpoint["global_step"] == 6
    assert checkpoint["state_dict"]["queue_ptr"].item() == 6 * 16 % 64

    with open(result.folder / "metrics.csv") as file:
        logged = {key for row in csv.DictReader(file) for key, value in row.items() if value}
    names = {"train_nce_loss_epoch", "train_class_loss_epoch", "train_acc1_epoch"}
    names |= {"val_loss", "val_acc1", "val_acc5", "val_knn_acc1", "val_knn_acc5"}
    names.add("lr-SGD/backbone")
    assert names <= logged
    assert {"train_nce_loss", "train_acc5", "val_acc1", "tau"} <= result.metrics.keys()
    assert 0 <= result.metrics["val_acc1"] <= result.metrics["val_acc5"] <= 100
    assert all(isinstance(value, float) for value in result.metrics.values())


def test_metrics_follow_the_seed(config):
    def losses(seed):
        metrics = pretrain(config("mocov2plus", f"seed={seed}", "max_epochs=1")).metrics
        return [metrics[k] for k in ("train_nce_loss", "train_class_loss", "val_loss")]

    assert losses(1) == losses(1) != losses(2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["max_epochs=5", "checkpoint.frequency=2", "+checkpoint.keep_prev=true"],
            ["ep1.ckpt", "ep3.ckpt", "ep4.ckpt"],
        ),
        (["checkpoint.frequency=9", "max_epochs=3", "+max_steps=4"], ["ep1.ckpt"]),
    ],
)
def test_kept_checkpoints(config, overrides, expected):
    result = pretrain(config("simclr", *overrides, "data.val_path=null"))
    assert checkpoints(result) == expected
    assert result.checkpoint.name.endswith(expected[-1])
    assert "val_loss" not in result.metrics


def test_without_checkpoints(config):
    result = pretrain(config("simclr", "checkpoint.enabled=false", "max_epochs=1"))
    assert result.checkpoint is None
    assert not list(result.folder.glob("*.ckpt"))
    assert (result.folder / "metrics.csv").is_file()


def test_resuming_from_a_checkpoint(config):
    whole = pretrain(config("mocov2plus", "max_epochs=3", "+checkpoint.keep_prev=true"))
    first = next(whole.folder.glob("*ep0.ckpt"))
    from_first = f"+resume_from_checkpoint={first}"
    resumed = pretrain(config("mocov2plus", "max_epochs=3", "seed=77", from_first))
    assert resumed.folder != whole.folder
    assert checkpoints(resumed) == ["ep2.ckpt"]
    state = load_checkpoint(resumed.checkpoint)
    assert state["global_step"] == 9
    assert state["state_dict"]["queue_ptr"].item() == 9 * 16 % 64
    # the schedule resumes: the last learning rate is that of the uninterrupted run
    expected = load_checkpoint(whole.checkpoint)["lr_schedulers"][0]["_last_lr"]
    assert state["lr_schedulers"][0]["_last_lr"] == expected
    # the weights moved on from the checkpoint's
    name = "projector.0.weight"
    before = load_checkpoint(first)["state_dict"][name]
    moved = (state["state_dict"][name] - before).abs().max()
    assert 0 < moved < 0.1


def test_more_epochs_follow_the_longer_schedule(config):
    short = pretrain(config("simclr", "max_epochs=1"))
    cfg = config("simclr", f"+resume_from_checkpoint={short.folder}")
    state = load_checkpoint(pretrain(cfg).checkpoint)
    assert state["global_step"] == 6
    assert state["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-12)

    cfg.max_epochs = 1
    message = r"resume_from_checkpoint=.*all of its epochs, max_ep"
    with pytest.raises(CheckpointError, match=message):
        pretrain(cfg)


def test_auto_resume_finds_the_run_with_equal_settings(config, capsys):
    stopped = pretrain(config("simclr", "+max_steps=3"))
    assert checkpoints(stopped) == ["ep0.ckpt"]
    pretrain(config("simclr", "+max_steps=3", "name=another"))
    capsys.readouterr()
    resumed = pretrain(config("simclr", "auto_resume.enabled=true"))
    assert f"Resuming {stopped.checkpoint}" in capsys.readouterr().out
    assert load_checkpoint(resumed.checkpoint)["global_step"] == 6
    late = ("name=another", "+auto_resume.max_hours=1e-9")
    for other in (late, ("optimizer.lr=0.2",)):
        pretrain(config("simclr", "auto_resume.enabled=true", *other))
        assert "Resuming" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", r"{key}=.*x\.ckpt: there is no such file\. Check the path"),
        ("empty folder", r"{key}=.*x\.ckpt: there is no checkpoint \(\*\.ckpt\) in this folder"),
        (
            "folder of runs",
            r"{key}=.*x\.ckpt: there is no checkpoint .* in this folder, but below it, "
            r"in: \S+x\.ckpt/run0, \S+run1\. Give the folder of a run\.$",
        ),
        ("many runs", r", \S+run9, \.\.\.\. Give the folder of a run\.$"),
        ("truncated", r"{key}=.*x\.ckpt: can't be read; it is cut off.*Take another checkpoint"),
        ({}, r"{key}=.*x\.ckpt: holds no weights"),
        ({"momentum_backbone.w": (2,)}, r"{key}=.*x\.ckpt: holds no backbone"),
        (
            {"backbone.2.weight": (3, 2)},
            r"{key}=.*x\.ckpt: its backbone doesn't fit backbone\.name.*2\.weight "
            r"is \(3, 2\), not \(6, 192\)",
        ),
    ],
)
def test_unusable_checkpoints(config, tmp_path, damage, message):
    path = tmp_path / "x.ckpt"
    if damage == "empty folder":
        path.mkdir()
    elif "runs" in damage:
        for number in range(2 if damage == "folder of runs" else 11):
            run_folder = path / f"run{number:x}"
            run_folder.mkdir(parents=True)
            (run_folder / "y.ckpt").touch()
    elif damage == "truncated":
        torch.save({"state_dict": {"backbone.w": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif damage != "gone":
        weights = {name: torch.zeros(shape) for name, shape in damage.items()}
        torch.save({"epoch": 0, "state_dict": weights} if damage else {"w": 0}, path)
    refused(linear, config("linear"), "pretrained_feature_extractor", path, message)
    if damage in ("gone", {"backbone.2.weight": (3, 2)}):
        refused(pretrain, config("simclr"), "resume_from_checkpoint", path, message)


def refused(job, cfg, key, path, message):
    OmegaConf.set_struct(cfg, False)
    cfg[key] = str(path)
    with pytest.raises(CheckpointError, match=message.format(key=key)):
        job(cfg)


def test_linear_evaluation(config, capsys):
    run = pretrain(config("mocov2plus", "max_epochs=1"))
    path = f"pretrained_feature_extractor={run.folder}"
    result = linear(config("linear", path, "optimizer.lr=4", "optimizer.batch_size=64"))
    assert result.folder.parent.name == "linear"
    names = {"train_loss", "train_acc1", "train_acc5", "val_loss", "val_acc1", "val_acc5"}
    assert names <= result.metrics.keys()
    assert result.metrics["val_knn_acc1"] > 50  # random features suffice for digits
    assert result.metrics["val_acc1"] > 30

    before, after = (load_checkpoint(r.checkpoint)["state_dict"] for r in (run, result))
    kept = {k: v for k, v in before.items() if k.startswith("backbone.")}
    assert kept
    assert after.keys() == kept.keys() | {"classifier.weight", "classifier.bias"}
    for key, value in kept.items():  # frozen, batch statistics included
        assert torch.equal(after[key], value), key
    with open(result.folder / "metrics.csv") as file:
        assert any(row["val_knn_acc1"] for row in csv.DictReader(file))


def test_linear_evaluation_on_folders(config, write_images, tmp_path):
    paths = [
        f"data.{s}_path={write_images(tmp_path / s, {'a': 8, 'b': 8})}" for s in ("train", "val")
    ]
    small = ["data=custom", *paths, "data.num_workers=0", "data.suggest.crop_size=8"]
    run = pretrain(config("simclr", *small, "max_epochs=1"))
    path = f"pretrained_feature_extractor='{run.checkpoint}'"
    alone = ("knn_eval.enabled=false", "optimizer.batch_size=4")
    result = linear(config("linear", *small, path, *alone))
    assert "val_knn_acc1" not in result.metrics
    before, after = (load_checkpoint(r.checkpoint)["state_dict"] for r in (run, result))
    assert after["backbone.3.num_batches_tracked"] == before["backbone.3.num_batches_tracked"] > 0
    for key in ("backbone.3.running_mean", "backbone.2.weight"):
        assert torch.equal(after[key], before[key])
    assert after["classifier.weight"].shape == (2, 6)
    assert 0 <= result.metrics["val_acc1"] <= result.metrics["val_acc5"] == 100


def test_linear_model_takes_images_or_features(config):
    cfg = parse_linear(config("linear", "pretrained_feature_extractor=x.ckpt"))
    model = LinearModel(run.build_backbone()[0], cfg, features_dim=6).eval()
    out = model(torch.randn(4, 3, 8, 8))
    assert torch.equal(model(out["feats"])["logits"], out["logits"])
    assert out["logits"].requires_grad
    assert not out["feats"].requires_grad
    assert [group["name"] for group in model.learnable_params] == ["classifier"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("++precision=banana", "Precision 'banana' is invalid"),
        ("++limit_train_batches=x", "not supported between instances of"),
        ("++limit_val_batches=0.001", r"0\.001"),  # read with the data
        ("++val_check_interval=4", "val_check_interval"),
        ("++val_check_interval=0", "by zero"),  # read after the first step
    ],
)
def test_settings_that_lightning_refuses(config, tmp_path, override, reason):
    key, value = override.removeprefix("++").split("=")
    message = rf"Lightning's Trainer refuses the config: .*{reason}.* {key}={value}"
    with pytest.raises(ConfigError, match=message):
        pretrain(config("simclr", override))


def test_errors_of_the_model_are_not_translated(config, monkeypatch):
    def fail(*_):
        raise TypeError("on purpose")

    monkeypatch.setattr(METHODS["simclr"], "forward", fail)
    with pytest.raises(TypeError, match="on purpose"):
        pretrain(config("simclr"))
