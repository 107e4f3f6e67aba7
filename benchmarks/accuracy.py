"""Trains SimCLR, DCL, HCL and SSCL on small images for as many epochs as fit, and evaluates them.

SSCL's settings (ResNet-18, batch 256), with a warm-up of a tenth of the epochs. A few steps of each
method tell how many epochs fit. Another call resumes from the checkpoints, and adds epochs once all
methods have those planned. One seed: the accuracies are a first look, no evidence.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.precision import autocast, training_precision
from benchmarks.timing import now
from benchmarks.worker import Job, NotPossible, OutOfTime, Report

METHODS = {"simclr": "all", "dcl": "dcl", "hcl": "hcl", "sscl": "sscl"}  # → negatives
SEED = 5
DECAY = 1e-4  # of the linear classifier's weights, squared
_PLANNED = 0.85  # share of the remaining time that is planned
_TINY_STEPS = 3  # steps of an epoch in a rehearsal
Dataset = tuple[str, str, int]  # config, folder, side of a view in pixels


def compose_run(job: Job, dataset: Dataset, name: str, epochs: int) -> DictConfig:
    """The parsed config of one method's run."""
    from solo_hardneg.reproduce.overrides import compose_config, quote
    from solo_hardneg.standalone.config import parse_pretrain

    data, path, crop = dataset
    return parse_pretrain(
        compose_config(
            "simclr_sscl",
            [
                *(f"data={data}", f"data.train_path={quote(path)}", "data.val_path=null"),
                *(f"data.suggest.crop_size={crop}", "data.format=resident"),
                *(f"negatives={METHODS[name]}", f"name={name}", f"seed={SEED}"),
                *(f"max_epochs={epochs}", f"scheduler.warmup_epochs={epochs / 10}"),
                *(["+data.fraction=0.1", "optimizer.batch_size=32"] if job.tiny else []),
                f"checkpoint.dir={quote(job.checkpoints)}",
            ],
        )
    )


class EpochTimes(Callback):
    """Reports each epoch, and stops training before the time is up.

    Args:
        until: When training must be over.
        report: Called with an epoch's number, seconds and loss.
    """

    def __init__(self, until: float = math.inf, report: Any = None) -> None:
        self.until, self.report = until, report
        self.steps: list[float] = []  # end of each step of this epoch
        self._longest, self._start = 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self.steps = now(), []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        """Records the time, without waiting for the device."""
        self.steps.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Reports the epoch; stops if another one would take too long."""
        seconds = now() - self._start
        self._longest = max(self._longest, seconds)
        if self.report is not None:
            loss = float(trainer.callback_metrics.get("train_nce_loss_epoch", math.nan))
            self.report(trainer.current_epoch + 1, seconds, loss)
        if now() + 1.1 * self._longest > self.until:
            trainer.should_stop = True


def fit(
    cfg: DictConfig, job: Job, callbacks: list[Any], steps: int | None, resume: Path | None = None
) -> Any:
    """Trains and returns a method, with views made on the device.

    Args:
        cfg: Parsed config.
        job: What the command was asked for.
        callbacks: Additional callbacks.
        steps: Limit of steps per epoch.
        resume: Checkpoint to resume from.
    """
    from solo_hardneg import plugin
    from solo_hardneg.data.resident.callback import ResidentData
    from solo_hardneg.host import METHODS as HOST_METHODS
    from solo_hardneg.safety.checkpoint_io import SafeCheckpoints
    from solo_hardneg.standalone.loaders import pretrain_loaders

    plugin.register()
    seed_everything(cfg.seed)
    installed = {entry.name for entry in entry_points(group="lightning.pytorch.callbacks_factory")}
    needed = [] if "solo_hardneg" in installed else [SafeCheckpoints(), ResidentData()]
    model = HOST_METHODS[cfg.method](cfg).to(memory_format=torch.channels_last)
    train, _ = pretrain_loaders(cfg)
    trainer = Trainer(
        max_epochs=cfg.max_epochs,
        limit_train_batches=steps,
        accelerator="gpu" if job.gpu else "cpu",
        devices=1,
        precision=training_precision(),
        benchmark=job.gpu,
        callbacks=[*needed, *callbacks],
        logger=False,
        enable_checkpointing=any(hasattr(callback, "newest") for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train, ckpt_path=None if resume is None else str(resume))
    return model


# ---------------------------------------------------------------------- linear evaluation


@torch.no_grad()
def embed_sets(
    backbone: nn.Module, cfg: DictConfig, device: torch.device, most: int | None = None
) -> list[Tensor]:
    """Features and classes of the training images, then of the test images, on the device.

    Args:
        backbone: Backbone of a method.
        cfg: Config of its run.
        device: Device to compute on.
        most: Limit of images per set.
    """
    from solo_hardneg.data.datasets import IndexDataset, load_split
    from solo_hardneg.data.resident.images import load_images
    from solo_hardneg.data.resident.recipe import read_pipeline
    from solo_hardneg.data.resident.views import ResidentViews
    from solo_hardneg.data.transforms import plain_pipeline

    crop = cfg.augmentations[0].crop_size
    recipe = read_pipeline(plain_pipeline(cfg.data.dataset, crop, augment=False))
    cfg.data.val_path = cfg.data.train_path
    backbone, found = backbone.to(device).eval(), list[Tensor]()
    for train in (True, False):
        split = load_split(cfg, train)
        split = split if most is None else split.subset(range(most))
        images = load_images(IndexDataset(split), device)
        views = ResidentViews(images, [replace(recipe, size=recipe.size or images.shape[2])], 0)
        parts = []
        for number, indexes in enumerate(torch.arange(len(images), device=device).split(1000)):
            (X,) = views(indexes, 0, 0, number)
            with autocast(training_precision()):
                parts.append(backbone(X.to(memory_format=torch.channels_last)).float())
        found += [torch.cat(parts), torch.tensor(split.targets, device=device)]
    return found


def linear_accuracy(
    train: Tensor, train_targets: Tensor, test: Tensor, test_targets: Tensor, steps: int = 100
) -> float:
    """Top-1 accuracy in percent of logistic regression on standardized features, by L-BFGS.

    Args:
        train, test: (N, D) and (M, D) features.
        train_targets, test_targets: (N,) and (M,) classes.
        steps: Limit of L-BFGS's iterations.
    """
    mean, std = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    layer = nn.Linear(train.shape[1], int(train_targets.max()) + 1, device=train.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=steps, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(train), train_targets) + DECAY * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        hits = layer(test).argmax(dim=1) == test_targets
    return 100 * float(hits.float().mean())


def evaluate(model: Any, cfg: DictConfig, job: Job) -> dict[str, float]:
    """The linear accuracy of a method's backbone, and the seconds it took."""
    start = now()
    device = torch.device("cuda" if job.gpu else "cpu")
    most, steps = (100, 5) if job.tiny else (None, 100)
    accuracy = linear_accuracy(*embed_sets(model.backbone, cfg, device, most), steps=steps)
    return {"linear_acc1": round(accuracy, 2), "evaluation_s": round(now() - start, 2)}


# ---------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Plan:
    """Epochs of each method, and seconds of an evaluation."""

    epochs: int
    evaluation: float

    @staticmethod
    def file(job: Job) -> Path:
        """File of the last call's plan."""
        return job.checkpoints / "plan.json"

    @staticmethod
    def read(job: Job) -> Plan | None:
        """The plan, if there is one."""
        file = Plan.file(job)
        return Plan(**json.loads(file.read_text())) if file.exists() else None


def planned_epochs(target: int, done: Sequence[int], seconds: Sequence[float], left: float) -> int:
    """Number of epochs that all methods should have after this call.

    Args:
        target: Result for the last call; 0 without one.
        done: Epochs that each method has.
        seconds: Seconds of one epoch of each method.
        left: Seconds for all training.

    Returns:
        ``target`` if a method hasn't reached it; else what all can reach, at least the most that
        one has.
    """
    if min(done) < target:
        return target
    missing = sum(s * (max(done) - d) for s, d in zip(seconds, done, strict=True))
    return max(done) + max(0, math.floor((left - missing) / sum(seconds)))


def newest_trained(job: Job, name: str) -> tuple[Path | None, int]:
    """A method's newest readable checkpoint, and its number of epochs."""
    from solo_hardneg.errors import CheckpointError
    from solo_hardneg.models.checkpoints import epochs_done, newest_checkpoint, read_or_older

    newest = newest_checkpoint(job.checkpoints / name)
    if newest is None:
        return None, 0
    try:
        file, checkpoint = read_or_older("checkpoint", newest)
    except CheckpointError:  # the last call was ended while writing the only one
        return None, 0
    return file, epochs_done(checkpoint)


def make_plan(job: Job, dataset: Dataset, report: Report) -> None:
    """Measures a few steps of each method and one evaluation, and writes the plan.

    Raises:
        NotPossible: Less than one epoch fits.
    """
    epoch: dict[str, float] = {}
    for name in METHODS:
        row = {"method": name, "negatives": METHODS[name], "data": dataset[0], "seed": SEED}
        with report.catch(**row):
            cfg = compose_run(job, dataset, name, 1)
            step = step_seconds(cfg, job)
            epoch[name] = step * steps_of(job, cfg) + 0.5  # and a checkpoint
            report.add_row(**row, images_s=round(cfg.optimizer.batch_size / step, 1))
    if not epoch:
        raise RuntimeError("no method can be trained; see the rows for the reasons")
    evaluated = evaluate(untrained(cfg), cfg, job)
    report.add_row(method="untrained", data=dataset[0], seed=SEED, epoch=0, **evaluated)
    before = Plan.read(job)
    done = [newest_trained(job, name)[1] for name in METHODS]
    seconds = [epoch.get(name, max(epoch.values())) for name in METHODS]
    evaluation = 1.1 * evaluated["evaluation_s"] + 1
    left = _PLANNED * report.seconds_left() - len(METHODS) * evaluation
    epochs = planned_epochs(before.epochs if before else 0, done, seconds, left)
    if job.tiny:
        epochs = min(epochs, max(done) + 1)
    if epochs == min(done):
        need = sum(seconds)
        raise NotPossible(f"an epoch of all methods takes {need:.0f} s, and {left:.0f} s are left")
    Plan.file(job).write_text(json.dumps({"epochs": epochs, "evaluation": evaluation}))


def step_seconds(cfg: DictConfig, job: Job) -> float:
    """Seconds of a training step, with loader and views."""
    total, measured = (4, 2) if job.tiny else (40, 25)
    times = EpochTimes()
    fit(cfg, job, [times], total)
    return (times.steps[-1] - times.steps[-1 - measured]) / measured


def untrained(cfg: DictConfig) -> Any:
    """A method with its initial weights."""
    from solo_hardneg.host import METHODS as HOST_METHODS

    seed_everything(SEED)
    return HOST_METHODS[cfg.method](cfg)


def steps_of(job: Job, cfg: DictConfig) -> int:
    """Number of steps per epoch; few in a rehearsal."""
    from solo_hardneg.data.datasets import load_split

    images = len(load_split(cfg, True).images)
    return _TINY_STEPS if job.tiny else images // cfg.optimizer.batch_size


def train_and_evaluate(job: Job, dataset: Dataset, name: str, report: Report) -> None:
    """Trains a method for the planned epochs, or as long as there is time, and evaluates it.

    Raises:
        NotPossible: Nothing is planned, or nothing is left to do.
        OutOfTime: Fewer epochs than planned are trained.
    """
    from solo_hardneg.standalone.run_folder import RunFolder

    planned = Plan.read(job)
    if planned is None:
        raise NotPossible("no epochs are planned; see the unit plan")
    resume, done = newest_trained(job, name)
    cfg = compose_run(job, dataset, name, planned.epochs)
    if done >= planned.epochs and _is_evaluated(job, name, done):
        raise NotPossible(f"all {done} epochs are trained and evaluated")
    row = {"method": name, "negatives": METHODS[name], "data": dataset[0], "seed": SEED}
    row |= {"epochs": planned.epochs, "precision": training_precision(), "started_at": done}
    images = steps_of(job, cfg) * cfg.optimizer.batch_size

    def report_epoch(epoch: int, seconds: float, loss: float) -> None:
        speed = {"seconds": round(seconds, 2), "images_s": round(images / seconds, 1)}
        report.add_row(**row, epoch=epoch, loss=round(loss, 4), **speed)
        report.start(f"epoch {epoch + 1}")

    times = EpochTimes(report.until - planned.evaluation, report_epoch)
    if done < planned.epochs:
        folder = RunFolder(job.checkpoints / name, cfg, None)
        folder.newest = resume  # removed after a newer one is saved
        model = fit(cfg, job, [times, folder], _TINY_STEPS if job.tiny else None, resume)
    else:
        model = _loaded(cfg, resume)
    _, done = newest_trained(job, name)
    report.start("evaluation")
    report.add_row(**row, epoch=done, **evaluate(model, cfg, job))
    if done < planned.epochs:
        raise OutOfTime(f"{done} of {planned.epochs} epochs; another call goes on")


def _loaded(cfg: DictConfig, file: Path | None) -> Any:
    """Loads a method from a checkpoint."""
    from solo_hardneg.host import METHODS as HOST_METHODS

    assert file is not None
    model = HOST_METHODS[cfg.method](cfg)
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["state_dict"])
    return model


def _is_evaluated(job: Job, name: str, epoch: int) -> bool:
    file = job.out / "accuracy.csv"
    if not file.exists():
        return False
    rows = pd.read_csv(file)
    if "linear_acc1" not in rows:
        return False
    same = (rows.method == name) & (rows.epoch == epoch) & rows.linear_acc1.notna()
    return bool(same.any())
