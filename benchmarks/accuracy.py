"""SimCLR, DCL, HCL and SSCL on small images, for as many epochs as the time allows.

The settings are SSCL's (ResNet-18, batch 256), with a warm-up of a tenth of the epochs and a cosine
over all of them. How many epochs fit is found by a few steps of each method. A further call goes on
from the checkpoints; where all is trained, it adds as many epochs as fit, and the rates follow the
longer cosine. One seed: the accuracies are a first look, no evidence.
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

from benchmarks.precision import autocast
from benchmarks.timing import now
from benchmarks.worker import Job, NotPossible, OutOfTime, Report

METHODS = {"simclr": "all", "dcl": "dcl", "hcl": "hcl", "sscl": "sscl"}  # → negatives
PRECISION = "bf16-mixed"
SEED = 5
DECAY = 1e-4  # of the linear classifier's weights, squared
_SAFETY = 0.85  # of the time that is left, planned to be used
_TINY_STEPS = 3  # of an epoch in a rehearsal
Place = tuple[str, str, int]  # the dataset's config, its folder, pixels of a side


def config(job: Job, place: Place, name: str, epochs: int) -> DictConfig:
    """The parsed config of a run of one method."""
    from solo_hardneg.reproduce.overrides import composed, quoted
    from solo_hardneg.standalone.config import parse_pretrain

    data, path, crop = place
    return parse_pretrain(
        composed(
            "simclr_sscl",
            [
                *(f"data={data}", f"data.train_path={quoted(path)}", "data.val_path=null"),
                *(f"data.suggest.crop_size={crop}", "data.format=resident"),
                *(f"negatives={METHODS[name]}", f"name={name}", f"seed={SEED}"),
                *(f"max_epochs={epochs}", f"scheduler.warmup_epochs={epochs / 10}"),
                *(["+data.fraction=0.1", "optimizer.batch_size=32"] if job.tiny else []),
                f"checkpoint.dir={quoted(job.checkpoints)}",
            ],
        )
    )


class EpochTimes(Callback):
    """Reports each epoch, and ends the training where the next one would take too long.

    Args:
        until: when to have ended.
        told: called with an epoch's number, its seconds and its loss.
    """

    def __init__(self, until: float = math.inf, told: Any = None) -> None:
        self.until, self.told = until, told
        self.steps: list[float] = []  # when each step of this epoch ended
        self._longest, self._start = 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self.steps = now(), []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *rest: Any) -> None:
        """Notes the time, without waiting for the device."""
        self.steps.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Says how the epoch was."""
        seconds = now() - self._start
        self._longest = max(self._longest, seconds)
        if self.told is not None:
            loss = float(trainer.callback_metrics.get("train_nce_loss_epoch", math.nan))
            self.told(trainer.current_epoch + 1, seconds, loss)
        if now() + 1.1 * self._longest > self.until:
            trainer.should_stop = True


def fit(
    cfg: DictConfig, job: Job, callbacks: list[Any], steps: int | None, resume: Path | None = None
) -> Any:
    """Trains a method, with the views made on the device; returns the method.

    Args:
        cfg: parsed.
        job: what was asked for.
        callbacks: beside those that make views and checkpoints whole.
        steps: of an epoch, at most.
        resume: a checkpoint to go on from.
    """
    from solo_hardneg import plugin
    from solo_hardneg.host import METHODS as KNOWN
    from solo_hardneg.resident.callback import ResidentData
    from solo_hardneg.safety.checkpoint_io import SafeCheckpoints
    from solo_hardneg.standalone.data import pretrain_loaders

    plugin.register()
    seed_everything(cfg.seed)
    installed = {entry.name for entry in entry_points(group="lightning.pytorch.callbacks_factory")}
    ours = [] if "solo_hardneg" in installed else [SafeCheckpoints(), ResidentData()]
    model = KNOWN[cfg.method](cfg).to(memory_format=torch.channels_last)
    train, _ = pretrain_loaders(cfg)
    trainer = Trainer(
        max_epochs=cfg.max_epochs,
        limit_train_batches=steps,
        accelerator="gpu" if job.gpu else "cpu",
        devices=1,
        precision=PRECISION,
        benchmark=job.gpu,
        callbacks=[*ours, *callbacks],
        logger=False,
        enable_checkpointing=any(hasattr(callback, "newest") for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train, ckpt_path=None if resume is None else str(resume))
    return model


# ---------------------------------------------------------------------- linear evaluation


@torch.no_grad()
def features(
    backbone: nn.Module, cfg: DictConfig, device: torch.device, most: int | None = None
) -> list[Tensor]:
    """Features and classes of the training and of the test images, on the device.

    Args:
        backbone: of a method.
        cfg: of its run; says where the images are.
        device: where to compute.
        most: only so many images of each set.
    """
    from solo_hardneg.resident.images import load_images
    from solo_hardneg.resident.recipe import read_pipeline
    from solo_hardneg.resident.views import ResidentViews
    from solo_hardneg.standalone.data import IndexDataset, load_split
    from solo_hardneg.standalone.transforms import plain_pipeline

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
            with autocast(PRECISION):
                parts.append(backbone(X.to(memory_format=torch.channels_last)).float())
        found += [torch.cat(parts), torch.tensor(split.targets, device=device)]
    return found


def linear_accuracy(
    train: Tensor, train_targets: Tensor, test: Tensor, test_targets: Tensor, steps: int = 100
) -> float:
    """Percent of the test features that a linear classifier puts into their class.

    Multinomial logistic regression on standardised features, by L-BFGS.

    Args:
        train, test: (N, D) and (M, D).
        train_targets, test_targets: (N,) and (M,).
        steps: of L-BFGS, at most.
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
    """The linear accuracy of a method's backbone, and the seconds that took."""
    start = now()
    device = torch.device("cuda" if job.gpu else "cpu")
    most, steps = (100, 5) if job.tiny else (None, 100)
    accuracy = linear_accuracy(*features(model.backbone, cfg, device, most), steps=steps)
    return {"linear_acc1": round(accuracy, 2), "evaluation_s": round(now() - start, 2)}


# ---------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Plan:
    """How many epochs each method trains, and the seconds that an evaluation takes."""

    epochs: int
    evaluation: float

    @staticmethod
    def file(job: Job) -> Path:
        """Where the plan of the last call is."""
        return job.checkpoints / "plan.json"

    @staticmethod
    def read(job: Job) -> Plan | None:
        """The plan, if there is one."""
        file = Plan.file(job)
        return Plan(**json.loads(file.read_text())) if file.exists() else None


def planned_epochs(target: int, done: Sequence[int], seconds: Sequence[float], left: float) -> int:
    """How many epochs all methods should have after this call.

    Args:
        target: of the call before; 0 without one.
        done: epochs that each method has.
        seconds: that an epoch of each method takes.
        left: seconds for all training.

    Returns:
        ``target`` where a method hasn't come to it; else what all can come to together, which may
        be no more than they have.
    """
    if min(done) < target:
        return target
    missing = sum(s * (max(done) - d) for s, d in zip(seconds, done, strict=True))
    return max(done) + max(0, math.floor((left - missing) / sum(seconds)))


def trained(job: Job, name: str) -> tuple[Path | None, int]:
    """A method's newest readable checkpoint, and the epochs that it has."""
    from solo_hardneg.errors import CheckpointError
    from solo_hardneg.safety.reading import epochs_done, newest_checkpoint, read_or_older

    newest = newest_checkpoint(job.checkpoints / name)
    if newest is None:
        return None, 0
    try:
        file, checkpoint = read_or_older("checkpoint", newest)
    except CheckpointError:  # the only one was being written when the last call was ended
        return None, 0
    return file, epochs_done(checkpoint)


def plan(job: Job, place: Place, report: Report) -> None:
    """Measures a few steps of each method and one evaluation, and writes the plan.

    Raises:
        NotPossible: less than one epoch fits.
    """
    epoch: dict[str, float] = {}
    for name in METHODS:
        row = {"method": name, "negatives": METHODS[name], "data": place[0], "seed": SEED}
        with report.trying(**row):
            cfg = config(job, place, name, 1)
            step = step_seconds(cfg, job)
            epoch[name] = step * steps_of(job, cfg) + 0.5  # a checkpoint, too
            report.row(**row, images_s=round(cfg.optimizer.batch_size / step, 1))
    if not epoch:
        raise RuntimeError("no method can be trained; each has a row that says why")
    evaluated = evaluate(untrained(cfg), cfg, job)
    report.row(method="untrained", data=place[0], seed=SEED, epoch=0, **evaluated)
    before = Plan.read(job)
    done = [trained(job, name)[1] for name in METHODS]
    seconds = [epoch.get(name, max(epoch.values())) for name in METHODS]
    evaluation = 1.1 * evaluated["evaluation_s"] + 1
    left = _SAFETY * report.left() - len(METHODS) * evaluation
    epochs = planned_epochs(before.epochs if before else 0, done, seconds, left)
    if job.tiny:
        epochs = min(epochs, max(done) + 1)
    if epochs == min(done):
        need = sum(seconds)
        raise NotPossible(f"an epoch of all methods takes {need:.0f} s, and {left:.0f} s are left")
    Plan.file(job).write_text(json.dumps({"epochs": epochs, "evaluation": evaluation}))


def step_seconds(cfg: DictConfig, job: Job) -> float:
    """Seconds of a training step, loader and views included."""
    total, measured = (4, 2) if job.tiny else (40, 25)
    times = EpochTimes()
    fit(cfg, job, [times], total)
    return (times.steps[-1] - times.steps[-1 - measured]) / measured


def untrained(cfg: DictConfig) -> Any:
    """A method with the weights that training starts from: what they are worth by themselves."""
    from solo_hardneg.host import METHODS as KNOWN

    seed_everything(SEED)
    return KNOWN[cfg.method](cfg)


def steps_of(job: Job, cfg: DictConfig) -> int:
    """The steps of an epoch; a rehearsal has few."""
    from solo_hardneg.standalone.data import load_split

    images = len(load_split(cfg, True).images)
    return _TINY_STEPS if job.tiny else images // cfg.optimizer.batch_size


def train_and_evaluate(job: Job, place: Place, name: str, report: Report) -> None:
    """Trains a method to the planned epochs, or as far as there is time, and evaluates it.

    Raises:
        NotPossible: nothing is planned, or nothing is left to do.
        OutOfTime: fewer epochs than planned are trained.
    """
    from solo_hardneg.standalone.checkpoints import RunFolder

    planned = Plan.read(job)
    if planned is None:
        raise NotPossible("no epochs are planned; see the unit plan")
    resume, done = trained(job, name)
    cfg = config(job, place, name, planned.epochs)
    if done >= planned.epochs and _is_evaluated(job, name, done):
        raise NotPossible(f"all {done} epochs are trained and evaluated")
    row = {"method": name, "negatives": METHODS[name], "data": place[0], "seed": SEED}
    row |= {"epochs": planned.epochs, "precision": PRECISION, "started_at": done}
    images = steps_of(job, cfg) * cfg.optimizer.batch_size

    def told(epoch: int, seconds: float, loss: float) -> None:
        speed = {"seconds": round(seconds, 2), "images_s": round(images / seconds, 1)}
        report.row(**row, epoch=epoch, loss=round(loss, 4), **speed)
        report.at(f"epoch {epoch + 1}")

    times = EpochTimes(report.until - planned.evaluation, told)
    if done < planned.epochs:
        folder = RunFolder(job.checkpoints / name, cfg, None)
        folder.newest = resume  # removed once there is a newer one
        model = fit(cfg, job, [times, folder], _TINY_STEPS if job.tiny else None, resume)
    else:
        model = _loaded(cfg, resume)
    _, done = trained(job, name)
    report.at("evaluation")
    report.row(**row, epoch=done, **evaluate(model, cfg, job))
    if done < planned.epochs:
        raise OutOfTime(f"{done} of {planned.epochs} epochs; call again to go on")


def _loaded(cfg: DictConfig, file: Path | None) -> Any:
    """A method with the weights of a checkpoint."""
    from solo_hardneg.host import METHODS as KNOWN

    assert file is not None
    model = KNOWN[cfg.method](cfg)
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
