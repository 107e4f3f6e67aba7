"""Training settings, optimizer, schedule and class metrics, for pretraining and evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sized
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from solo_hardneg.distributed import StepReport
from solo_hardneg.errors import DivergedError, bad_value, unknown_name
from solo_hardneg.validate import REQUIRED, Count, NotNegative, Positive, Rules, Text, apply_rules

METRICS = ("loss", "acc1", "acc5")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lars": "Lars"}
SCHEDULERS = ("warmup_cosine", "step", "none")
TRAINING_RULES: Rules = {
    "max_epochs": (REQUIRED, Count),
    "accumulate_grad_batches": (1, Count),
    "backbone.name": (REQUIRED, Text),
    "backbone.kwargs": ({}, dict),
    "optimizer.name": (REQUIRED, tuple(OPTIMIZERS)),
    "optimizer.batch_size": (REQUIRED, Count),
    "optimizer.lr": (REQUIRED, Positive),
    "optimizer.weight_decay": (0, NotNegative),
    "optimizer.kwargs": ({}, dict),
    "optimizer.exclude_bias_n_norm_wd": (False, bool),
    "scheduler.name": (REQUIRED, SCHEDULERS),
    "scheduler.interval": ("step", ("step", "epoch")),
    "scheduler.lr_decay_steps": (None, Any),
    "scheduler.min_lr": (0.0, NotNegative),
    "scheduler.warmup_start_lr": (3e-5, NotNegative),
    "scheduler.warmup_epochs": (10, NotNegative),
    "performance.disable_channel_last": (False, bool),
}


def class_metrics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and accuracies over the labelled images of a batch.

    Args:
        logits: (B, C).
        targets: (B,) classes, -1 for unlabelled images.

    Returns:
        The means ``loss``, ``acc1`` and ``acc5`` (percent, among the best min(5, C)); 0, with
        gradient 0, if no image is labelled.
    """
    labelled = (targets != -1).sum().clamp(min=1)
    loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / labelled
    best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == targets[:, None]  # never for target -1
    return {
        "loss": loss,
        "acc1": 100 * hits[:, 0].sum() / labelled,
        "acc5": 100 * hits.sum() / labelled,
    }


def warmup_cosine(
    step: int, lr: float, warmup: float, total: float, start_lr: float, min_lr: float
) -> float:
    """Learning rate at a step: linear warm-up to ``lr``, then a cosine to ``min_lr``.

    Args:
        step: Step, from 0.
        lr: Peak, reached at step ``warmup - 1``, as in solo-learn.
        warmup: Number of warm-up steps; 0 starts at the peak.
        total: Number of steps. Afterwards the rate stays at ``min_lr``.
        start_lr: Rate at step 0 if there is a warm-up.
        min_lr: Final rate.
    """
    if step < warmup:
        return start_lr + min(step / max(warmup - 1, 1), 1) * (lr - start_lr)
    done = min((step - warmup) / max(total - warmup, 1), 1)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2


class WarmupCosine(LambdaLR):
    """Follows :func:`warmup_cosine`; each parameter group's rate is its peak.

    Checkpoints hold the step but not the shape, so a run resumed with more epochs follows the
    longer schedule.

    Args:
        optimizer: Optimizer whose rates are set.
        shape: ``warmup``, ``total``, ``start_lr`` and ``min_lr`` of :func:`warmup_cosine`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, **shape: float) -> None:
        def factor(peak: float) -> Any:
            return lambda step: warmup_cosine(step, peak, **shape) / peak

        super().__init__(optimizer, [factor(group["lr"]) for group in optimizer.param_groups])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes at the step of a saved schedule, this one's or solo-learn's."""
        if "lr_lambdas" not in state_dict:
            step = {name: state_dict[name] for name in ("last_epoch", "_step_count", "_last_lr")}
            state_dict = {**step, "lr_lambdas": [None] * len(self.lr_lambdas)}
        super().load_state_dict(state_dict)


def split_by_dimension(groups: Iterable[Mapping[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """Splits each group into matrices and vectors (biases, norms), which get ``changes``."""
    parts = []
    for group in groups:
        params = list(group["params"])
        matrices = [p for p in params if p.ndim > 1]
        vectors = [p for p in params if p.ndim <= 1]
        name = f"{group.get('name', 'all')}_no_decay"
        parts.append({**group, "params": matrices})
        parts.append({**group, "params": vectors, "name": name, **changes})
    return [part for part in parts if part["params"]]


def build_optimizer(
    settings: DictConfig, groups: list[dict[str, Any]], lr: float
) -> torch.optim.Optimizer:
    """Builds an optimizer from solo-learn's names and arguments.

    Args:
        settings: ``cfg.optimizer``: ``name``, ``weight_decay``, ``exclude_bias_n_norm_wd`` and
            ``kwargs``, for LARS solo-learn's ``eta``, ``clip_lr`` and ``exclude_bias_n_norm``.
        groups: Parameter groups, as torch takes them.
        lr: Learning rate of groups without their own.

    Raises:
        ConfigError: The name is unknown, or the optimizer refuses the arguments.
    """
    kwargs: Any = OmegaConf.to_container(settings.kwargs)
    groups = [{**group, "params": list(group["params"])} for group in groups]
    if settings.exclude_bias_n_norm_wd:
        groups = split_by_dimension(groups, weight_decay=0)
    optimizer: Any
    if settings.name == "lars":
        from timm.optim import Lars as optimizer  # timm takes a second to import

        kwargs["trust_coeff"] = kwargs.pop("eta", 1e-3)
        kwargs["trust_clip"] = kwargs.pop("clip_lr", False)
        kwargs["always_adapt"] = True
        if kwargs.pop("exclude_bias_n_norm", False):
            groups = split_by_dimension(groups, weight_decay=0, always_adapt=False)
    elif settings.name in OPTIMIZERS:
        optimizer = getattr(torch.optim, OPTIMIZERS[settings.name])
    else:
        raise unknown_name("optimizer.name", settings.name, OPTIMIZERS, "optimizer")
    kwargs = {"lr": lr, "weight_decay": settings.weight_decay, **kwargs}
    try:
        # Some arguments are read only by a step, or the second one.
        device = next(p.device for group in groups for p in group["params"])
        dummy = nn.Parameter(torch.zeros(1, device=device))
        dummy.grad = torch.zeros_like(dummy)
        trial = optimizer([dummy], **kwargs)
        for _ in range(2):
            trial.step()
        return optimizer(groups, **kwargs)
    except Exception as error:  # torch and timm raise errors of many types
        refusal = f"{settings.name} refuses it: {error}"
        raise bad_value("optimizer.kwargs", settings.kwargs, refusal) from error


class TrainedModule(LightningModule, ABC):
    """Reads the training settings from the config, under solo-learn's names."""

    config_rules: ClassVar[Rules] = TRAINING_RULES
    _loss_report: StepReport | None = None  # while a step's backward pass runs

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Fills in the defaults of this class and its parents, and checks their keys."""
        for parent in reversed(cls.__mro__):
            apply_rules(cfg, vars(parent).get("config_rules", {}))
        steps = cfg.scheduler.lr_decay_steps
        if cfg.scheduler.name == "step" and not OmegaConf.is_list(steps):
            allowed = "must be a list of epochs, such as [60,80], for scheduler.name=step"
            raise bad_value("scheduler.lr_decay_steps", steps, allowed)
        return cfg

    def read_settings(self, cfg: DictConfig) -> None:
        """Sets the attributes that solo-learn's classes have, from a checked config."""
        self.cfg = cfg
        self.max_epochs: int = cfg.max_epochs
        self.batch_size: int = cfg.optimizer.batch_size
        self.no_channel_last: bool = cfg.performance.disable_channel_last
        # As in solo-learn, learning rates grow with the number of accumulated batches.
        self.accumulate_grad_batches: int = cfg.accumulate_grad_batches
        self.lr: float = cfg.optimizer.lr * self.accumulate_grad_batches
        self.min_lr: float = cfg.scheduler.min_lr * self.accumulate_grad_batches
        self.warmup_start_lr = cfg.scheduler.warmup_start_lr * self.accumulate_grad_batches

    @property
    @abstractmethod
    def learnable_params(self) -> list[dict[str, Any]]:
        """Trained parameter groups, each with a ``name``."""

    def configure_optimizers(self) -> Any:
        """Builds the optimizer and the schedule of its learning rates."""
        schedule = self.cfg.scheduler
        optimizer = build_optimizer(self.cfg.optimizer, self.learnable_params, self.lr)
        if schedule.name == "none":
            return optimizer
        if schedule.name == "step":
            return [optimizer], [MultiStepLR(optimizer, list(schedule.lr_decay_steps), gamma=0.1)]
        total: float = self.max_epochs
        if schedule.interval == "step":
            total = self.trainer.estimated_stepping_batches
        warmup = schedule.warmup_epochs * total / self.max_epochs
        shape = {"start_lr": self.warmup_start_lr, "min_lr": self.min_lr}
        rates = WarmupCosine(optimizer, warmup=warmup, total=total, **shape)
        return [optimizer], [{"scheduler": rates, "interval": schedule.interval}]

    def log_epoch(self, metrics: Mapping[str, Tensor], batch: Sized) -> None:
        """Logs metrics of a batch, and their epoch means over images and ranks."""
        self.log_dict(metrics, on_epoch=True, sync_dist=True, batch_size=len(batch))

    def on_before_backward(self, loss: Tensor) -> None:
        """Sends the ranks whether the loss is finite, without waiting for it."""
        self._loss_report = StepReport({"finite": loss.isfinite(), "loss": loss})

    def on_after_backward(self) -> None:
        """Ends the run on all ranks if the loss of any isn't finite.

        Raises:
            DivergedError: The loss isn't finite. The weights have not changed.
        """
        report, self._loss_report = self._loss_report, None
        if report is None:  # the subclass has its own check
            return
        values = report.read()
        if not all(values["finite"]):
            do = "Lower optimizer.lr, warm up longer, or raise method_kwargs.temperature."
            text = f"Step {self.global_step}, rank {self.global_rank}: the loss is"
            raise DivergedError(f"{text} {values['loss'][self.global_rank]}. {do}")

    def as_input(self, X: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the backbone's memory format."""
        return X if self.no_channel_last else X.to(memory_format=torch.channels_last)
